"""PixelShuffle, the last stage of both super-resolution networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn


def upsampler(channels: int, scale: int, activation: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    """Return layers that enlarge ``(N, channels, H, W)`` by ``scale``, in steps of two.

    Args:
        channels: channels before and after.
        scale: 2 or 4.
        activation: makes the layer after each step, if any.

    Raises:
        ValueError: another scale.
    """
    if scale not in (2, 4):
        raise ValueError(f"scale must be 2 or 4, not {scale}")
    return nn.Sequential(*_steps(channels, scale // 2, activation))


def _steps(channels: int, count: int, activation: Callable[[], nn.Module] | None) -> Iterator[nn.Module]:
    for _ in range(count):
        yield nn.Conv2d(channels, 4 * channels, 3, padding=1)
        yield nn.PixelShuffle(2)
        if activation is not None:
            yield activation()
