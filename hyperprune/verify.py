"""Proof: two networks compute the same on given inputs, up to rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hyperprune.errors import ProofError
from hyperprune.trace import ExampleInputs, modes_kept, random_state_kept

_Setting = tuple[Any, str, Any]

ROUNDING = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
    torch.complex128: 1e-10,
    torch.complex64: 1e-4,
}
UNEVEN = 1000  # times what one value in twenty stays below: the largest value beside which these are looked at finely
FILLED = 1e4
"""Masks are filled with numbers of this size and beyond (-1e9, the least float16), in both networks alike."""


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Attributes:
        relative_error: largest difference over all outputs, each divided by the largest value of its reference;
            infinities, and numbers beyond 1e4 that agree to the bit, are a mask's and do not count as the largest.
        tolerance: the bound it had to stay below.
        outputs: number of tensors compared.
        uneven: whether some output holds values beside which others are small (masks of -1000, coordinates
            beside scores, a softmax over many classes): a difference in the small ones may hide in the rounding.
    """

    relative_error: float
    tolerance: float
    outputs: int
    uneven: bool = False

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance (an error that is not a number never is)."""
        return self.relative_error <= self.tolerance

    def __str__(self) -> str:
        sign = "<=" if self.holds else ">"
        return f"relative error {self.relative_error:.1e} {sign} {self.tolerance:.0e} over {self.outputs} outputs"


def compare(reference: Any, candidate: Any, tolerance: float | None = None) -> Proof:
    """Compare two outputs of any structure (tensor, tuple, dict, dataclass, whatever torch's pytree knows).

    Args:
        tolerance: bound on the relative error; by default what rounding explains in the reference's dtype.

    Raises:
        ProofError: the outputs differ in number or shape, or hold no tensor that could be compared.

    Example:
        >>> compare(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 4.0])).relative_error
        0.0
    """
    left, right = tensors_of(reference), tensors_of(candidate)
    if [t.shape for t in left] != [t.shape for t in right]:
        shapes = [tuple(t.shape) for t in left], [tuple(t.shape) for t in right]
        raise ProofError(f"the slim model's outputs have shapes {shapes[1]} instead of {shapes[0]}")
    if not left:
        raise ProofError(f"the outputs hold no tensor ({type(reference).__name__}), so nothing can be compared")
    if tolerance is None:
        tolerance = max((ROUNDING.get(t.dtype, 0.0) for t in left), default=0.0)
    errors = [_relative_error(a, b) for a, b in zip(left, right, strict=True)]
    return Proof(float(torch.tensor(errors).max()), tolerance, len(errors), any(map(_is_uneven, left)))


def rounding(model: nn.Module) -> float:
    """Return the relative error that rounding explains in the coarsest type among a model's parameters.

    Example:
        >>> rounding(nn.Linear(2, 2))
        0.0001
    """
    return max((ROUNDING.get(parameter.dtype, 0.0) for parameter in model.parameters()), default=0.0)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a model's output in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        return [tensor for key in output for tensor in tensors_of(output[key])]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_of(item)]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@torch.no_grad()
def run_eval(model: nn.Module, inputs: ExampleInputs) -> Any:
    """Run a model in eval mode, in full precision and without gradients; modes and random state come back.

    It gets copies of the inputs, for it may change them in place (``x *= 255``). torch's own encoders do not pack
    padded sequences meanwhile: they could for even numbers of heads only.
    """
    with eval_mode(model), unpacked(model), full_precision(), random_state_kept(model):
        return inputs.copied().call(model)


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Let torch's encoders leave padded sequences as they are for a while."""
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    before = [encoder.use_nested_tensor for encoder in encoders]
    for encoder in encoders:
        encoder.use_nested_tensor = False
    try:
        yield
    finally:
        for encoder, packs in zip(encoders, before, strict=True):
            encoder.use_nested_tensor = packs


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn autocast, TensorFloat-32 and bfloat16 off for a while: their rounding would drown a real difference."""
    backends: Any = torch.backends
    flags = [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    newer = [(place, "fp32_precision", "ieee") for place in _products(backends) if hasattr(place, "fp32_precision")]
    level, flags_before, newer_before = _read(torch.get_float32_matmul_precision), _found(flags), _found(newer)
    try:
        _set([*flags, *newer])
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _set(flags_before)
        if level is not None:
            torch.set_float32_matmul_precision(level)
        _set(newer_before)


def _products(backends: Any) -> list[Any]:
    """Return the places where torch keeps what may be rounded: matrix products, convolutions, recurrent layers."""
    layers = [getattr(backend, kind, None) for backend in (backends.cudnn, backends.mkldnn) for kind in ("conv", "rnn")]
    return [backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None), *layers]


def _found(settings: list[_Setting]) -> list[_Setting]:
    """Return the same settings as they are now; without those that torch does not tell."""
    values = [(place, name, _read(partial(getattr, place, name))) for place, name, _ in settings]
    return [setting for setting in values if setting[2] is not None]


def _read(setting: Callable[[], Any]) -> Any:
    """Return a setting, None where torch refuses: its old and its new interface exclude each other."""
    try:
        return setting()
    except RuntimeError:
        return None


def _set(settings: list[_Setting]) -> None:
    for place, name, value in settings:
        setattr(place, name, value)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while."""
    with modes_kept(model):
        model.eval()
        yield


def _is_uneven(reference: Tensor) -> bool:
    if not (reference.is_floating_point() or reference.is_complex()):
        return False
    size = reference.detach().abs().flatten().float()
    size = size[size.isfinite() & (size > 0)]
    return bool(len(size)) and bool(size.max() > UNEVEN * size.kthvalue(1 + len(size) // 20).values)


def _relative_error(reference: Tensor, candidate: Tensor) -> float:
    if reference.numel() == 0:
        return 0.0
    fine = torch.complex128 if reference.is_complex() else torch.float64
    a, b = reference.detach().to(fine), candidate.detach().to(fine)
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    size = a.abs()
    largest = size.masked_fill(same & ((size >= FILLED) | size.isnan()), 0).max()
    return float((a - b).abs().masked_fill(same, 0).max() / largest.clamp_min(torch.finfo(torch.float32).tiny))
