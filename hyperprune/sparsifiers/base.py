"""The interface of a sparsifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hyperprune.latents import LatentBank


@dataclass(frozen=True)
class Press:
    """What a sparsifier is told at each step.

    Attributes:
        bank: the latents.
        doomed: units that the budget's schedule names, bool, shape ``[units]``.
        prices: MACs (or parameters) that one unit carries, relative to their mean, shape ``[units]``.
        lr: the optimiser's present learning rate for the latents.
        patience: steps between two decisions of the schedule.
    """

    bank: LatentBank
    doomed: Tensor
    prices: Tensor
    lr: float
    patience: int


class Sparsifier(Protocol):
    """Watches gradients, scores units, and presses latents towards zero."""

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """See the latents' gradient, shape ``[units]``, just before the optimiser uses it."""

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the importance of every unit, at least 0, shape ``[units]``."""

    def press_(self, press: Press) -> None:
        """Act on the latents, in place, after the optimiser's step."""

    def satisfied(self, bank: LatentBank, ratio: float, target: float) -> bool:
        """Say whether to end the search now: ``ratio`` of the budgeted cost is left, ``target`` is wanted."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
