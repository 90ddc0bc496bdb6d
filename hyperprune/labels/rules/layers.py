"""Layers with weights: convolution, transposed convolution, linear, and norms that keep channels apart."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import extent, varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import NormCall, NormKind, Standardised, TensorRef
from hyperprune.labels.lookahead import (
    AS_IT_IS,
    INNER_CHANNELS,
    WHOLE_GROUPS,
    is_all_of_its_layer,
    is_read_by_columns,
    splits_channels,
)
from hyperprune.labels.reasons import COMPUTED, MIXED_NORM, POSITIONS, SLID_OVER
from hyperprune.labels.registry import rule
from hyperprune.labels.standardised import reads_what_enters
from hyperprune.trace import owner_class


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Any:
    """Channels along weight axis 1 are read, along axis 0 made; a group goes as a whole."""
    weight = call.arg("weight")
    if not isinstance(weight, TensorRef):
        return _with_computed(call, weight)
    if (mixed := _mixed_positions(call, weight)) is not None:
        return mixed
    if isinstance(weight, Standardised) and call.arg("groups", 1) == 1:
        _living_rows(call, weight)
    return _convolve(call, weight, reads=1, writes=0, positions=prod(call.shape) // weight.shape[0])


def _mixed_positions(call: Call, weight: TensorRef) -> Tensor | None:
    """Return what a pointwise convolution makes of tokens that lie where it reads channels (token mixing)."""
    x, axis = call.labels(call.arg("input")), _axis(call, weight)
    pointwise = set(weight.shape[2:]) == {1} and x.shape[axis + 1 :] == call.shape[axis + 1 :]
    if not pointwise or call.arg("groups", 1) > 1 or not varying_axes(x) or varies(x, axis):
        return None
    call.applied_to_each(weight, prod(call.shape) // weight.shape[0], x)
    return _across_positions(call, x, weight, axis)


def _with_computed(call: Call, weight: Tensor) -> Any:
    """A weight that ``forward`` computes stays, and so does what it reads, unless it filters each channel by itself.

    One filter may serve all channels (a blur), or each has its own, which goes with it (a scale times a mask).
    """
    macs, axis = prod(call.shape) * prod(weight.shape[1:]), _axis(call, weight)
    x = call.labels(call.arg("input"))
    if not call.arg("groups", 1) == x.shape[axis] == len(weight) or call.choose("each channel by itself") == "freeze":
        call.costs(macs)
        return call.give_up(COMPUTED)
    channels = call.channels(x, axis)
    if varies(weight, 0):
        call.tie(call.channels(weight, 0), channels)
    else:
        call.freeze(weight, COMPUTED)
    _follow(call, call.arg("bias"), channels)
    call.sized(channels)
    call.costs(macs, channels)
    return call.along(channels, axis)


def _living_rows(call: Call, weight: Standardised) -> None:
    """Rows are standardised over the living inputs, where the weight's own layer does nothing else with its input."""
    if call.owns(weight) and reads_what_enters(call.node):
        call.living_rows(weight)
    else:
        call.freeze(call.axis(weight, 1), COMPUTED)


