"""Fourier transforms, and complex numbers as pairs of real ones."""

from __future__ import annotations

from torch import Tensor

from hyperprune.labels.arrays import named_axes
from hyperprune.labels.call import Call
from hyperprune.labels.reasons import REDUCED
from hyperprune.labels.registry import rule

DIRECTIONS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@rule(*(f"fft_{name}{rank}" for name in DIRECTIONS for rank in ("", "2", "n")))
def transformed(call: Call) -> Tensor:
    """A transform mixes what lies along its axes: it goes together; along the other axes each channel is by itself."""
    x = call.labels(call.arg("self"))
    left = call.together(x, *_axes(call, x.ndim), reason=REDUCED)
    return left.expand(call.shape)


def _axes(call: Call, ndim: int) -> range | list[int]:
    """Return the axes of a transform: those named, else the last ones; of n-dimensional ones, all without sizes."""
    named = call.arg("dim")
    if named is not None:
        return named_axes(named, ndim)
    if not call.operator.endswith("n"):
        return [ndim - 2, ndim - 1] if call.operator.endswith("2") else [ndim - 1]
    return range(ndim - len(call.arg("s", range(ndim))), ndim)


@rule("view_as_real")
def parted(call: Call) -> Tensor:
    """Both parts of a complex number belong to its channel."""
    return call.labels(call.arg("self")).unsqueeze(-1).expand(call.shape)


@rule("view_as_complex")
def joined(call: Call) -> Tensor:
    """What becomes one complex number goes together."""
    return call.together(call.labels(call.arg("self")), -1, reason=REDUCED).squeeze(-1)
