"""Scores that are made of prices, or of another score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.errors import SearchError
from hyperprune.hyper import HyperModel
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.base import Prices, Score, introduce

POOREST = 1e-6  # of the mean yield: a branch that starts at zero has none at first


class Priced:
    """Base of scores that need to know what units cost of the budget; ``Search`` tells them."""

    _prices: Prices | None = None

    def meet(self, hyper: HyperModel, prices: Prices) -> None:
        """Remember the prices."""
        self._prices = prices

    def prices(self, bank: LatentBank) -> Tensor:
        """Return what one unit costs at the present widths, relative to the mean, shape ``[units]``.

        In float64, which not every device has, so on the CPU.

        Raises:
            SearchError: the score has met no network.
        """
        if self._prices is None:
            raise unmet(self)
        return torch.from_numpy(self._prices(bank.living()))

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Gradients act through the optimiser alone."""


def unmet(score: object) -> SearchError:
    """Return the error of a score that has met no network."""
    return SearchError(f"{type(score).__name__} scores a network that it has not met. Pass it to Search.")


class Wrapping(Priced):
    """Base of scores that are made of another one.

    Args:
        within: the inner score.
    """

    made_with: tuple[str, ...] = ("within",)

    def __init__(self, within: Score) -> None:
        self.within = within

    def meet(self, hyper: HyperModel, prices: Prices) -> None:
        """Remember the prices, and show the network to the inner score."""
        super().meet(hyper, prices)
        introduce(self.within, hyper, prices)

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Show a gradient to the inner score."""
        self.within.observe(bank, gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner score's state."""
        return {"within": self.within.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give it back to the inner score."""
        self.within.load_state_dict(state["within"])


class Balanced(Wrapping):
    """Another score s, its groups brought nearer to each other: s / y^balance.

    y is the group's yield when first asked, its mean score per price. What a batch says of a unit tells how
    much its removal hurts at once, not how much of that training mends; groups that look a thousand times dearer than
    others often only mend better. At 0 the score is the inner one; at 1 all groups start alike.

    Args:
        within: the inner score.
        balance: in [0, 1].

    Attributes:
        factor: what the inner score is multiplied by, shape ``[units]``; None until there are scores.

    Raises:
        SearchError: ``balance`` is not in [0, 1].
    """

    made_with = ("within", "balance")

    def __init__(self, within: Score, balance: float) -> None:
        if not 0 <= balance <= 1:
            raise SearchError(f"balance must be in [0, 1], not {balance}.")
        super().__init__(within)
        self.balance = balance
        self.factor: Tensor | None = None

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the inner scores times the factor, on the CPU."""
        scores = self.within.scores(bank).cpu().double()
        if self.factor is None and bool(scores.any()):
            self.factor = self._yields(scores, bank) ** -self.balance
        return scores if self.factor is None else scores * self.factor.cpu()

    def _yields(self, scores: Tensor, bank: LatentBank) -> Tensor:
        """Return the mean score per price of each unit's group, relative to the mean over groups, shape ``[units]``."""
        living = bank.living().cpu()
        each = scores * living / self.prices(bank)
        sums = torch.stack([each[g.units].sum() / living[g.units].sum().clamp_min(1) for g in bank.groups])
        sizes = torch.tensor([group.size for group in bank.groups])
        return (sums / sums.mean()).clamp_min(POOREST).repeat_interleave(sizes)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner score's state and the factor."""
        return {**super().state_dict(), "factor": None if self.factor is None else self.factor.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both back."""
        super().load_state_dict(state)
        self.factor = None if state["factor"] is None else state["factor"].clone()
