"""Saliency of latents: how much the loss feels each unit, averaged over steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Saliency:
    """Moving average of (z dL/dz)^2, the squared first-order change of the loss when the unit is removed.

    Squared because gradients of a trained network change sign from batch to batch (Liu et al., "Group Fisher
    Pruning", ICML 2021, accumulate the same quantity per example).

    Attributes:
        decay: share of the old average that a step keeps.
        average: the average, shape ``[units]``; None before the first gradient.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Tensor | None = None

    @torch.no_grad()
    def update(self, gates: Tensor, gradient: Tensor) -> None:
        """Take one gradient in; units whose gate is zero keep the average they had."""
        square = (gates * gradient).square()
        if self.average is None:
            self.average = square.clone()
        else:
            moved = torch.lerp(square, self.average, self.decay)
            self.average = torch.where(gates == 0, self.average, moved)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": None if self.average is None else self.average.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average back."""
        self.average = None if state["average"] is None else state["average"].clone()
