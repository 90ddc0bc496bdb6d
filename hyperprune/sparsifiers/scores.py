"""Scores: how much each unit matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.errors import SearchError
from hyperprune.latents import LatentBank


class MovingAverage:
    """Base of scores that average over batches what each says of a unit.

    Args:
        decay: share of the old average that a step keeps.

    Attributes:
        average: the average, shape ``[units]``, NaN for units not seen yet; None before the first gradient.

    Raises:
        SearchError: ``decay`` is not in [0, 1).
    """

    made_with = ("decay",)

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise SearchError(f"decay must be in [0, 1), not {decay}.")
        self.decay = decay
        self.average: Tensor | None = None

    def change(self, gates: Tensor, gradient: Tensor) -> Tensor:
        """Return what one batch says of each unit, shape ``[units]``."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Take one gradient in; units whose gate is zero, or whose change is not finite, keep their average."""
        gates = bank.gates()
        change = self.change(gates, gradient)
        old = torch.full_like(change, torch.nan) if self.average is None else self.average.to(change)
        new = torch.where(old.isnan(), change, torch.lerp(change, old, self.decay))
        self.average = torch.where((gates != 0) & change.isfinite(), new, old)

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the average's size; zero for units not seen yet."""
        return torch.zeros_like(bank.alive) if self.average is None else self.average.abs().nan_to_num(0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": None if self.average is None else self.average.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average back."""
        self.average = None if state["average"] is None else state["average"].clone()


class Saliency(MovingAverage):
    """Moving average of (z dL/dz)^2, the squared first-order change of the loss when the unit is removed.

    Squared because the gradient of a trained network changes sign from batch to batch (Liu et al., "Group
    Fisher Pruning", ICML 2021, accumulate the same quantity per example).
    """

    def change(self, gates: Tensor, gradient: Tensor) -> Tensor:
        """Return the square of one batch."""
        return (gates * gradient).square()


class Size:
    """|z|, the size of the latent itself: DHP's own criterion."""

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Gradients act through the optimiser alone."""

    def scores(self, bank: LatentBank) -> Tensor:
        """Return |z|."""
        return bank.gates().detach().abs()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the latents are the state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""
