"""Chunk, split and unbind: one tensor becomes several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import compact, extent, varies
from hyperprune.labels.call import Call
from hyperprune.labels.reasons import SIZE_IN_FORWARD
from hyperprune.labels.registry import rule


def _parts(call: Call) -> tuple[Tensor, int, list[Tensor]]:
    x = call.labels(call.arg("self"))
    axis = call.arg("dim", 0) % x.ndim
    sizes = [v.shape[axis] for v in call.node.meta["val"]]
    return x, axis, [compact(part) for part in torch.split(x, sizes, dim=axis)]


@rule("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split")
def equal_parts(call: Call) -> Any:
    """Equal parts must stay equal: they lose the same positions."""
    x, axis, parts = _parts(call)
    if not varies(x, axis):
        return parts
    if len({part.shape for part in parts}) > 1 or call.choose("equal parts") == "freeze":
        call.freeze(x, SIZE_IN_FORWARD)
        return parts
    for part in parts[1:]:
        call.tie(parts[0].expand(part.shape), part)
    call.sized(extent(x, axis), extent(parts[0], axis))
    return parts


@rule("glu")
def gated_halves(call: Call) -> Any:
    """One half gates the other: both lose the same positions. No number in the code follows them."""
    x = call.labels(call.arg("self"))
    left, right = (compact(part) for part in torch.chunk(x, 2, dim=call.arg("dim", -1)))
    call.tie(left, right)
    return left


@rule("split_with_sizes", "unsafe_split_with_sizes")
def given_parts(call: Call) -> Any:
    """Sizes written into the call follow their parts, where the module holds them in an attribute."""
    x, axis, parts = _parts(call)
    if not varies(x, axis):
        return parts
    if call.choose("sizes that can be set") == "freeze":
        call.freeze(x, SIZE_IN_FORWARD)
        return parts
    sizes = tuple(part.shape[axis] for part in parts)
    call.sized(extent(x, axis), *[extent(part, axis) for part in parts], parts=sizes)
    return parts


@rule("unbind")
def unbind(call: Call) -> Any:
    """Taking an axis apart fixes its length: what lies at its positions goes together (query, key and value)."""
    x = call.labels(call.arg("self"))
    axis = call.arg("dim", 0) % x.ndim
    call.together(x, axis)
    return [compact(part) for part in torch.unbind(x, dim=axis)]


@rule("select")
def select(call: Call) -> Any:
    """Taking one position of an axis: as unbinding all of them."""
    x = call.labels(call.arg("self"))
    axis = call.arg("dim", 0) % x.ndim
    call.together(x, axis)
    return compact(x.select(axis, call.arg("index")))
