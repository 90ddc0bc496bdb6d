"""The arguments of one forward call, and others like them: copies, excerpts, larger ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hyperprune.errors import InputsError

CORNER, TWO = 96, 2  # pixels along a side, and images, that show as much of a network as many do


@dataclass(frozen=True)
class ExampleInputs:
    """The arguments of one forward call: positional ``args`` and keyword ``kwargs``.

    Example:
        >>> ExampleInputs.of(torch.zeros(1, 3)).args[0].shape
        torch.Size([1, 3])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> ExampleInputs:
        """Read a tensor, a tuple of arguments, or a dict of keyword arguments.

        Raises:
            InputsError: ``inputs`` is none of these, or holds no tensor.
        """
        if isinstance(inputs, ExampleInputs):
            return inputs
        if isinstance(inputs, torch.Tensor):
            found = cls((inputs,))
        elif isinstance(inputs, (tuple, list)):
            found = cls(tuple(inputs))
        elif isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
            found = cls((), dict(inputs))
        else:
            raise InputsError(
                f"example inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
                f"not {type(inputs).__name__}. Pass, for instance, torch.randn(1, 3, 224, 224)."
            )
        if not found.tensors():
            raise InputsError("example inputs hold no tensor. Pass what you would pass to model(...).")
        return found

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor among the arguments, in order."""
        leaves = torch.utils._pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def map(self, change: Any) -> ExampleInputs:
        """Return the same arguments with ``change`` applied to each tensor."""
        args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs)))
        return ExampleInputs(tuple(args), kwargs)

    def suiting(self, model: nn.Module) -> ExampleInputs:
        """Return the inputs on the device of a model, those of floating point in its dtype, if it has only one."""
        tensors: list[torch.Tensor] = [*model.parameters()] or [*model.buffers()]
        kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        kind = kinds.pop() if len(kinds) == 1 else None
        return self.map(lambda t: t.to(tensors[0].device, kind if t.is_floating_point() else None))

    def call(self, model: nn.Module) -> Any:
        """Run ``model`` on these arguments."""
        return model(*self.args, **self.kwargs)

    def doubled(self) -> ExampleInputs:
        """Return every example twice: in train mode, batch norm may insist on two."""
        return self.map(lambda t: torch.cat([t, t]) if t.ndim else t)

    def larger(self) -> tuple[ExampleInputs, ...]:
        """Return inputs of other sizes that a model may take: twice as many rows, twice the image, twice the tokens.

        Example:
            >>> [tuple(other.args[0].shape) for other in ExampleInputs.of(torch.zeros(1, 3, 8, 8)).larger()]
            [(1, 3, 16, 8), (1, 3, 16, 16), (1, 6, 8, 8)]
        """
        rank = max(tensor.ndim for tensor in self.tensors())
        space, tokens = tuple(range(2, rank)), (1,) if rank > 1 else ()
        ways = [axes for axes in dict.fromkeys((space[:1], space, tokens)) if axes]
        return tuple(self.map(lambda tensor, axes=axes: _mirrored(tensor, axes)) for axes in ways)

    def excerpts(self) -> tuple[ExampleInputs, ...]:
        """Return parts of the inputs that show much of what a network does: corners of two images, then two images.

        Inputs that are not images have none, nor have those of which no part is half as much at most.

        Example:
            >>> [tuple(part.args[0].shape) for part in ExampleInputs.of(torch.zeros(8, 3, 224, 160)).excerpts()]
            [(2, 3, 96, 160), (2, 3, 224, 160)]
        """
        if any(tensor.ndim != 4 or not tensor.is_floating_point() for tensor in self.tensors()):
            return ()
        corners = self.map(lambda t: t[:TWO, :, : _corner(t.shape[2]), : _corner(t.shape[3])])
        return tuple(part.lively() for part in (corners, self.map(lambda t: t[:TWO])) if 2 * part.size <= self.size)

    @property
    def size(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors())

    def refused(self, model: nn.Module, error: Exception) -> InputsError:
        """Return the error that says that a model fails on these arguments."""
        shapes = [f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in self.tensors()]
        return InputsError(
            f"{type(model).__name__} fails on the example inputs {shapes}: {type(error).__name__}: {error}"
        )

    def lively(self) -> ExampleInputs:
        """Return the inputs with drawn numbers in place of zeros, and of images that are one number everywhere.

        Zeros hide all that a network without biases computes, and constants what moves from place to place. Ones with
        one or two axes may be a mask, so they stay.
        """
        if not any(map(_is_blank, self.tensors())):
            return self
        rng = torch.Generator().manual_seed(0)
        return self.map(lambda tensor: _drawn(tensor, rng) if _is_blank(tensor) else tensor)

    def copied(self) -> ExampleInputs:
        """Return copies, for a model that changes its inputs in place."""
        return self.map(torch.Tensor.clone)


def _mirrored(tensor: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor twice as long along some axes: what it was and, behind, its mirror image, somewhat fainter."""
    for axis in [axis for axis in axes if axis < tensor.ndim]:
        behind = tensor.flip(axis)
        faint = behind * 0.9 if tensor.is_floating_point() else behind  # equal numbers would be ranked by rounding
        tensor = torch.cat([tensor, faint], axis)
    return tensor


def _corner(side: int) -> int:
    """Return how many pixels of a side are enough: a multiple of what most networks divide images by."""
    return CORNER if side >= 2 * CORNER else side


def _is_blank(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_nested or tensor.numel() < 2:
        return False
    first = tensor.flatten()[0]
    return bool((tensor == first).all()) and (tensor.ndim > 2 or not bool(first))


def _drawn(tensor: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Draw numbers of the same sign: U(0, 1) for zeros, else between a half and one and a half of what there is."""
    drawn = torch.rand(tensor.shape, generator=rng).to(tensor)
    return torch.where(tensor == 0, drawn, tensor * (0.5 + drawn))
