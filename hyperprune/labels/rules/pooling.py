"""Operations that mix positions but not channels: pooling, resizing, padding in space.

Most of them refuse a tensor without channels, as half of a split may become.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from hyperprune.labels.arrays import compact, spread, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.reasons import PADDED, REDUCED
from hyperprune.labels.registry import rule

RESIZING = [
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
]
POOLS = {
    1: "avg_pool1d adaptive_avg_pool1d max_pool1d max_pool1d_with_indices adaptive_max_pool1d",
    2: "avg_pool2d adaptive_avg_pool2d max_pool2d max_pool2d_with_indices adaptive_max_pool2d",
    3: "avg_pool3d adaptive_avg_pool3d max_pool3d max_pool3d_with_indices adaptive_max_pool3d",
}


def _per_channel(call: Call, spatial: int) -> Any:
    x = call.labels(call.arg("self", call.arg("input")))
    axis = x.ndim - spatial - 1
    channels = call.channels(x, axis)
    call.inhabited(channels)
    value = call.node.meta["val"]
    if isinstance(value, (tuple, list)):
        return [spread(channels, v.shape, axis) for v in value if isinstance(v, Tensor)]
    return call.along(channels, axis)


@rule(*POOLS[1].split())
def pool1d(call: Call) -> Any:
    """Pooling over one axis keeps channels apart."""
    return _per_channel(call, 1)


@rule(*POOLS[2].split())
def pool2d(call: Call) -> Any:
    """Pooling over two axes keeps channels apart."""
    return _per_channel(call, 2)


@rule(*POOLS[3].split())
def pool3d(call: Call) -> Any:
    """Pooling over three axes keeps channels apart."""
    return _per_channel(call, 3)


@rule("max_unpool2d", "max_unpool3d")
def unpooled(call: Call) -> Any:
    """Unpooling puts each channel's values back where pooling took them; the places are those of one channel too."""
    call.tie(call.labels(call.arg("indices")), call.labels(call.arg("self")))
    return _per_channel(call, 2 if call.operator.endswith("2d") else 3)


@rule("grid_sampler")
def sampled(call: Call) -> Any:
    """Sampling keeps channels apart; the channels that say where to sample are places, and stay."""
    call.freeze(call.arg("grid"), REDUCED)
    return _per_channel(call, len(call.shape) - 2)


@rule(*RESIZING)
def resize(call: Call) -> Any:
    """Resizing interpolates inside each channel: all its positions go together, those of a table too."""
    x = call.settled(call.labels(call.arg("input", call.arg("self"))), 1)
    channels = compact(call.together(x, *range(2, x.ndim)))
    call.inhabited(channels)
    return channels.expand(call.shape)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(call: Call) -> Any:
    """Padding in space keeps channels apart; padding along channels adds positions of a fixed number.

    What meets those positions later must stay, because the width of the padding stands in the code.
    """
    x = call.labels(call.arg("self"))
    amounts = list(call.arg("pad", call.arg("padding")))
    constant = call.operator.endswith(("::constant_pad_nd", "::pad")) and call.arg("mode", "constant") == "constant"
    if not constant:
        call.inhabited(x)
    for at in range(0, len(amounts), 2):
        axis = x.ndim - 1 - at // 2
        x = _pad_axis(call, x, axis, amounts[at], amounts[at + 1], constant)
    return compact(x)


def _pad_axis(call: Call, x: Tensor, axis: int, before: int, after: int, constant: bool) -> Tensor:
    size = x.shape[axis] + before + after
    if x.shape[axis] <= 1 or x.stride(axis) == 0:
        shape = [size if at == axis else length for at, length in enumerate(x.shape)]
        return x.narrow(axis, 0, 1).expand(shape)
    if before == after == 0:
        return x
    if not constant or before < 0 or after < 0:
        call.freeze(x, PADDED)
        return call.pinned(PADDED, tuple(size if at == axis else n for at, n in enumerate(x.shape)))
    if set(varying_axes(x)) - {axis}:  # heads: what is added goes with the one that it is added to
        return call.together(x, axis).expand([size if at == axis else n for at, n in enumerate(x.shape)])
    zeros = [
        call.pinned(PADDED, tuple(n if at == axis else m for at, m in enumerate(x.shape))) for n in (before, after)
    ]
    return torch.cat([zeros[0], x, zeros[1]], dim=axis)


@rule("im2col")
def unfolded(call: Call) -> Any:
    """Windows side by side: each channel becomes as many rows as a window has places."""
    channels = call.channels(call.arg("self"), -3)
    call.inhabited(channels)
    return call.along(channels.repeat_interleave(prod(call.arg("kernel_size"))), -2)


@rule("col2im")
def folded(call: Call) -> Any:
    """Windows added up again: the rows of one channel go together."""
    rows = call.channels(call.arg("self"), -2).reshape(-1, prod(call.arg("kernel_size")))
    call.tie(rows[:, :1].expand(rows.shape), rows)
    call.inhabited(rows)
    return call.along(rows[:, 0], -3)
