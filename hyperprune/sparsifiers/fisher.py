"""The default rule: squared latent gradients per price, lowest removed a few at a time while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.base import Press
from hyperprune.sparsifiers.saliency import Saliency


class Fisher:
    """Remove for good, at each decision of the schedule, the units with the lowest saliency per price.

    A few units go at a time and the network trains on in between, so it stays alive all through the search.

    Args:
        decay: see ``Saliency``.
    """

    def __init__(self, decay: float = 0.95) -> None:
        self._saliency = Saliency(decay)

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Average the squared saliency."""
        self._saliency.update(bank.gates().detach(), gradient)

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the average; zeros before the first gradient."""
        average = self._saliency.average
        return torch.zeros_like(bank.alive) if average is None else average

    def press_(self, press: Press) -> None:
        """Cut the doomed units at once."""
        press.bank.remove_(press.doomed)

    def satisfied(self, bank: LatentBank, ratio: float, target: float) -> bool:
        """Leave the end to the schedule."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self._saliency.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average back."""
        self._saliency.load_state_dict(state)
