"""Data movement: the same operation, run on the label tensor, says where each channel went."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import compact, extent, thin, varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import ELASTIC, Rows, TensorRef, Turned
from hyperprune.labels.lookahead import (
    TURNED,
    image_axis,
    is_averaged,
    is_right_factor,
    is_taken_apart,
    leads_to_attention,
    leads_to_resizing,
)
from hyperprune.labels.multihead import is_packed_projection
from hyperprune.labels.reasons import CONSTANT, FOLLOWS, INDEXED, SIZE_IN_FORWARD
from hyperprune.labels.registry import rule

SAME = [
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "movedim",
    "swapaxes",
    "swapdims",
    "unsqueeze",
    "flip",
    "rot90",
    "repeat_interleave",
    "repeat",
    "tile",
    "broadcast_to",
    "adjoint",
]
TURNING = ("t", "numpy_T", "mT", "adjoint", *TURNED)


@rule(*SAME)
def moved(call: Call) -> Any:
    """Run the operation itself on the labels; a matrix that is turned on its way to a product is still that matrix."""
    return _turned(call) or compact(_run(call))


def _turned(call: Call) -> Turned | None:
    matrix = call.arg("self")
    if type(matrix) is not TensorRef or not matrix.is_parameter or len(matrix.shape) != 2:
        return None
    before, after = (node.meta["val"].stride() for node in (call.node.all_input_nodes[0], call.node))
    turned = call.operator.removeprefix("aten::") in TURNING and after == before[::-1]
    return Turned(matrix.name, matrix.shape[::-1], True) if turned and is_right_factor(call.node) else None


@rule("squeeze")
def squeezed(call: Call) -> Any:
    """As data movement; an axis with a single channel left would vanish, unless others are named."""
    x = call.labels(call.arg("self"))
    named = call.arg("dim", range(x.ndim))
    named = [axis % x.ndim for axis in ([named] if isinstance(named, int) else named)]
    for axis in varying_axes(x):
        if axis in named:
            call.paired(extent(x, axis)[:, 0])
    return compact(_run(call))


@rule("roll", "unfold", "diagonal", "tril", "triu")
def moved_by_a_distance(call: Call) -> Any:
    """As data movement, but the distance along the axes it acts on is a number in the code: channels there stay."""
    x = call.labels(call.arg("self"))
    axes = call.arg("dims") or [call.arg(name) for name in ("dim1", "dim2", "dimension") if name in call.arguments]
    if any(varies(x, axis) for axis in (axes or (range(x.ndim) if call.operator == "aten::roll" else (-2, -1)))):
        return call.give_up(SIZE_IN_FORWARD)
    return compact(_run(call)) if axes else x


def _run(call: Call) -> Any:
    """Apply the call's own operator to label tensors; it must not write in place."""
    arguments = {
        name: call.labels(value) if isinstance(value, (Tensor, TensorRef)) else value
        for name, value in call.arguments.items()
    }
    positional, keyword = [], {}
    for argument in call.node.target._schema.arguments:  # type: ignore[union-attr]
        if argument.name in arguments:
            if argument.kwarg_only:
                keyword[argument.name] = arguments[argument.name]
            else:
                positional.append(arguments[argument.name])
    return call.node.target(*positional, **keyword)  # type: ignore[operator]


@rule("expand", "expand_as")
def expand(call: Call) -> Any:
    """Expanding repeats a value along axes of length 1; a constant or an input so stretched follows what it meets."""
    x = call.labels(call.arg("self"))
    if (call.is_constant(x) or call.is_input(x)) and x.numel() < prod(call.shape):
        return torch.tensor(ELASTIC).expand(call.shape)
    wide, written = x.expand(call.shape), call.arg("size", ())
    if named := [axis for axis in varying_axes(wide) if written and written[axis] != -1]:
        call.sized(*[extent(wide, axis) for axis in named])
    return wide


