"""Scores to compare with: magnitude, first-order Taylor, chance, and the same share of every group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.criteria import relative_norms
from hyperprune.hyper import HyperModel
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.actions import Cut
from hyperprune.sparsifiers.base import Prices, Score, Sparsifier
from hyperprune.sparsifiers.priced import Priced, Wrapping, unmet
from hyperprune.sparsifiers.scores import MovingAverage


class WeightNorm(Priced):
    """Squared norm of all weights that make or read a unit, relative to the mean of its group's living units.

    Times the price, since the solver divides by it.
    """

    _hyper: HyperModel | None = None

    def meet(self, hyper: HyperModel, prices: Prices) -> None:
        """Remember the network and the prices."""
        super().meet(hyper, prices)
        self._hyper = hyper

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the norms of the weights as they are now, times prices, on the CPU."""
        if self._hyper is None:
            raise unmet(self)
        norms = torch.from_numpy(relative_norms(self._hyper.model, self._hyper.coupling))
        living = bank.living().cpu()
        for group in bank.groups:
            part, lives = norms[group.units], living[group.units]
            if bool(lives.any()):  # of a closed branch nothing does
                part /= part[lives].mean().clamp_min(1e-300)
        return norms * self.prices(bank)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the network is the state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


class Draw(Priced):
    """Chance, the same draw all through a search; times the price, so that groups lose about the same share."""

    made_with = ("seed",)

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, bank: LatentBank) -> Tensor:
        """Return uniform draws times prices, on the CPU."""
        rng = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(bank.alive.numel(), generator=rng, dtype=torch.float64)
        return draws * self.prices(bank)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.seed = state["seed"]


class Rank(Wrapping):
    """A unit's rank within its group by another score, as a share of the group's size, times the price.

    The solver then meets every group at the same share.

    Args:
        within: what ranks the units of a group.
    """

    def scores(self, bank: LatentBank) -> Tensor:
        """Return ranks in (0, 1) times prices, on the CPU; the dead rank lowest."""
        worth = torch.where(bank.living().cpu(), self.within.scores(bank).cpu().double(), -1.0)
        shares = torch.cat([_rank(worth[group.units]) for group in bank.groups])
        return shares * self.prices(bank)


def _rank(worth: Tensor) -> Tensor:
    return (worth.argsort(stable=True).argsort() + 0.5) / len(worth)


class FirstOrder(MovingAverage):
    """Moving average of |z dL/dz|, the size of the first-order change of the loss when the unit is removed."""

    def change(self, gates: Tensor, gradient: Tensor) -> Tensor:
        """Return what one batch says of each unit."""
        return (gates * gradient).abs()


class SignedFirstOrder(FirstOrder):
    """Size of the moving average of z dL/dz, signs kept: changes of opposite sign cancel over the batches.

    In a trained network they nearly all do, so this variant measures mostly noise there: ``FirstOrder`` is the
    baseline. To use it: ``Sparsifier(SignedFirstOrder(), Cut())``.
    """

    def change(self, gates: Tensor, gradient: Tensor) -> Tensor:
        """Return z dL/dz."""
        return gates * gradient


def Magnitude() -> Sparsifier:
    """Baseline: the smallest weights go, by the squared norm of all that make or read a unit, relative to its group.

    Example:
        >>> Magnitude().pressure
        0.0
    """
    return Sparsifier(WeightNorm(), Cut())


def Taylor(decay: float = 0.95) -> Sparsifier:
    """Baseline: the first-order change of the loss, averaged as |z dL/dz| over batches, per price.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, gates on the consumers' side.

    Args:
        decay: share of the old average that a step keeps.

    Example:
        >>> Taylor(decay=0.9).score.decay
        0.9
    """
    return Sparsifier(FirstOrder(decay), Cut())


def Random(seed: int = 0) -> Sparsifier:
    """Baseline: units go by chance, each group losing about the same share.

    Args:
        seed: of the draw, which stays the same all through a search.

    Example:
        >>> Random(seed=3).score.seed
        3
    """
    return Sparsifier(Draw(seed), Cut())


def Uniform(within: Score | None = None) -> Sparsifier:
    """Baseline: every group loses the same share of its units, to one unit or so; widths are not searched.

    Args:
        within: what ranks the units of one group; the norm of their weights by default.

    Example:
        >>> from hyperprune.sparsifiers import Saliency
        >>> rule = Uniform(within=Saliency())  # uniform widths, each group's most salient units
    """
    return Sparsifier(Rank(WeightNorm() if within is None else within), Cut())
