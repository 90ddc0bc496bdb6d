"""The named rules: which score, action and ending go together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperprune.arguments import is_count
from hyperprune.coupling import Group
from hyperprune.errors import SearchError
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.actions import Cut, Fade, Shrink
from hyperprune.sparsifiers.base import Sparsifier
from hyperprune.sparsifiers.priced import Balanced
from hyperprune.sparsifiers.proximal import FadeTogether
from hyperprune.sparsifiers.scores import Saliency, Size


def Fisher(decay: float = 0.95, balance: float = 0.5) -> Sparsifier:
    """Squared latent gradients per price, the lowest removed a few at a time while training: the default.

    A few units go at each decision and the network trains on in between, so it stays alive all through.

    Args:
        decay: share of the old average that a step keeps.
        balance: how far groups are brought nearer to each other, in [0, 1]; see ``Balanced``.

    Example:
        >>> Fisher().pressure
        0.0
    """
    return Sparsifier(Balanced(Saliency(decay), balance), Cut())


def L1Proximal(fade: float = 2.0, decay: float = 0.95) -> Sparsifier:
    """DHP's l1 proximal step, steered so that it works from pretrained weights.

    The published step drags all latents down alike, which destroys a pretrained network before it selects.
    Here it presses only the units that the budget's schedule names, and survivors keep their size.

    Args:
        fade: decisions of the schedule that a named unit takes to reach exactly zero.
        decay: share of the old average of saliency that a step keeps.

    Example:
        >>> L1Proximal(fade=4.0).action.fade
        4.0
    """
    return Sparsifier(Saliency(decay), Fade(fade))


def GroupProximal(fade: float = 2.0, decay: float = 0.95) -> Sparsifier:
    """As ``L1Proximal``, with the proximal map of the group lasso: a group's named units shrink as one block.

    Args:
        fade: decisions of the schedule that a block of named units of size 1 takes to reach exactly zero.
        decay: share of the old average of saliency that a step keeps.

    Example:
        >>> GroupProximal(fade=4.0).action.fade
        4.0
    """
    return Sparsifier(Saliency(decay), FadeTogether(fade))


def PublishedL1(lambda_: float = 2e-4, threshold: float = 5e-3, stop: float = 0.02, least: int = 4) -> Sparsifier:
    """The rule of the paper: a fixed lambda on all latents alike, a mask, and a stop ratio.

    z <- sign(z) max(|z| - lambda lr, 0) after every step; a unit counts as living if |z| >= min(tau, 4th largest
    |z| of its group). The search ends once the masked network's cost is within ``stop`` of the target; what is
    then still above the budget goes by smallest |z| per price. Source: the official program of Li et al., ECCV 2020.

    Made for training from scratch with many steps. From pretrained weights, in a short search, latents hardly
    move and the last cut is left to chance: use ``Fisher`` or ``L1Proximal`` there.

    Args:
        lambda_: weight of the l1 term (ResNet-20: 2e-4, ResNet-56: 3e-4, MobileNetV2: 1e-4).
        threshold: tau.
        stop: how close to the target ratio ends the search.
        least: units of a group that count as living whatever their size.

    Example:
        >>> PublishedL1(lambda_=3e-4).pressure
        0.0003
    """
    return Sparsifier(Size(), Shrink(lambda_), PublishedStop(threshold, stop, least))


@dataclass(frozen=True)
class PublishedStop:
    """DHP's mask and stop criterion (see ``PublishedL1``).

    Raises:
        SearchError: ``threshold`` or ``stop`` is negative, or ``least`` is not an integer of at least 1.
    """

    made_with = ("threshold", "stop", "least")
    threshold: float
    stop: float
    least: int

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and self.stop >= 0):
            raise SearchError(f"threshold and stop must be at least 0, not {self.threshold} and {self.stop}.")
        if not is_count(self.least):
            raise SearchError(f"least must be an integer of at least 1, not {self.least}.")

    def living(self, bank: LatentBank) -> Tensor:
        """Return the published mask, bool, shape ``[units]``."""
        size = bank.gates().detach().abs()
        return size >= self._largest(size, bank.groups).clamp_max(self.threshold)

    def _largest(self, size: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """Return for every unit the ``least``-th largest size in its group, by one sort for all groups."""
        sizes = torch.tensor([group.size for group in groups], device=size.device)
        starts = torch.tensor([group.start for group in groups], device=size.device)
        group_of = torch.arange(len(groups), device=size.device).repeat_interleave(sizes)
        falling = size.argsort(descending=True)
        by_group = falling[group_of[falling].argsort(stable=True)]
        return size[by_group[starts + sizes.clamp_max(self.least) - 1]][group_of]

    def satisfied(self, ratio: float, target: float) -> bool:
        """End within ``stop`` of the target."""
        return ratio - target <= self.stop
