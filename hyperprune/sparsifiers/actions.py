"""Actions: how latents are pressed towards zero."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperprune.errors import SearchError
from hyperprune.sparsifiers.base import Press

CHEAPEST, DEAREST = 0.25, 4.0


def soft_threshold(latents: Tensor, threshold: Tensor | float) -> Tensor:
    """Return argmin_x of 1/2 (x - z)^2 + threshold |x|, element by element: sign(z) max(|z| - threshold, 0).

    Example:
        >>> soft_threshold(torch.tensor([1.0, -0.3, 0.1]), 0.2)
        tensor([ 0.8000, -0.1000,  0.0000])
    """
    return latents.sign() * (latents.abs() - threshold).clamp_min(0)


class Cut:
    """Remove the named units at once; the last decision alone may take some back, to fill the budget."""

    pressure: float | Tensor = 0.0

    def press_(self, press: Press) -> None:
        """Set their gates to exactly zero."""
        press.bank.remove_(press.doomed)


class Fading:
    """Shrink named units so that one of mean price and size 1 reaches zero in ``fade`` decisions of the schedule.

    Nothing is cut before that: a unit that is no longer named grows back.

    Attributes:
        pressure: the present lambda.

    Raises:
        SearchError: ``fade`` is not positive.
    """

    made_with = ("fade",)

    def __init__(self, fade: float) -> None:
        if not fade > 0:
            raise SearchError(f"fade must be positive, not {fade}.")
        self.fade = fade
        self.pressure: float | Tensor = 0.0

    @torch.no_grad()
    def press_(self, press: Press) -> None:
        """Shrink the named units; without a learning rate there is no step."""
        if not isinstance(press.lr, Tensor) and press.lr <= 0:
            return
        patience = self.fade * press.patience
        self.pressure = 1.0 / (press.lr * patience)
        pressed = press.doomed & (press.lr > 0)  # not asked in Python: a learning rate may lie on the device
        latents = press.bank.latents
        latents.copy_(
            torch.where(pressed, self.shrunk(press, press.prices.clamp(CHEAPEST, DEAREST), patience), latents)
        )

    def shrunk(self, press: Press, prices: Tensor, patience: float) -> Tensor:
        """Return what all latents would become, shape ``[units]``; of units that are not named it does not count."""
        raise NotImplementedError


class Fade(Fading):
    """Shrink the named units by a price-aware l1 proximal step, lambda lr p_q / mean p: lambda needs no tuning."""

    def shrunk(self, press: Press, prices: Tensor, patience: float) -> Tensor:
        return soft_threshold(press.bank.latents, prices / patience)


class Shrink:
    """The published step: every latent alike by lambda lr.

    Attributes:
        pressure: lambda.

    Raises:
        SearchError: ``lambda_`` is negative.
    """

    made_with = ("lambda_",)

    def __init__(self, lambda_: float) -> None:
        if not lambda_ >= 0:
            raise SearchError(f"lambda_ must be at least 0, not {lambda_}.")
        self.lambda_ = lambda_
        self.pressure: float | Tensor = lambda_

    @torch.no_grad()
    def press_(self, press: Press) -> None:
        """Soft-threshold every latent."""
        press.bank.latents.copy_(soft_threshold(press.bank.latents, self.pressure * press.lr))