@rule("cat", "concatenate", "concat")
def cat(call: Call) -> Any:
    """Concatenation along channels puts labels side by side; along other axes it ties them.

    Of tables alone, nobody knows yet where their channels lie; beside others along whose channels they are laid, it is
    along the same axis.
    """
    tensors = [call.labels(t) for t in call.arg("tensors") if prod(t.shape)]
    axis = call.arg("dim", 0) % tensors[0].ndim
    others = [at for at in range(tensors[0].ndim) if at != axis]
    if all(call.is_table(t) for t in tensors):
        return compact(torch.cat(tensors, dim=axis))
    if {at for t in tensors if not call.is_table(t) for at in varying_axes(t)} == {axis}:
        tensors = [call.settled(t, axis) if call.is_table(t) else t for t in tensors]
    if any(varies(t, at) for t in tensors for at in others):
        ends = [call.together(t, axis, reason=SIZE_IN_FORWARD) for t in tensors if not call.is_elastic(t)]
        for other in ends[1:]:
            call.tie(ends[0], other)
        return compact(ends[0].expand(call.shape))
    firm = [call.pinned(CONSTANT, tuple(t.shape)) if call.is_elastic(t) else t for t in tensors]
    slim = [_thin_except(t, axis) for t in firm]
    return compact(torch.cat(_level(slim, axis), dim=axis)).expand(call.shape)


def _level(tensors: list[Tensor], axis: int) -> list[Tensor]:
    """Broadcast all axes but one to the longest among the tensors."""
    shape = [max(t.shape[at] for t in tensors) for at in range(tensors[0].ndim)]
    return [t.expand([t.shape[axis] if at == axis else size for at, size in enumerate(shape)]) for t in tensors]


def _thin_except(labels: Tensor, axis: int) -> Tensor:
    for at in range(labels.ndim):
        if at != axis and not varies(labels, at):
            labels = labels.narrow(at, 0, 1)
    return labels


@rule("stack")
def stack(call: Call) -> Any:
    """Stacking lays tensors along a new axis; their channels share one axis, so they are tied."""
    tensors = [call.labels(t) for t in call.arg("tensors")]
    tensors = [t for t in tensors if not call.is_elastic(t)] or tensors
    for other in tensors[1:]:
        call.tie(tensors[0], other)
    return tensors[0].unsqueeze(call.arg("dim", 0)).expand(call.shape)


@rule("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as")
def view(call: Call) -> Any:
    """Splitting one channel axis into several leaves a rectangle only if all rows lose the same.

    Either every outer row loses the same inner index (a channel shuffle), or whole rows go (attention heads, a
    pixel shuffle written by hand): the first reading that exports exactly is taken.
    """
    x = call.labels(call.arg("self"))
    moved = compact(x.reshape(call.shape))
    before, after = len(varying_axes(x)), varying_axes(moved)
    if before > 1 and call.is_table(x) and leads_to_resizing(call.node):
        return _as_image(call, x, moved)
    if len(after) > max(before, 1):
        moved = _tied_rows(call, moved, after, split_before=before > 1)
    elif len(after) == 1:
        _merge(call, moved, after[0])
    if after:
        call.sized(*[extent(moved, axis) for axis in after])
    return moved


def _as_image(call: Call, table: Tensor, moved: Tensor) -> Tensor:
    """Lay the tokens of a table in rows and columns; its channels lie along the axis that stays as it was."""
    kept = [moved.ndim - 1] if moved.shape[-1] == table.shape[-1] else [1] if moved.shape[1] == table.shape[1] else []
    call.sized(*[extent(moved, axis) for axis in kept])
    return moved


def _tied_rows(call: Call, moved: Tensor, axes: list[int], split_before: bool) -> Tensor:
    readings, wide = _readings_of_rows(call, axes, split_before)
    reading = call.choose(*readings)
    if reading == "freeze":
        call.freeze(moved, SIZE_IN_FORWARD)
        return moved
    tied = call.together(moved, *(axis for axis in axes if axis != int(reading.split()[0])))
    if reading.endswith("follows"):
        _follow_input(call, moved[tuple(slice(None) if at in wide else 0 for at in range(moved.ndim))])
    return moved if leads_to_attention(call.node) else tied.expand(moved.shape)  # its products name each channel


