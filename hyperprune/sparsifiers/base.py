"""A sparsifier: how units are scored, how latents are pressed, and whether to end before the schedule does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from hyperprune.hyper import HyperModel
from hyperprune.latents import LatentBank


@dataclass(frozen=True)
class Press:
    """What a sparsifier is told at each step.

    Attributes:
        bank: the latents.
        doomed: units that the budget's schedule names, bool, shape ``[units]``.
        prices: what one unit costs of the budgeted resource, relative to the mean, shape ``[units]``.
        lr: the optimiser's present learning rate for the latents; a tensor where the optimiser holds one.
        patience: steps between two decisions of the schedule.
        share: how much of the search is over, in [0, 1].
    """

    bank: LatentBank
    doomed: Tensor
    prices: Tensor
    lr: float | Tensor
    patience: int
    share: float = 0.0


class Score(Protocol):
    """Says how important each unit is.

    A class may name in ``made_with`` the attributes that hold what it was made with, numbers or other parts: a search
    takes no state of a rule that was made otherwise. The same goes for actions and endings.

    ``observe`` runs at every training step: asking the device for a value there (``if tensor``, ``item()``) makes
    every step wait. ``scores`` is asked at decisions only.
    """

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """See the latents' gradient, shape ``[units]``, just before the optimiser uses it.

        NaN marks what is not to count, as where AMP is about to skip the step: let the score stay as it is there.
        """

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the importance of every unit, at least 0, shape ``[units]``."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""


def described(part: object) -> str:
    """Say what a part of a rule is and what it was made with: the attributes that its class names in ``made_with``.

    Example:
        >>> from hyperprune import Fisher
        >>> described(Fisher().score)
        'Balanced(within=Saliency(decay=0.95), balance=0.5)'
    """
    names: tuple[str, ...] = getattr(part, "made_with", ())
    return f"{type(part).__name__}({', '.join(f'{name}={_in_words(getattr(part, name))}' for name in names)})"


def _in_words(value: Any) -> str:
    """Write 2 and 2.0 alike, and a list like a tuple."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_in_words, value))})"
    if isinstance(value, str):
        return repr(value)
    return f"{value:.12g}" if isinstance(value, Real) else described(value)


Prices = Callable[[Tensor], np.ndarray]
"""From the living units, bool of shape ``[units]``, to what one of each costs, relative to the mean, same shape."""


def introduce(score: Score, hyper: HyperModel, prices: Prices) -> None:
    """Show the network to a score that looks at it, one with a method ``meet(hyper, prices)``."""
    meet = getattr(score, "meet", None)
    if meet is not None:
        meet(hyper, prices)


class Action(Protocol):
    """Presses latents towards zero, in place, after every optimiser step."""

    pressure: float | Tensor

    def press_(self, press: Press) -> None:
        """Act once."""


class Ending(Protocol):
    """Counts units as living or not, and may end the search before its last step."""

    def living(self, bank: LatentBank) -> Tensor:
        """Return which units count as living, bool, shape ``[units]``."""

    def satisfied(self, ratio: float, target: float) -> bool:
        """Say whether ``ratio`` of the dense cost is close enough to ``target``."""


class AtSchedule:
    """End when the schedule ends; a unit lives while its gate is not zero."""

    def living(self, bank: LatentBank) -> Tensor:
        """Return the bank's own answer."""
        return bank.living()

    def satisfied(self, ratio: float, target: float) -> bool:
        """Never end early."""
        return False


class Sparsifier:
    """A score, an action and an ending, put together.

    Every combination works with every generator and every budget: the schedule and the solver belong to
    ``Search``.

    Example:
        >>> from hyperprune.sparsifiers import Cut, Size
        >>> rule = Sparsifier(Size(), Cut())  # smallest latents go at once
        >>> rule
        Sparsifier(Size(), Cut(), AtSchedule())
        >>> rule.pressure
        0.0
    """

    def __init__(self, score: Score, action: Action, ending: Ending | None = None) -> None:
        self.score = score
        self.action = action
        self.ending: Ending = AtSchedule() if ending is None else ending

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(described(part) for part in (self.score, self.action, self.ending))})"

    def meet(self, hyper: HyperModel, prices: Prices) -> None:
        """Show the network, and what its units cost of the budget, to a score with a method ``meet(hyper, prices)``."""
        introduce(self.score, hyper, prices)

    @property
    def pressure(self) -> float:
        """Strength of the action (lambda of an l1 step; 0 where there is none), for the logger."""
        return float(self.action.pressure)

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Show a gradient to the score."""
        self.score.observe(bank, gradient)

    def scores(self, bank: LatentBank) -> Tensor:
        """Return the importance of every unit, shape ``[units]``."""
        return self.score.scores(bank)

    def press_(self, press: Press) -> None:
        """Press once, in place."""
        self.action.press_(press)

    def living(self, bank: LatentBank) -> Tensor:
        """Return which units count as living, bool, shape ``[units]``."""
        return self.ending.living(bank)

    def satisfied(self, ratio: float, target: float) -> bool:
        """Say whether to end the search now."""
        return self.ending.satisfied(ratio, target)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later."""
        return {"score": self.score.state_dict(), "pressure": self.pressure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.score.load_state_dict(state["score"])
        self.action.pressure = state["pressure"]
