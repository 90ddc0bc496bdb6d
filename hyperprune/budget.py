"""The budget, and the solver that meets it exactly: never above, and within one unit below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from hyperprune.cost import Cost, CostModel
from hyperprune.coupling import Group
from hyperprune.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """What the slim network may cost.

    Attributes:
        macs: a float in (0, 1] is a fraction of the dense MACs, an int an absolute count.
        params: likewise for parameters. If both are given, both are met.
        divisor: channels of every pruned group become a multiple of this (8 suits most hardware); a group
            that loses nothing keeps its width.
        floor: units that stay in every group at least.

    Raises:
        BudgetError: a value is out of range, or neither ``macs`` nor ``params`` is given.

    Example:
        >>> Budget(macs=0.5).limits(Cost(macs=1001, params=10))
        {'macs': 500}
    """

    macs: float | int | None = None
    params: float | int | None = None
    divisor: int = 1
    floor: int = 1

    def __post_init__(self) -> None:
        asked = {name: value for name in ("macs", "params") if (value := getattr(self, name)) is not None}
        if not asked:
            raise BudgetError("an empty budget: say macs=0.5 (half the MACs) or params=5_000_000, or both.")
        for name, value in asked.items():
            _check_amount(name, value)
        for name in ("divisor", "floor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetError(f"{name} must be an integer of at least 1, not {value!r}.")

    def limits(self, dense: Cost) -> dict[str, int]:
        """Return the absolute bound on each resource, given the dense network's cost.

        Raises:
            BudgetError: an absolute count is above the dense cost.
        """
        limits = {}
        for field in fields(dense):
            asked, full = getattr(self, field.name), getattr(dense, field.name)
            if asked is None:
                continue
            limits[field.name] = math.floor(asked * full) if isinstance(asked, float) else asked
            if limits[field.name] > full:
                raise BudgetError(
                    f"{field.name}={asked:,} is above the dense network's {full:,}. "
                    "Give a smaller count, or a fraction such as 0.5."
                )
        return limits


def _check_amount(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BudgetError(f"{name} must be a float in (0, 1] or a positive int, not {value!r}.")
    if isinstance(value, float) and not 0 < value <= 1:
        raise BudgetError(
            f"{name}={value} is outside (0, 1]. A float is a fraction of the dense cost; "
            "for an absolute count pass an int."
        )
    if isinstance(value, int) and value < 1:
        raise BudgetError(f"{name}={value} must be at least 1.")


@dataclass(frozen=True)
class Ladder:
    """The widths each group may have: full, or a multiple of its step that is not below its floor.

    Attributes:
        full: units per group, shape ``[groups]``.
        step: units by which a width changes, shape ``[groups]``.
        lowest: the smallest allowed width, shape ``[groups]``.
    """

    full: np.ndarray
    step: np.ndarray
    lowest: np.ndarray

    @classmethod
    def of(cls, groups: tuple[Group, ...], budget: Budget) -> Ladder:
        """Work out the allowed widths from the budget's divisor and floor."""
        full = np.array([group.size for group in groups], dtype=np.int64)
        step = np.array([budget.divisor // math.gcd(budget.divisor, group.width) for group in groups], dtype=np.int64)
        lowest = np.minimum(full, -(-budget.floor // step) * step)
        return cls(full, step, lowest)

    def down(self, counts: np.ndarray) -> np.ndarray:
        """Return the next smaller allowed width of each group, or the present one at the lowest."""
        return np.where(counts > self.lowest, np.maximum((counts - 1) // self.step * self.step, self.lowest), counts)

    def up(self, counts: np.ndarray) -> np.ndarray:
        """Return the next larger allowed width of each group, or the present one at full."""
        return np.minimum((counts // self.step + 1) * self.step, self.full)


class Solver:
    """Decides all groups together: which units stay so that the cost meets the limits.

    Within a group the lowest-scored units go first; between groups the lowest score per price goes first,
    and prices are worked out anew as units go.

    Args:
        cost: prices counts of units.
        ladder: the widths each group may have.
    """

    def __init__(self, cost: CostModel, ladder: Ladder) -> None:
        self._cost = cost
        self._ladder = ladder
        self._starts = np.concatenate([[0], np.cumsum(ladder.full)[:-1]]).astype(np.int64)

    def check(self, limits: Mapping[str, int]) -> None:
        """Make sure that the limits can be reached at all.

        Raises:
            BudgetError: even the narrowest allowed network costs more; the message says how much.
        """
        least = self._cost.total(self._ladder.lowest)
        dense = self._cost.total(self._cost.full)
        for resource, limit in limits.items():
            lowest, full = getattr(least, resource), getattr(dense, resource)
            if lowest > limit:
                raise BudgetError(
                    f"{resource}={limit:,} cannot be reached: with the floors and the divisor asked for, the "
                    f"lowest is {lowest:,} ({lowest / full:.1%} of dense). Ask for more, or lower floor= or divisor=."
                )

    def solve(self, scores: np.ndarray, limits: Mapping[str, int], preferred: np.ndarray | None = None) -> np.ndarray:
        """Return which units stay, bool of shape ``[units]``.

        Args:
            scores: importance of every unit, at least 0, shape ``[units]``; higher stays longer.
            limits: bound on each resource.
            preferred: units that stay before any other of their group, bool, shape ``[units]``; the others
                count as worthless. By default all are equal.

        Raises:
            BudgetError: the limits cannot be reached.
        """
        self.check(limits)
        preferred = np.ones(len(scores), dtype=bool) if preferred is None else preferred
        worth = np.where(preferred, np.asarray(scores, dtype=np.float64), 0.0)
        order = self._order(scores, preferred)
        sums = [np.concatenate([[0.0], np.cumsum(worth[units])]) for units in order]
        counts = self._fill(self._shrink(self._ladder.full.copy(), sums, limits), sums, limits)
        keep = np.zeros(len(scores), dtype=bool)
        for units, count in zip(order, counts, strict=True):
            keep[units[:count]] = True
        return keep

    def _order(self, scores: np.ndarray, preferred: np.ndarray) -> list[np.ndarray]:
        """Return each group's units, best first; ties go to the earlier channel."""
        ranges = [np.arange(a, a + n) for a, n in zip(self._starts, self._ladder.full, strict=True)]
        return [units[np.lexsort((-scores[units], ~preferred[units]))] for units in ranges]

    def _shrink(self, counts: np.ndarray, sums: list[np.ndarray], limits: Mapping[str, int]) -> np.ndarray:
        """Go down until nothing is above its limit: half of the excess at fixed prices, then price anew."""
        while True:
            over = {r: limit for r, limit in limits.items() if getattr(self._cost.total(counts), r) > limit}
            if not over:
                return counts
            excess = sum((getattr(self._cost.total(counts), r) - limit) / limit for r, limit in over.items())
            steps = np.maximum(counts - self._ladder.down(counts), 0)
            saved = self._priced(counts, -steps, over)
            group, lower, value, saving = self._blocks(counts, sums, saved / np.maximum(steps, 1))
            cheapest = np.argsort(value, kind="stable")
            taken = int(np.searchsorted(np.cumsum(saving[cheapest]), excess / 2)) + 1
            for at in cheapest[:taken]:
                counts[group[at]] = min(counts[group[at]], lower[at])

    def _priced(self, counts: np.ndarray, delta: np.ndarray, limits: Mapping[str, int]) -> np.ndarray:
        """Return how much of the limits each group's change is worth (all limits together)."""
        changes = self._cost.changes(counts, delta)
        return np.sum([np.abs(changes[r]) / limit for r, limit in limits.items()], axis=0)

    def _blocks(
        self, counts: np.ndarray, sums: list[np.ndarray], price: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """List every step down that any group may still take: group, width below, score per price, saving."""
        rungs = [self._rungs(g, counts[g]) for g in range(len(counts))]
        group = np.repeat(np.arange(len(counts)), [len(r) - 1 for r in rungs])
        upper = np.concatenate([r[:-1] for r in rungs])
        lower = np.concatenate([r[1:] for r in rungs])
        loss = np.concatenate([sums[g][r[:-1]] - sums[g][r[1:]] for g, r in enumerate(rungs)])
        saving = (upper - lower) * price[group]
        return group, lower, np.where(saving > 0, loss / np.maximum(saving, 1e-300), np.inf), saving

    def _rungs(self, group: int, count: int) -> np.ndarray:
        """Return the allowed widths of a group from its present one down."""
        lowest, step = int(self._ladder.lowest[group]), int(self._ladder.step[group])
        if count <= lowest:
            return np.array([count])
        first = (count - 1) // step * step
        below = np.arange(first, lowest - 1, -step) if first >= lowest else np.array([lowest])
        return np.concatenate([[count], below])

    def _fill(self, counts: np.ndarray, sums: list[np.ndarray], limits: Mapping[str, int]) -> np.ndarray:
        """Go up again wherever the next width still fits, best score per price first."""
        while True:
            steps = self._ladder.up(counts) - counts
            gains = self._cost.changes(counts, steps)
            total = self._cost.total(counts)
            fits = steps > 0
            for resource, limit in limits.items():
                fits &= getattr(total, resource) + gains[resource] <= limit
            if not fits.any():
                return counts
            worth = np.array([sums[g][n + s] - sums[g][n] for g, (n, s) in enumerate(zip(counts, steps, strict=True))])
            value = np.where(fits, worth / np.maximum(self._priced(counts, steps, limits), 1e-300), -1.0)
            at = int(np.argmax(value))
            counts[at] += steps[at]
