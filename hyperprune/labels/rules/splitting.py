"""Chunk, split and unbind: one tensor becomes several."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import compact, extent, varies
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import Rows
from hyperprune.labels.lookahead import has_twins, shares_sizes
from hyperprune.labels.reasons import SIZE_IN_FORWARD
from hyperprune.labels.registry import rule


def _parts(call: Call) -> tuple[Tensor, int, list[Tensor], list[Any]]:
    """Return the labels, the axis, the labels of each part, and what the call makes: rows of a weight are no labels."""
    value, axis = call.arg("self"), call.arg("dim", 0)
    weight = call.rows(value, axis)
    x = call.labels(value) if weight is None else call.axis(weight, 0)
    axis %= x.ndim
    sizes = [v.shape[axis] for v in call.node.meta["val"]]
    parts = [compact(part) for part in torch.split(x, sizes, dim=axis)]
    if weight is None:
        return x, axis, parts, parts
    starts = [0, *accumulate(sizes)]
    return x, axis, parts, [Rows.taken(weight, start, size) for start, size in zip(starts, sizes, strict=False)]


@rule("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split")
def equal_parts(call: Call) -> Any:
    """Equal parts must stay equal: they lose the same positions."""
    x, axis, parts, made = _parts(call)
    if not varies(x, axis):
        return made
    if len({part.shape for part in parts}) > 1 or call.choose("equal parts") == "freeze":
        call.freeze(x, SIZE_IN_FORWARD)
        return made
    for part in parts[1:]:
        call.tie(parts[0].expand(part.shape), part)
    call.sized(extent(x, axis), extent(parts[0], axis))
    return made


@rule("glu")
def gated_halves(call: Call) -> Any:
    """One half gates the other: both lose the same positions. No number in the code follows them."""
    x = call.labels(call.arg("self"))
    left, right = (compact(part) for part in torch.chunk(x, 2, dim=call.arg("dim", -1)))
    call.tie(left, right)
    return left


@rule("split_with_sizes", "unsafe_split_with_sizes")
def given_parts(call: Call) -> Any:
    """Sizes written into the call follow their parts, where the module holds them in an attribute.

    One attribute cannot follow two parts: if that is what fails, parts of one size lose the same positions; or else
    whatever the module cuts alike (distillation blocks, which split what each of their layers makes), or whatever
    it gives one size to (attention to a part of the channels, whose values are as many as that part).
    """
    x, axis, parts, made = _parts(call)
    if not varies(x, axis):
        return made
    sizes = tuple(part.shape[axis] for part in parts)
    first = dict(zip(reversed(sizes), reversed(parts), strict=True))
    options = ["equal parts alike"] * (len(first) < len(parts)) + _in_the_module(call)
    reading = call.choose("sizes that can be set", *options)
    if reading == "freeze":
        call.freeze(x, SIZE_IN_FORWARD)
        return made
    if reading == "equal parts alike":
        for size, part in zip(sizes, parts, strict=True):
            call.tie(first[size], part)
    if reading == "as others":
        for other in call.cut_alike(sizes)[:1]:
            call.tie(other, extent(x, axis)[:, 0])
    if reading == "sizes alike":
        for part in parts:
            call.tie_alike(extent(part, axis)[:, 0])
    call.sized(extent(x, axis), *[extent(part, axis) for part in parts], parts=sizes)
    return made


def _in_the_module(call: Call) -> list[str]:
    """Return how a call may be read with others of its module that are given the same sizes, or some of them."""
    return ["as others"] if has_twins(call.node) else ["sizes alike"] if shares_sizes(call.node) else []


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