@rule("_weight_norm")
def weight_norm(call: Call) -> Any:
    """What weight norm makes of a weight is still that weight: columns of zeros add nothing to the length of a row.

    Rows of zeros have none, so it must be the columns that are gated.
    """
    weight, lengths = call.arg("v"), call.arg("g")
    whole = isinstance(weight, TensorRef) and weight.is_parameter and isinstance(lengths, TensorRef)
    if not whole or call.arg("dim", 0) or not is_read_by_columns(call.node) or call.choose(AS_IT_IS) == "freeze":
        return call.give_up(COMPUTED)
    call.tie(call.axis(lengths, 0), call.axis(weight, 0))
    call.normed(weight)
    return weight


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Any:
    """As convolution, with the weight's first two axes exchanged."""
    weight = call.arg("weight")
    x = call.labels(call.arg("input"))
    if not isinstance(weight, TensorRef) or isinstance(weight, Standardised):
        call.costs(x.numel() * prod(weight.shape[1:]))
        return call.give_up(COMPUTED)
    return _convolve(call, weight, reads=0, writes=1, positions=x.numel() // weight.shape[0])


def _axis(call: Call, weight: Tensor | TensorRef) -> int:
    """Return where a convolution's channels lie: before as many axes as its weight has behind its own."""
    return len(call.shape) - (len(weight.shape) - 2) - 1


def _convolve(call: Call, weight: TensorRef, reads: int, writes: int, positions: int) -> Tensor:
    axis = _axis(call, weight)
    x, groups = call.channels(call.arg("input"), axis, SLID_OVER), call.arg("groups", 1)
    call.applied(weight, positions)
    if groups == 1:
        call.tie(call.reads(weight, reads), x)
        made = call.writes(weight, writes)
    elif reads == 1 and weight.shape[1] > 1 and not isinstance(weight, Standardised) and _loses_inner_channels(call):
        made = _thinner_groups(call, weight, x, groups)
    else:
        made = _whole_groups(call, weight, x, groups)
    _follow(call, call.arg("bias"), made)
    return call.along(made, axis)


def _loses_inner_channels(call: Call) -> bool:
    """What is laid out in rows afterwards (a channel shuffle) has all groups lose the same channels in any case."""
    readings = [WHOLE_GROUPS, INNER_CHANNELS]
    return call.choose(*(readings[::-1] if splits_channels(call.node) else readings)) == INNER_CHANNELS


def _whole_groups(call: Call, weight: TensorRef, x: Tensor, groups: int) -> Tensor:
    """Tie all that enters and leaves one group; inside a group nothing can be sliced."""
    first = call.writes(weight, 0)
    per_group = call.shape[-(len(weight.shape) - 1)] // groups
    made = (
        first if len(first) == groups * per_group else first.reshape(groups, -1)[:, :1].repeat(1, per_group).reshape(-1)
    )
    lead = x.reshape(groups, -1)[:, :1]
    call.tie(lead.expand(groups, len(x) // groups), x.reshape(groups, -1))
    call.tie(lead.expand(groups, len(first) // groups), first.reshape(groups, -1))
    call.sized(lead.reshape(-1))
    return made


def _thinner_groups(call: Call, weight: TensorRef, x: Tensor, groups: int) -> Tensor:
    """All groups lose the same inner channels."""
    arrived, made = x.reshape(groups, -1), call.writes(weight, 0)
    call.tie(call.reads(weight, 1).expand(arrived.shape), arrived)
    rows = made.reshape(groups, -1)
    call.tie(rows[:1].expand(rows.shape), rows)
    return made


def _follow(call: Call, vector: Any, channels: Tensor) -> None:
    """Slice a per-channel vector (bias, batch norm's statistics) along with its channels."""
    if isinstance(vector, TensorRef):
        call.tie(call.axis(vector, 0), channels)
    elif isinstance(vector, Tensor):
        call.tie(call.channels(vector, 0), channels)


@rule("linear")
def linear(call: Call) -> Any:
    """Features along weight axis 1 are read, along axis 0 made."""
    weight = call.arg("weight")
    if not isinstance(weight, TensorRef):
        call.costs(prod(call.shape) * weight.shape[-1])
        return call.give_up(COMPUTED)
    if isinstance(weight, Standardised):
        call.freeze(call.axis(weight, 1), COMPUTED)
    x, positions = call.labels(call.arg("input")), prod(call.shape) // weight.shape[0]
    if x.ndim > 1 and varying_axes(x) and not varies(x, x.ndim - 1):
        call.applied_to_each(weight, positions, x)
        return _across_positions(call, x, weight, x.ndim - 1)
    call.applied(weight, positions)
    call.tie(call.reads(weight, 1), call.channels(x, -1))
    made = call.writes(weight, 0)
    _follow(call, call.arg("bias"), made)
    return call.along(made, -1)


def _across_positions(call: Call, x: Tensor, weight: TensorRef, axis: int) -> Tensor:
    """A layer that mixes the positions along an axis within each channel: these stay, channels pass through."""
    for own in (0, 1):
        call.freeze(call.axis(weight, own), POSITIONS)
    if isinstance(call.arg("bias"), TensorRef):
        call.freeze(call.axis(call.arg("bias"), 0), POSITIONS)
    return x.narrow(axis, 0, 1).expand(call.shape)


@rule("batch_norm", "instance_norm")
def per_channel_norm(call: Call) -> Any:
    """Each channel is normalised by itself; the vectors are sliced along. Of a weight, each row."""
    if isinstance(rows := call.arg("input"), Standardised):
        for name in ("weight", "bias"):
            _follow(call, call.arg(name), call.axis(rows, 0))
        return rows
    x = call.labels(call.arg("input"))
    channels = call.channels(x, 1)
    vectors = [call.arg(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for vector in vectors:
        _follow(call, vector, channels)
    if not any(isinstance(vector, TensorRef) for vector in vectors) and "Norm" in owner_class(call.node):
        call.sized(channels)
    return call.along(channels, 1)


@rule("prelu")
def prelu(call: Call) -> Any:
    """A slope per channel is sliced along; one slope for all belongs to no channel."""
    x, weight = call.labels(call.arg("self")), call.arg("weight")
    if isinstance(weight, TensorRef) and weight.shape[0] == 1:
        return x
    channels = call.channels(x, 1)
    _follow(call, weight, channels)
    return call.along(channels, 1)


@rule("layer_norm")
def layer_norm(call: Call) -> Any:
    """A norm over the last axes: its statistics run over the living channels, where it is a layer of its own."""
    return _norm_over_last_axes(call)


@rule("rms_norm")
def rms_norm(call: Call) -> Any:
    """As a layer norm, without a mean."""
    return _norm_over_last_axes(call, "rms")


def _norm_over_last_axes(call: Call, kind: NormKind = "layer") -> Any:
    """Of several axes, channels lie along the first one, in front of space (the context blocks of GCNet)."""
    x = call.labels(call.arg("input"))
    first = x.ndim - len(call.arg("normalized_shape"))
    if first < x.ndim - 1:
        entering = call.entering()
        if entering is None or not varying_axes(entering) == varying_axes(x) == [first] or call.arg("weight") is None:
            return call.give_up(MIXED_NORM)
        return _mixing_norm(call, x, first, kind=kind, spatial=True, from_end=True)
    x = call.settled(x, -1)
    call.sized(extent(x, x.ndim - 1))
    return _mixing_norm(call, x, x.ndim - 1, kind=kind)


@rule("group_norm")
def group_norm(call: Call) -> Any:
    """Groups of channels are normalised together over space: whole groups go, or all lose the same inner channels."""
    groups = call.arg("num_groups")
    x = call.labels(call.arg("input"))
    channels = call.channels(x, 1)
    rows = channels.reshape(groups, -1)
    if groups > 1 and call.choose(WHOLE_GROUPS, INNER_CHANNELS) == WHOLE_GROUPS:
        return _whole_norm_groups(call, channels, rows)
    call.tie(rows[:1].expand(rows.shape), rows)
    return _mixing_norm(call, x, 1, groups=groups, spatial=True)


def _whole_norm_groups(call: Call, channels: Tensor, rows: Tensor) -> Tensor:
    """Tie the channels of each group; what remains of the others is normalised as before."""
    call.tie(rows[:, :1].expand(rows.shape), rows)
    vectors = [call.arg("weight"), call.arg("bias")]
    for vector in vectors:
        _follow(call, vector, channels)
    bare = not any(isinstance(vector, TensorRef) for vector in vectors)
    call.sized(rows[:, 0], *([channels] if bare else []))
    return call.along(channels, 1)


def _mixing_norm(
    call: Call,
    x: Tensor,
    axis: int,
    groups: int = 1,
    kind: NormKind = "layer",
    spatial: bool = False,
    from_end: bool = False,
) -> Any:
    weight, bias = call.arg("weight"), call.arg("bias")
    bare = weight is None and bias is None and is_all_of_its_layer(call.node, call.node)
    if groups == 1 and set(varying_axes(x)) - {axis}:
        return _inside_heads(call, x, axis)
    channels = call.channels(x, axis)
    entering = call.entering()
    if entering is not None and entering.shape == x.shape and call.is_table(entering):
        entering = call.settled(entering, axis)
    varying = [] if entering is None else varying_axes(entering)
    if not (bare or (call.owns(weight) and weight.is_parameter)) or entering is None or len(varying) != 1:
        return call.give_up(MIXED_NORM)
    line = call.channels(entering, varying[0])
    if not torch.equal(line, channels):
        return call.give_up(MIXED_NORM)
    for vector in (weight, bias):
        _follow(call, vector, channels)
    last = not spatial and varying[0] == entering.ndim - 1
    at = varying[0] - entering.ndim if last or from_end else varying[0]  # from the end: inputs may differ in rank
    if bare:
        call.sized(channels[:, None])
    call.living_norm(NormCall(call.name_of_norm(weight), channels, at, groups, kind, spatial))
    return call.along(channels, axis)


def _inside_heads(call: Call, x: Tensor, axis: int) -> Tensor:
    """A norm inside each head: what it reads goes together, and its own vectors stay."""
    for name in ("weight", "bias"):
        if isinstance(call.arg(name), TensorRef):
            call.freeze(call.axis(call.arg(name), 0), MIXED_NORM)
    return call.together(x, axis, reason=MIXED_NORM).expand(x.shape)
