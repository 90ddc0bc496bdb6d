"""Products between activations: attention, fused and written out. Whole heads are what can go."""

from __future__ import annotations

from math import prod
from typing import Any, TypeGuard

from torch import Tensor

from hyperprune.labels.arrays import compact, extent, varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import TensorRef, Turned
from hyperprune.labels.products import gate_product, layer_behind, line
from hyperprune.labels.reasons import COMPUTED, INDEXED, POSITIONS, PRODUCT
from hyperprune.labels.registry import rule


@rule("scaled_dot_product_attention")
def fused_attention(call: Call) -> Any:
    """Query, key and value of one head go together, with that head's bias in the mask."""
    q, k, v = (call.labels(call.arg(name)) for name in ("query", "key", "value"))
    if call.arg("enable_gqa", False):
        k, v = (compact(o.repeat_interleave(q.shape[-3] // o.shape[-3], dim=-3)) for o in (k, v))
    heads = _heads(call, [q, k, v])
    if heads is None:
        return _by_width(call, q, k, v)
    made = _tie_heads(call, [q, k, v], [heads] * 3)
    if call.arg("attn_mask") is not None:
        _tie_bias(call, q, call.labels(call.arg("attn_mask")), heads)
    return call.along(made, heads)


def _by_width(call: Call, q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Channels inside the heads go: those of query and key together, those of the value with what reads them."""
    rooted = call.arg("scale") is None
    reading = call.choose("by width")
    summed = gate_product(call, q, k, (-1, -1), rooted=rooted) if reading != "freeze" else None
    if summed is None:
        for operand in (q, k):
            call.freeze(operand, PRODUCT)
    elif q.shape[-1] == v.shape[-1] and varies(v, v.ndim - 1):  # one size of the module's stands for all three
        call.tie(summed, line(call, v, -1))
    if call.arg("attn_mask") is not None:
        call.freeze(call.labels(call.arg("attn_mask")), PRODUCT)
    return _passes(call, v, -1)


@rule("matmul", "bmm", "mm")
def product(call: Call) -> Any:
    """A product with a bare parameter is a linear layer; one between activations keeps heads apart."""
    left, right = (call.arg(name) for name in _operands(call))
    if _is_matrix(right) and right.is_parameter:
        return _linear_with(call, left, right)
    b = call.labels(right)
    learned = _is_matrix(left) and left.is_parameter and b.ndim > 1 and layer_behind(call.node.args[1]) is None
    if learned and varying_axes(b) == [b.ndim - 2]:
        return _queried(call, left, b)
    a = call.labels(left)
    for matrix, tokens, axis in ((left, b, -1), (right, a, -2)):
        if _is_matrix(matrix) and tokens.ndim > 1 and varying_axes(tokens) == [tokens.ndim + axis]:
            return _mixed(call, matrix, tokens, axis)
    heads = _heads(call, [a, b])
    macs = prod(call.shape) * a.shape[-1]
    if heads is not None:
        made = _tie_heads(call, [a, b], [heads] * 2)
        _count(call, (left, right), macs, made)
        return call.along(made, heads)
    if not varying_axes(a):
        call.freeze(a, PRODUCT)
        return _passes(call, b, -1)
    if varies(a, a.ndim - 1) and varies(b, b.ndim - 2) and (scores := _scores(call, a, b, (-1, -2))) is not None:
        return scores
    call.freeze(b, PRODUCT)
    if not varying_axes(b):
        return _passes(call, a, -2)
    _count(call, (left, right), macs)
    return call.give_up(PRODUCT)


def _scores(call: Call, a: Tensor, b: Tensor, axes: tuple[int, int]) -> Any:
    """Sum over the channels inside the heads; None if that cannot be gated."""
    reading = call.choose("as it is", "by the root")
    rooted = reading == "by the root"
    gated = reading != "freeze" and gate_product(call, a, b, axes, rooted=rooted) is not None
    return call.pinned(PRODUCT) if gated else None


def _is_matrix(value: Any) -> TypeGuard[TensorRef]:
    return isinstance(value, TensorRef) and len(value.shape) == 2


def _mixed(call: Call, matrix: TensorRef, tokens: Tensor, axis: int) -> Tensor:
    """A matrix mixes tokens (``matrix @ x``), or nodes of a graph: channels pass along their axis, each by itself."""
    if matrix.is_parameter:
        call.applied_to_each(matrix, prod(call.shape) // matrix.shape[0], tokens)
    call.freeze(matrix, POSITIONS)
    return call.along(call.channels(tokens, axis), axis)


def _queried(call: Call, queries: TensorRef, x: Tensor) -> Any:
    """Learned queries read the channels of tokens (``queries @ x.mT``); how many there are stays.

    Where a layer makes the tokens, its rows are gated instead: the product may be scaled by its width.
    """
    _linear(call, x, queries, reads=1, summed=-2, made=-2)
    call.freeze(call.axis(queries, 0), POSITIONS)
    return call.pinned(POSITIONS)


@rule("baddbmm")
def biased_product(call: Call) -> Any:
    """Scores of attention and their bias: heads go together."""
    a, b = (call.labels(call.arg(name)) for name in ("batch1", "batch2"))
    heads = _heads(call, [a, b])
    if heads is None:
        return call.give_up(PRODUCT)
    made = _tie_heads(call, [a, b], [heads] * 2)
    _tie_bias(call, a, call.labels(call.arg("self")), heads)
    return call.along(made, heads)


@rule("einsum")
def einsum(call: Call) -> Any:
    """A linear layer, or a product of two operands that keeps heads apart: an axis that both have, and the result."""
    equation = str(call.arg("equation")).replace(" ", "")
    terms, _, result = equation.partition("->")
    names = terms.split(",")
    if "." in equation or not result or len(names) != 2:
        return call.give_up(PRODUCT)
    made = _linear_by_letters(call, names, result)
    if made is not None or (made := _looked_up(call, names, result)) is not None:
        return made
    operands = [call.labels(o) for o in call.arg("tensors")]
    busy = {name[axis]: o for o, name in zip(operands, names, strict=True) for axis in varying_axes(o)}
    shared = [letter for letter in result if letter in busy and all(letter in name for name in names)]
    sizes = dict(pair for name, o in zip(names, operands, strict=True) for pair in zip(name, o.shape, strict=True))
    macs = prod(sizes.values())
    if len(shared) == 1 and not call.by_width and call.choose("whole heads") != "freeze":
        made = _tie_heads(call, operands, [name.index(shared[0]) for name in names])
        _count(call, call.arg("tensors"), macs, made)
        return call.along(made, result.index(shared[0]))
    _count(call, call.arg("tensors"), macs)
    if (axes := _summed(names, result, operands)) is not None:
        scores = _scores(call, operands[0], operands[1], axes)
        return call.give_up(PRODUCT) if scores is None else scores
    if shared and not call.by_width:
        return call.give_up(PRODUCT)
    rest = {letter: o for letter, o in busy.items() if letter not in shared}
    return _passes_by_letters(call, names, result, operands, rest)


def _looked_up(call: Call, names: list[str], result: str) -> Tensor | None:
    """Sum axes of a table with those of a buffer, as of biases by position: what lies along other axes passes."""
    operands = list(zip(call.arg("tensors"), names, strict=True))
    buffers, tables = ([pair for pair in operands if _is_buffer(pair[0]) == which] for which in (True, False))
    if len(buffers) != 1:
        return None
    ((buffer, _),), ((table, name),) = buffers, tables
    labels = call.labels(table)
    summed = [axis for axis, letter in enumerate(name) if letter not in result]
    kept = [axis for axis in varying_axes(labels) if axis not in summed]
    if not kept or len(kept) == len(varying_axes(labels)):
        return None
    call.freeze(buffer, POSITIONS)
    labels = call.together(labels, *summed)
    labels = labels.permute(*summed, *(name.index(letter) for letter in result if letter in name))[(0,) * len(summed)]
    for axis in [axis for axis, letter in enumerate(result) if letter not in name]:
        labels = labels.unsqueeze(axis)
    return compact(labels.expand(call.shape))


def _summed(names: list[str], result: str, operands: list[Tensor]) -> tuple[int, int] | None:
    """Return the axes of the one sum that runs over channels of both operands."""
    found = [(names[0].index(letter), names[1].index(letter)) for letter in set(names[0]) & set(names[1]) - set(result)]
    varying = [axes for axes in found if all(map(varies, operands, axes))]
    return varying[0] if len(found) == len(varying) == 1 else None


def _passes_by_letters(
    call: Call, names: list[str], result: str, operands: list[Tensor], busy: dict[str, Tensor]
) -> Any:
    """Pass the channels of one operand on where the other holds none: pooling with weights, ``"bn,bnd->bd"``."""
    tables = [o for o, value in zip(operands, call.arg("tensors"), strict=True) if _is_buffer(value)]
    free = {letter: o for letter, o in busy.items() if not any(o is table for table in tables)}
    if len(free) != 1 or not set(free) <= set(result) or call.choose("each by itself") == "freeze":
        return call.give_up(PRODUCT)
    ((letter, labels),) = free.items()
    for other in operands:
        if other is not labels:
            call.freeze(other, PRODUCT)
    axis = next(name.index(letter) for name, o in zip(names, operands, strict=True) if o is labels)
    return call.along(line(call, labels, axis), result.index(letter))


def _is_buffer(value: Any) -> bool:
    """Say whether an operand is a buffer: links of a graph, weights of a window."""
    return isinstance(value, TensorRef) and not value.is_parameter


def _count(call: Call, operands: Any, macs: int, *heads: Tensor) -> None:
    """Count a product with a bare parameter, as linear layers are; those between activations cost no MACs."""
    if any(isinstance(operand, TensorRef) and operand.is_parameter for operand in operands):
        call.costs(macs, *heads)


def _operands(call: Call) -> tuple[str, str]:
    return ("self", "other") if call.operator == "aten::matmul" else ("self", "mat2")


@rule("addmm")
def bias_and_product(call: Call) -> Any:
    """A vector plus a product with a bare parameter: a linear layer whose weight lies the other way round."""
    bias, left, weight = (call.arg(name) for name in ("self", "mat1", "mat2"))
    plain = isinstance(weight, TensorRef) and isinstance(bias, TensorRef) and weight.is_parameter
    if not plain or bias.shape != weight.shape[1:]:
        return call.give_up(PRODUCT)
    made = _linear_with(call, left, weight)
    call.tie(call.axis(bias, 0), call.axis(*_outputs(weight)))
    return made


def _linear_with(call: Call, left: Any, matrix: TensorRef) -> Tensor:
    weight, written = _outputs(matrix)
    return _linear(call, left, weight, 1 - written)


def _outputs(matrix: TensorRef) -> tuple[TensorRef, int]:
    """Return the parameter that is a product's right factor, and its axis of outputs."""
    return (matrix.source, 0) if isinstance(matrix, Turned) else (matrix, 1)


def _linear(call: Call, left: Any, weight: TensorRef, reads: int = 0, summed: int = -1, made: int = -1) -> Tensor:
    """Read the activation's axis ``summed`` along one axis of a matrix; what the other makes lies along ``made``."""
    call.applied(weight, prod(call.shape) // weight.shape[1 - reads])
    call.tie(call.reads(weight, reads), call.channels(left, summed))
    return call.along(call.writes(weight, 1 - reads), made)


def _linear_by_letters(call: Call, names: list[str], result: str) -> Tensor | None:
    """Sum one axis of an activation with one of a bare parameter, whose other axis is new: ``"bnc,cd->bnd"``."""
    (x, weight), (name, letters) = call.arg("tensors"), names
    if isinstance(x, TensorRef):
        x, weight, name, letters = weight, x, letters, name
    summed = [letter for letter in letters if letter in name and letter not in result]
    made = [letter for letter in letters if letter in result and letter not in name]
    rest = [letter for letter in name if letter not in summed]
    if not isinstance(weight, TensorRef) or not weight.is_parameter or isinstance(x, TensorRef):
        return None
    if len(letters) != 2 or len(summed) != 1 or len(made) != 1 or rest != [at for at in result if at not in made]:
        return None
    return _linear(call, x, weight, letters.index(summed[0]), name.index(summed[0]), result.index(made[0]))


def _passes(call: Call, operand: Tensor, axis: int) -> Any:
    """With one head the right operand's columns (the left one's rows) are those of the result, each by itself."""
    if call.by_width and varies(operand, operand.ndim + axis):
        others = [at for at in varying_axes(operand) if at != operand.ndim + axis]
        operand = compact(call.together(operand, *others).expand(operand.shape))
    if varying_axes(operand) != [operand.ndim + axis] or call.choose("each by itself") == "freeze":
        return call.give_up(PRODUCT)
    return call.along(call.channels(operand, axis), axis)


def _heads(call: Call, operands: list[Tensor]) -> int | None:
    """Return the one axis, counted from the end, along which channels lie as heads: before the last two."""
    found = {axis - o.ndim for o in operands for axis in varying_axes(o)} - {-1, -2}
    if len(found) != 1 or call.by_width:
        return None
    (axis,) = found
    if any(o.ndim < -axis for o in operands) or len({o.shape[axis] for o in operands}) > 1:
        return None
    return axis if call.choose("whole heads") != "freeze" else None


def _tie_heads(call: Call, operands: list[Tensor], axes: list[int]) -> Tensor:
    """Tie everything inside each head, across operands too; return one label per head, ``[heads]``."""
    leads = []
    for labels, axis in zip(operands, axes, strict=True):
        rows = extent(labels, axis)
        lead = rows[:, :1]
        if set(varying_axes(labels)) - {axis % labels.ndim}:
            call.tie(lead.expand(rows.shape), rows)
        leads.append(lead[:, 0])
    for other in leads[1:]:
        call.tie(leads[0], other)
    return leads[0]


def _tie_bias(call: Call, scored: Tensor, bias: Tensor, heads: int) -> None:
    """Tie what is added to the scores of each head to that head; one mask for all heads belongs to none."""
    if bias.ndim >= -heads and bias.shape[heads] > 1 and not call.is_elastic(bias):
        _tie_heads(call, [scored, bias], [heads] * 2)


@rule("index")
def index(call: Call) -> Any:
    """Looking rows of a table up by indices: the rows' channels are the table's columns."""
    table, indices = call.arg("self"), call.arg("indices")
    chosen = [at for at, tensor in enumerate(indices) if tensor is not None]
    labels = call.labels(table)
    busy = [axis for axis in chosen if varies(labels, axis)]
    if busy and (len(chosen) > 1 or not isinstance(table, TensorRef)):
        return call.give_up(INDEXED)
    labels = call.together(labels, *busy)
    for axis in reversed(chosen):
        labels = labels.select(axis, 0)
    first = chosen[0] if chosen == list(range(chosen[0], chosen[0] + len(chosen))) else 0
    places = len(call.shape) - labels.ndim
    return labels.reshape(*labels.shape[:first], *[1] * places, *labels.shape[first:]).expand(call.shape)


@rule("embedding")
def embedding(call: Call) -> Any:
    """A table of rows: its columns are channels."""
    weight = call.arg("weight")
    if not isinstance(weight, TensorRef):
        return call.give_up(COMPUTED)
    return call.along(call.axis(weight, 1), -1)
