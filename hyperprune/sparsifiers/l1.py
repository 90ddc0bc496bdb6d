"""The l1 proximal step, steered so that it works from pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.base import Press
from hyperprune.sparsifiers.proximal import soft_threshold
from hyperprune.sparsifiers.saliency import Saliency


class L1Proximal:
    """Shrink the units that the schedule names by a price-aware l1 proximal step after every optimiser step.

    The published step drags all latents down alike; from a pretrained start that destroys the network before it
    selects (method measured: 18 points lost). Here only the named units are pressed, so survivors keep their
    size. Lambda needs no tuning: it is set so that a named unit of mean price and size 1 reaches exactly zero
    in ``fade`` decisions of the schedule. Nothing is cut before that: a unit that the loss comes to need again
    is no longer named, and grows back.

    Args:
        fade: decisions of the schedule that a named unit takes to fade away.
        decay: see ``Saliency``.

    Attributes:
        pressure: the present lambda (threshold = pressure x lr x relative price).
    """

    def __init__(self, fade: float = 2.0, decay: float = 0.95) -> None:
        if fade <= 0:
            raise ValueError(f"fade must be positive, not {fade}")
        self.fade = fade
        self.pressure = 0.0
        self._saliency = Saliency(decay)

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Average the squared saliency."""
        self._saliency.update(bank.gates().detach(), gradient)

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the average saliency; zeros before the first gradient."""
        average = self._saliency.average
        return torch.zeros_like(bank.alive) if average is None else average

    @torch.no_grad()
    def press_(self, press: Press) -> None:
        """Soft-threshold the named units by lambda lr p_q / mean p."""
        if press.lr <= 0:
            return
        self.pressure = 1.0 / (press.lr * self.fade * press.patience)
        threshold = self.pressure * press.lr * press.prices.clamp(0.25, 4.0)
        latents = press.bank.latents
        latents.copy_(torch.where(press.doomed, soft_threshold(latents, threshold), latents))

    def satisfied(self, bank: LatentBank, ratio: float, target: float) -> bool:
        """Leave the end to the schedule."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the present pressure."""
        return {**self._saliency.state_dict(), "pressure": self.pressure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.pressure = state["pressure"]
        self._saliency.load_state_dict(state)