def _readings_of_rows(call: Call, axes: list[int], split_before: bool) -> tuple[list[str], list[int]]:
    """Return along which axis rows may stay apart, the likeliest first, and the axes whose size may be the input's."""
    inner, heads, outer = axes[-1], axes[-2], axes[0]
    attends = leads_to_attention(call.node)
    if split_before:  # heads, whose channels are paired now (a rotary embedding)
        return _not_taken_apart(call, (inner, heads, outer) if call.by_width else (outer, heads, inner)), []
    if is_packed_projection(call) or (call.by_width and attends):
        return [f"{inner}"], []
    if attends and is_taken_apart(call.node, heads):  # query, key and value: what lies inside is cut into heads later
        return [f"{inner}", f"{inner} follows"], axes[-1:]
    if attends and inner - heads > 1:  # a single head between
        return [f"{inner}", f"{inner} follows", f"{heads}"], axes[-1:]
    if attends:
        return [f"{heads}", f"{heads} follows", f"{inner}"], axes[-2:]
    likely = (outer, inner, heads) if is_averaged(call.node, inner) else (inner, outer, heads)
    return [f"{axis}" for axis in image_axis(call.node)] or _not_taken_apart(call, likely), []


def _not_taken_apart(call: Call, axes: tuple[int, ...]) -> list[str]:
    """Return readings that keep apart what lies along one axis, but for axes whose positions are used one by one."""
    return [f"{axis}" for axis in dict.fromkeys(axes) if not is_taken_apart(call.node, axis)]


def _merge(call: Call, moved: Tensor, axis: int) -> None:
    """Let a size follow; if it cannot, let what the module gives one size to lose the same (query, key and value)."""
    reading = call.choose("as it is", "follows", "as it is")  # the last for a call that others of its class drew along
    if reading == "freeze":
        call.freeze(moved, SIZE_IN_FORWARD)
    if reading == "follows":
        channels = call.channels(moved, axis)
        _follow_input(call, channels)
        call.tie_alike(channels)


def _follow_input(call: Call, channels: Tensor) -> None:
    """Let a size that was read off the module's input (``B, N, C = x.shape``) hold: what has it goes together."""
    for source in call.arriving():
        for at in varying_axes(source):
            if source.shape[at] == channels.numel():
                call.tie(channels, call.channels(source, at), FOLLOWS)


@rule("meshgrid")
def meshgrid(call: Call) -> Any:
    """Coordinates: each vector is laid along an axis of its own."""
    tensors = [call.labels(t) for t in call.arg("tensors")]
    return [compact(grid) for grid in torch.meshgrid(*tensors, indexing=call.arg("indexing", "ij"))]


@rule("flatten")
def flatten(call: Call) -> Any:
    """Merging axes repeats each label for every merged position."""
    return compact(call.labels(call.arg("self")).reshape(call.shape))


@rule("slice")
def sliced(call: Call) -> Any:
    """Taking a part of the channels holds a bound that must follow them."""
    weight = call.rows(call.arg("self"), call.arg("dim", 0)) if call.arg("step", 1) == 1 else None
    if weight is not None:
        return _rows(call, weight)
    x = call.labels(call.arg("self"))
    axis, part = call.arg("dim", 0) % x.ndim, compact(_run(call))
    if varies(x, axis) and part.numel():  # what is past the end (channels that no rotary embedding turns) stays empty
        _set_bound(call, extent(x, axis), extent(part, axis))
    return part


def _rows(call: Call, weight: TensorRef) -> Rows:
    """Rows taken out of a weight on their way to a layer are still that weight's."""
    start = min(call.arg("start", 0) % max(weight.shape[0], 1), weight.shape[0])
    rows = Rows.taken(weight, start, call.shape[0])
    _set_bound(call, call.axis(weight, 0)[:, None], call.axis(rows, 0)[:, None])
    return rows


def _set_bound(call: Call, whole: Tensor, part: Tensor) -> None:
    """Let a bound follow; if it cannot, let what the module gives one size to lose the same (a gate and a stream)."""
    reading = call.choose("a bound that can be set", "as others")
    if reading == "freeze":
        call.freeze(whole, SIZE_IN_FORWARD)
    if reading == "as others":
        call.tie_alike(part[:, 0])
    call.sized(whole, part)


@rule("narrow", "index_select")
def picked(call: Call) -> Any:
    """Picking positions by numbers in the code: along channels, these stay."""
    x = call.labels(call.arg("self"))
    axis = call.arg("dim", 0) % x.ndim
    if varies(x, axis):
        return call.give_up(SIZE_IN_FORWARD)
    return x.narrow(axis, 0, 1).expand(call.shape)


