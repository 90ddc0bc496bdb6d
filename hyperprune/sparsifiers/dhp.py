"""The published rule of DHP: a fixed lambda on all latents alike, a threshold, and a stop ratio."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperprune.coupling import Group
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.base import Press
from hyperprune.sparsifiers.proximal import soft_threshold


class PublishedL1:
    """z <- sign(z) max(|z| - lambda lr, 0) after every step, and a mask |z| >= min(tau, 4th largest |z|).

    The search ends when the masked network's cost is within ``stop`` of the target; what is then still above
    the budget goes by smallest |z|. Source: the official program of Li et al., ECCV 2020.

    Args:
        lambda_: weight of the l1 term (ResNet-20: 2e-4, ResNet-56: 3e-4, MobileNetV2: 1e-4).
        threshold: tau; latents below it count as gone.
        stop: how close to the target ratio ends the search.
        least: channels of a group that count as living whatever their size.
    """

    def __init__(self, lambda_: float = 2e-4, threshold: float = 5e-3, stop: float = 0.02, least: int = 4) -> None:
        self.lambda_, self.threshold, self.stop, self.least = lambda_, threshold, stop, least

    @property
    def pressure(self) -> float:
        """Lambda, for the logger."""
        return self.lambda_

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Gradients act through the optimiser alone."""

    def scores(self, bank: LatentBank) -> Tensor:
        """Return |z|."""
        return bank.gates().detach().abs()

    @torch.no_grad()
    def press_(self, press: Press) -> None:
        """Soft-threshold every latent by lambda lr."""
        press.bank.latents.copy_(soft_threshold(press.bank.latents, self.lambda_ * press.lr))

    def living(self, bank: LatentBank) -> Tensor:
        """Return the published mask, bool, shape ``[units]``."""
        size = bank.gates().detach().abs()
        return torch.cat([self._group(size[group.units], group) for group in bank.groups])

    def _group(self, size: Tensor, group: Group) -> Tensor:
        nth = size.topk(min(self.least, group.size)).values[-1]
        return size >= torch.minimum(nth, size.new_tensor(self.threshold))

    def satisfied(self, bank: LatentBank, ratio: float, target: float) -> bool:
        """End within ``stop`` of the target."""
        return ratio - target <= self.stop

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the latents are the state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""
