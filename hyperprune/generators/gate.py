"""A weight times the gates along one of its axes: one kernel forward, three backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gated(weight: Tensor, gates: Tensor) -> Tensor:
    """Return ``weight * gates``.

    The gradients are those of the product. That of the gates is summed in two steps, the axes before theirs first:
    torch sums over several axes at once half as fast on a CPU.

    Args:
        gates: as many axes as the weight, all but one of size 1.

    Example:
        >>> gated(torch.ones(2, 3), torch.tensor([[1.0, 0.5, 0.0]]))
        tensor([[1.0000, 0.5000, 0.0000],
                [1.0000, 0.5000, 0.0000]])
    """
    return weight * gates if torch.compiler.is_compiling() else _Gated.apply(weight, gates)


class _Gated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, gates: Tensor) -> Tensor:
        return weight * gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        weight, gates = ctx.saved_tensors
        of_weight, of_gates = tangents
        parts = [of_weight * gates] if of_weight is not None else []
        return sum(parts + ([weight * of_gates] if of_gates is not None else []))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, gates = ctx.saved_tensors
        of_weight, of_gates = ctx.needs_input_grad
        summed = _summed(gradient * weight, gates) if of_gates else None  # first: its memory serves the second product
        return gradient * gates if of_weight else None, summed


def _summed(product: Tensor, gates: Tensor) -> Tensor:
    """Sum over every axis on which the gates have size 1."""
    if gates.numel() == 1:
        return product.sum().view_as(gates)
    axis = next(at for at, size in enumerate(gates.shape) if size != 1)
    if axis:
        product = product.sum(list(range(axis)))
    return (product.flatten(1).sum(1) if product.ndim > 1 else product).view_as(gates)
