"""Reductions: harmless over space, a reading of all channels together over channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import compact, named_axes, varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import ELASTIC, NormCall, TensorRef
from hyperprune.labels.reasons import REDUCED
from hyperprune.labels.registry import rule
from hyperprune.labels.rules.elementwise import between
from hyperprune.labels.written_out import WrittenNorm, written_norm

REDUCING = [
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "prod",
    "var",
    "std",
    "logsumexp",
    "norm",
    "linalg_vector_norm",
    "any",
    "all",
    "argmax",
    "argmin",
    "var_mean",
    "std_mean",
]
LENGTHS = ("aten::linalg_vector_norm", "aten::sum")  # of a unit norm they are stretched to the shape that they divide
NORMS = ("aten::mean", "aten::var", "aten::std", *LENGTHS)  # that a layer may write out
KEEPING = ["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "topk"]


@rule(*REDUCING)
def reduce(call: Call) -> Any:
    """Over axes on which labels agree the labels of any one position remain.

    Channels that are reduced go together: that is of use where only some of them are, as inside attention heads.
    """
    if "other" in call.arguments:  # max(a, b) and min(a, b) reduce nothing
        return between(call)
    x = call.labels(call.arg("self", call.arg("input")))
    axes = named_axes(call.arg("dim"), x.ndim)
    if any(varies(x, axis) for axis in axes):
        if len(varying_axes(x)) == 1 and _is_counted(call, x, axes):
            return torch.tensor(ELASTIC).expand(call.shape) if call.operator in LENGTHS else call.pinned(REDUCED)
        if not set(varying_axes(x)) - set(axes):
            return call.give_up(REDUCED)
        x = call.together(x, *axes, reason=REDUCED)
    index = [0 if axis in axes else slice(None) for axis in range(x.ndim)]
    left = compact(x[tuple(index)])
    value = call.node.meta["val"]
    if isinstance(value, (tuple, list)):
        return [_as_shape(left, tuple(v.shape), axes) for v in value]
    return _as_shape(left, tuple(value.shape), axes)


@rule("cosine_similarity", "pairwise_distance", "cdist")
def compared(call: Call) -> Any:
    """How far vectors lie apart: their channels are read together."""
    return call.give_up(REDUCED)


@rule(*KEEPING)
def along_axis(call: Call) -> Any:
    """Softmax and its kin mix what lies along one axis: it goes together."""
    x = call.labels(call.arg("self"))
    axis = call.arg("dim", -1) % x.ndim
    if varies(x, axis):
        if varying_axes(x) == [axis]:
            return call.give_up(REDUCED)
        x = compact(call.together(x, axis, reason=REDUCED).expand(x.shape))
    value = call.node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return x
    return [x.narrow(axis, 0, 1).expand(v.shape) for v in value]


def _is_counted(call: Call, x: Tensor, axes: list[int]) -> bool:
    """Note a norm that a layer writes out, of which this is a part, as one over the living; say whether it is one.

    They may run over all axes behind the channels too, as a group norm's of one group (Conv-TasNet's global norm).
    """
    (axis,) = varying_axes(x)
    norm = written_norm(call.node) if call.operator in NORMS else None
    weight = None if norm is None else call.value(norm.weight)
    firm = isinstance(weight, TensorRef) and not weight.is_parameter  # nothing divides it while searching
    if norm is not None and norm.kind == "unit" and not firm:
        norm = _of_length(call, norm)
    spatial = axes != [axis]
    if norm is None or (spatial and (sorted(axes) != list(range(axis, x.ndim)) or not norm.may_be_spatial)):
        return False
    if norm.weight is not None and (not call.owns(weight) or (firm and norm.kind != "unit")):
        return False
    name, channels = call.name_of_norm(weight), call.channels(x, axis)
    given, rank = _as_given(call, channels, (axis, x.ndim))
    from_end = min(call.arg("dim")) < 0 if spatial else given == rank - 1
    at = given - rank if from_end else given  # inputs may differ in rank
    node = call.node.name if call.operator in LENGTHS and not firm else ""
    call.living_norm(NormCall(name, channels, at, 1, norm.kind, spatial, norm.offset, norm.correction, node))
    if norm.correction:
        call.paired(channels)
    return True


def _as_given(call: Call, channels: Tensor, here: tuple[int, int]) -> tuple[int, int]:
    """Return where channels lie in what the layer is given, which it may turn first, and the rank of that."""
    places = [(axes[0], x) for x in call.arriving() if len(axes := varying_axes(x)) == 1]
    found = [(axis, x.ndim) for axis, x in places if call.channels(x, axis).equal(channels)]
    return here if here in found or not found else found[0]


def _of_length(call: Call, norm: WrittenNorm) -> WrittenNorm | None:
    """Tell a norm whose factor is a stored number from one that takes it from the width."""
    reading = call.choose("times a number", "times the root of the width")
    if reading == "freeze":
        return None
    return norm if reading == "times a number" else replace(norm, kind="rms")


def _as_shape(left: Tensor, shape: tuple[int, ...], axes: list[int]) -> Tensor:
    """Put the reduced axes back with length 1 where the operation kept them."""
    if left.ndim == len(shape):
        return left
    for axis in sorted(axes):
        left = left.unsqueeze(axis)
    return left
