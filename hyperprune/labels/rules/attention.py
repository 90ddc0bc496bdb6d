"""Products between activations: attention, fused and written out. Whole heads are what can go."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from hyperprune.labels.arrays import varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import TensorRef
from hyperprune.labels.reasons import PRODUCT
from hyperprune.labels.registry import rule

HEADS = -3


@rule("scaled_dot_product_attention")
def fused_attention(call: Call) -> Any:
    """Query, key and value of one head go together, with that head's bias in the mask."""
    q, k, v = (call.labels(call.arg(name)) for name in ("query", "key", "value"))
    if not _go_by_heads(call, [q, k, v]):
        return call.give_up(PRODUCT)
    heads = _tie_heads(call, [q, k, v])
    mask = call.arg("attn_mask")
    if mask is not None:
        bias = call.labels(mask)
        if bias.ndim >= 3 and bias.shape[HEADS] > 1 and not call.is_elastic(bias):
            _tie_heads(call, [q, bias])
    return call.along(heads, HEADS)


@rule("matmul", "bmm")
def product(call: Call) -> Any:
    """A product with a bare parameter is a linear layer; one between activations keeps heads apart."""
    left, right = (call.arg(name) for name in _operands(call))
    if isinstance(right, TensorRef) and len(right.shape) == 2 and right.is_parameter:
        return _linear(call, left, right)
    a, b = call.labels(left), call.labels(right)
    if not _go_by_heads(call, [a, b]):
        return call.give_up(PRODUCT)
    return call.along(_tie_heads(call, [a, b]), HEADS)


def _operands(call: Call) -> tuple[str, str]:
    return ("self", "mat2") if call.operator == "aten::bmm" else ("self", "other")


def _linear(call: Call, left: Any, weight: TensorRef) -> Tensor:
    call.applied(weight, prod(call.shape) // weight.shape[1])
    call.tie(call.reads(weight, 0), call.channels(left, -1))
    return call.along(call.writes(weight, 1), -1)


def _go_by_heads(call: Call, operands: list[Tensor]) -> bool:
    """Say whether the operands have the same heads, and channels lie along them in one at least."""
    if any(o.ndim < 3 for o in operands) or len({o.shape[HEADS] for o in operands}) > 1:
        return False
    if not any(varies(o, o.ndim + HEADS) for o in operands):
        return False
    return call.choose("whole heads") != "freeze"


def _tie_heads(call: Call, operands: list[Tensor]) -> Tensor:
    """Tie everything inside each head, across operands too; return one label per head, ``[heads]``."""
    leads = []
    for labels in operands:
        lead = labels.movedim(HEADS, 0).reshape(labels.shape[HEADS], -1)[:, :1]
        if set(varying_axes(labels)) - {labels.ndim + HEADS}:
            rows = labels.movedim(HEADS, 0).reshape(labels.shape[HEADS], -1)
            call.tie(lead.expand(rows.shape), rows)
        leads.append(lead[:, 0])
    for other in leads[1:]:
        call.tie(leads[0], other)
    return leads[0]


@rule("index")
def index(call: Call) -> Any:
    """Looking rows of a table up by constant indices: the rows' channels are the table's columns."""
    table, indices = call.arg("self"), call.arg("indices")
    chosen = [at for at, tensor in enumerate(indices) if tensor is not None]
    labels = call.labels(table)
    if len(chosen) != 1:
        return call.give_up(PRODUCT) if varying_axes(labels) else labels.reshape(-1)[:1].expand(call.shape)
    axis = chosen[0]
    if varies(labels, axis):
        if not isinstance(table, TensorRef):
            return call.give_up(PRODUCT)
        call.tie(labels.narrow(axis, 0, 1).expand(labels.shape), labels)
    row = labels.select(axis, 0)
    places = len(call.shape) - row.ndim
    return row.reshape(*row.shape[:axis], *[1] * places, *row.shape[axis:]).expand(call.shape)


@rule("embedding")
def embedding(call: Call) -> Any:
    """A table of rows: its columns are channels."""
    weight = call.arg("weight")
    if not isinstance(weight, TensorRef):
        return call.give_up(PRODUCT)
    return call.along(call.axis(weight, 1), -1)