@rule("slice_scatter")
def written(call: Call) -> Any:
    """A part of a tensor is replaced (``out[:, :, 1:] = y``).

    Along channels (``x[:, :dim] = conv(x[:, :dim])``, a partial convolution) what replaces some goes with them. Zeros
    that are filled along another axis have been made in the shape of what fills them.
    """
    whole, part = call.labels(call.arg("self")), call.labels(call.arg("src"))
    axis = call.arg("dim", 0) % whole.ndim
    if varies(whole, axis) and part.ndim == whole.ndim and call.arg("step", 1) == 1:
        return _replaced(call, whole, part, axis)
    across = axis - whole.ndim + part.ndim
    if varies(whole, axis) or (varies(part, across) and part.shape[across] < whole.shape[axis]):
        return call.give_up(SIZE_IN_FORWARD)
    return _filled(call, whole, part)


def _replaced(call: Call, whole: Tensor, part: Tensor, axis: int) -> Tensor:
    start, end, _ = slice(call.arg("start"), call.arg("end")).indices(whole.shape[axis])
    taken = whole.narrow(axis, start, max(end - start, 0))
    if taken.numel():
        call.tie(taken, part.expand(taken.shape))
        _set_bound(call, extent(whole, axis), extent(taken, axis))
    return whole


@rule("index_add", "index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce")
def sent(call: Call) -> Any:
    """Numbers go to computed places along one axis (messages to nodes of a graph), for each channel by itself."""
    whole, part = call.labels(call.arg("self")), call.arg("source", call.arg("src"))
    axis = call.arg("dim", 0) % max(whole.ndim, 1)
    if not isinstance(part, (Tensor, TensorRef)):
        return call.give_up(INDEXED)
    laid = [call.labels(part), call.labels(call.arg("index"))]
    if call.operator.startswith("aten::index"):  # one place for each position
        laid.pop()
    free = {at for labels in (whole, *laid) for at in varying_axes(labels)}
    if axis in free or any(labels.shape[at] != call.shape[at] for labels in laid for at in free):
        return call.give_up(INDEXED)
    made = _filled(call, whole, laid[0])
    for places in laid[1:]:
        if varying_axes(places):
            call.tie(made, thin(places).expand(call.shape))
    return made


def _filled(call: Call, whole: Tensor, part: Tensor) -> Tensor:
    """Tie a tensor to what is written into it; return the labels of both."""
    if call.is_elastic(part):
        return whole
    laid = thin(part).expand(call.shape)
    if call.is_constant(whole) and call.choose("in its shape") != "freeze":
        call.sized(*[extent(laid, at) for at in varying_axes(laid)])
    elif not call.is_elastic(whole):
        call.tie(whole, laid)
    return laid


@rule("gather")
def gathered(call: Call) -> Any:
    """Picking positions by numbers that are computed, for each channel by itself: other axes keep their sizes."""
    x, places = call.labels(call.arg("self")), call.labels(call.arg("index"))
    axis = call.arg("dim", 0) % x.ndim
    if varies(x, axis) or any(call.shape[at] != x.shape[at] for at in varying_axes(x)):
        return call.give_up(SIZE_IN_FORWARD)
    made = thin(x).expand(call.shape)
    if varying_axes(places):
        call.tie(made, places)
    return made


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Any:
    """The r x r channels that make up one output channel go together (DHP repeats the latent r^2 times)."""
    x = call.channels(call.arg("self"), -3)
    square = call.arg("upscale_factor") ** 2
    rows = x.reshape(-1, square)
    call.tie(rows[:, :1].expand(rows.shape), rows)
    return call.along(rows[:, 0], -3)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Any:
    """Each channel becomes r x r channels."""
    x = call.channels(call.arg("self"), -3)
    return call.along(x.repeat_interleave(call.arg("downscale_factor") ** 2), -3)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Any:
    """Groups interleave: every group must lose the same inner index."""
    x = call.channels(call.arg("self", call.arg("input")), 1)
    rows = x.reshape(call.arg("groups"), -1)
    call.tie(rows[:1].expand(rows.shape), rows)
    return call.along(rows.t().reshape(-1), 1)
