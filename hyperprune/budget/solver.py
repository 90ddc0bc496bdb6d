"""The solver: which units stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperprune.budget.ladder import Ladder
from hyperprune.budget.request import shown
from hyperprune.cost import CostModel
from hyperprune.errors import BudgetError

NAMED = 3  # groups that an error names


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
        self._sums_at = self._starts + np.arange(len(ladder.full))
        rungs = [ladder.rungs(group) for group in range(len(ladder.full))]
        self._group = np.repeat(np.arange(len(rungs)), [len(r) - 1 for r in rungs])
        self._upper = np.concatenate([r[:-1] for r in rungs]).astype(np.int64)
        self._lower = np.concatenate([r[1:] for r in rungs]).astype(np.int64)

    def check(self, limits: Mapping[str, int]) -> None:
        """Make sure that the limits can be reached at all.

        Raises:
            BudgetError: even the narrowest allowed network costs more; the message says how much, and which floors
                cost most.
        """
        least = self._cost.total(self._ladder.lowest)
        dense = self._cost.total(self._cost.full)
        for resource, limit in limits.items():
            lowest, full = getattr(least, resource), getattr(dense, resource)
            if lowest > limit:
                amount = f"{shown(resource, lowest).split('=')[1]} ({lowest / full:.1%} of dense)"
                hint = " An int is a count; for all of the dense cost say 1.0." if limit == 1 else ""
                raise BudgetError(f"{shown(resource, limit)} cannot be reached: {self._least(resource, amount)}{hint}")

    def _least(self, resource: str, amount: str) -> str:
        """Say what the least is, and what holds it."""
        if (self._ladder.lowest <= 1).all():
            return (
                f"the lowest is {amount}, with the fewest channels everywhere. print(hyper.coupling) says which others "
                "stay, and why. Ask for more."
            )
        return (
            f"with the floors and the divisor asked for, the lowest is {amount}. "
            f"{self._dearest_floors(resource)}Ask for more, or lower floor= or divisor=."
        )

    def _dearest_floors(self, resource: str) -> str:
        """Name the floors that hold most of a resource at the narrowest allowed widths."""
        lowest, bare = self._ladder.lowest, self._ladder.bare()
        held = -self._cost.changes(lowest, bare - lowest)[resource]
        worst = [at for at in np.argsort(-held, kind="stable")[:NAMED].tolist() if held[at] > 0]
        named = [f"{self._ladder.names[at]} ({lowest[at]} units, {shown(resource, held[at])})" for at in worst]
        return f"The floors that hold most: {', '.join(named)}. " if named else ""

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
        sums = np.concatenate([np.concatenate([[0.0], np.cumsum(worth[units])]) for units in order])
        rules = _Rules(self._cost, limits)
        counts = self._fill(self._shrink(self._ladder.highest.copy(), sums, rules), sums, rules)
        keep = np.zeros(len(scores), dtype=bool)
        for units, count in zip(order, counts, strict=True):
            keep[units[:count]] = True
        return keep

    def _order(self, scores: np.ndarray, preferred: np.ndarray) -> list[np.ndarray]:
        """Return each group's units, best first; ties go to the earlier channel."""
        ranges = [np.arange(a, a + n) for a, n in zip(self._starts, self._ladder.full, strict=True)]
        return [units[np.lexsort((-scores[units], ~preferred[units]))] for units in ranges]

    def _shrink(self, counts: np.ndarray, sums: np.ndarray, rules: _Rules) -> np.ndarray:
        """Go down until nothing is above its limit: half of the excess at fixed prices, then price anew."""
        loss = self._between(sums, self._group, self._lower, self._upper)
        while True:
            excess = rules.excess(counts)
            if not (excess > 0).any():
                return counts
            steps = counts - self._ladder.down(counts)
            price = rules.price(counts, -steps, excess > 0) / np.maximum(steps, 1)
            left = self._upper <= counts[self._group]
            group, lower = self._group[left], self._lower[left]
            last = lower == 0
            others = self._others(counts, sums, price)
            saving = (self._upper[left] - lower) * price[group] + last * others[1][group]
            lost = loss[left] + last * others[0][group]
            value = np.where(saving > 0, lost / np.maximum(saving, 1e-300), np.inf)
            cheapest = np.argsort(value, kind="stable")
            half = excess[excess > 0].sum() / 2
            taken = cheapest[: int(np.searchsorted(np.cumsum(saving[cheapest]), half)) + 1]
            np.minimum.at(counts, group[taken], lower[taken])
            counts = self._ladder.closed(counts)

    def _others(self, counts: np.ndarray, sums: np.ndarray, price: np.ndarray) -> np.ndarray:
        """Return score and price of what else goes when a group's last unit closes a branch, ``[2, groups]``."""
        found = np.zeros((2, len(counts)))
        for together in (list(branch) for branch in self._ladder.branches):
            at = np.array(together)
            held = np.stack([self._between(sums, at, np.zeros_like(at), counts[at]), counts[at] * price[at]])
            found[:, at] = held.sum(axis=1, keepdims=True) - held
        return found

    def _between(self, sums: np.ndarray, group: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the score that groups hold between two widths each."""
        start = self._sums_at[group]
        return sums[start + high] - sums[start + low]

    def _fill(self, counts: np.ndarray, sums: np.ndarray, rules: _Rules) -> np.ndarray:
        """Go up again wherever the next width still fits, best score per price first; closed branches stay closed."""
        every = np.arange(len(counts))
        while True:
            upper = self._ladder.up(counts)
            fits = (upper > counts) & (counts > 0) & rules.fit(counts, upper - counts)
            if not fits.any():
                return counts
            worth = self._between(sums, every, counts, upper)
            price = rules.price(counts, upper - counts, slice(None))
            at = int(np.argmax(np.where(fits, worth / np.maximum(price, 1e-300), -1.0)))
            counts[at] = upper[at]


class _Rules:
    """All limits side by side: one rule for each row of the meter of a limited resource."""

    def __init__(self, cost: CostModel, limits: Mapping[str, int]) -> None:
        self._meters = [cost.meters[resource] for resource in limits]
        rows = [len(meter.values(cost.full)) for meter in self._meters]
        self._bound = np.repeat(np.array(list(limits.values()), dtype=np.int64), rows)
        self._scale = np.maximum(self._bound, 1)[:, None]

    def excess(self, counts: np.ndarray) -> np.ndarray:
        """Return how far each rule is exceeded, as a share of its bound; negative where there is room."""
        values = np.concatenate([meter.values(counts) for meter in self._meters])
        return (values - self._bound) / self._scale[:, 0]

    def fit(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Say for each group whether all rules hold if it alone changes, bool of shape ``[groups]``."""
        values = np.concatenate([meter.values(counts) for meter in self._meters])
        return (values[:, None] + self._changes(counts, delta) <= self._bound[:, None]).all(axis=0)

    def price(self, counts: np.ndarray, delta: np.ndarray, which: np.ndarray | slice) -> np.ndarray:
        """Return how much of the bounds each group's change is worth (all chosen rules together)."""
        return np.sum(np.abs(self._changes(counts, delta)[which]) / self._scale[which], axis=0)

    def _changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return np.concatenate([meter.changes(counts, delta) for meter in self._meters])
