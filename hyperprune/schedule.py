"""A budget over the course of a search: what the network may cost by then, and which units fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from hyperprune.budget import Budget, Solver
from hyperprune.cost import CHEAPEST, Cost
from hyperprune.hyper import HyperModel, allowed_widths
from hyperprune.metering import priced, settled


class Schedule:
    """What units cost, and which of them fit into a limit that falls linearly from the present cost to the budget.

    Attributes:
        dense: cost of the network with every unit.
        limits: bound on each budgeted resource at the end.
        starts: from where each limit falls: what the network took at ``begin``, the dense cost before it.

    Raises:
        BudgetError: the budget is above the dense cost or below what the floors allow.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4))
        >>> schedule = Schedule(hyper, Budget(macs=0.5))
        >>> schedule.limits, schedule.limits_at(0.5)
        ({'macs': 24}, {'macs': 36})
        >>> schedule.kept(np.arange(8.0), hyper.living(), 0.5).tolist()
        [False, False, True, True, True, True, True, True]
    """

    def __init__(self, hyper: HyperModel, budget: Budget) -> None:
        self._of_unit = hyper.coupling.of_unit()
        self._sizes = [group.size for group in hyper.coupling.groups]
        self._budget = budget
        self._ladder = allowed_widths(hyper, budget)
        self._cost = priced(hyper, budget)
        self.dense = self._cost.total(self._cost.full)
        self.limits = budget.limits(self.dense)
        self._solver = Solver(self._cost, self._ladder)
        self._solver.check(self.limits)
        self.starts: dict[str, int] = {}

    def cost(self, living: Tensor) -> Cost:
        """Return what the network of some units costs; bool, shape ``[units]``."""
        return self._cost.total(self._counts(living))

    def begin(self, living: Tensor) -> Iterator[tuple[str, int, int]]:
        """Let the limits fall from what these units cost; yield each resource below its limit, and the two amounts."""
        cost = self.cost(living)
        self.starts = {resource: of(cost, resource) for resource in self.limits}
        for resource, limit in self.limits.items():
            if self.starts[resource] < limit:
                yield resource, self.starts[resource], limit

    def limits_at(self, share: float) -> dict[str, int]:
        """Return the limits when so much of the search is over, in [0, 1]."""
        starts = self.starts or {resource: of(self.dense, resource) for resource in self.limits}
        limits = self.limits.items()
        return {r: round(max(starts[r], limit) * (1 - share) + limit * share) for r, limit in limits}

    def kept(self, scores: np.ndarray, alive: Tensor, share: float) -> np.ndarray:
        """Return which units stay at a point of the search, bool, shape ``[units]``; of equals, those alive."""
        return self._solver.solve(scores, self.limits_at(share), preferred=_array(alive))

    def kept_at_last(self, scores: np.ndarray, alive: Tensor) -> np.ndarray:
        """As ``kept`` at the end, where a latency is measured once more and the limit corrected."""
        solver, preferred = self._solver, _array(alive)
        return settled(self._cost, self.limits, lambda limits: solver.solve(scores, limits, preferred=preferred))

    def ratio(self, living: Tensor) -> float:
        """Return the share that is left of the first budgeted resource."""
        resource = self._first()
        return of(self.cost(living), resource) / of(self.dense, resource)

    def target(self) -> float:
        """Return the share of the first budgeted resource that may be left at the end."""
        return self.limits[self._first()] / of(self.dense, self._first())

    def unmet(self, living: Tensor) -> str:
        """Say in words which resources are above their limits; empty if none is. Latency is met nearly: left out."""
        cost = self.cost(living)
        takes = {resource: of(cost, resource) for resource in self.limits if resource != "latency_ns"}
        above = [resource for resource in takes if takes[resource] > self.limits[resource]]
        return ", ".join(f"{takes[resource]:,} {resource} instead of {self.limits[resource]:,}" for resource in above)

    def jumps(self, before: Tensor, after: Tensor) -> Iterator[tuple[str, float, float]]:
        """Yield for each resource the share of the dense cost cut between two networks, and the share cut in all."""
        costs = [self.cost(mask) for mask in (before, after)]
        for resource, limit in self.limits.items():
            dense = of(self.dense, resource)
            yield resource, (of(costs[0], resource) - of(costs[1], resource)) / dense, 1 - limit / dense

    def relative_prices(self, living: Tensor) -> np.ndarray:
        """Return each unit's price of the first budgeted resource, relative to the mean over living units."""
        counts = self._counts(living)
        prices = np.abs(self._cost.changes(counts, -np.ones_like(counts))[self._first()]).astype(float)
        mean = max(float((prices * counts).sum() / max(counts.sum(), 1)), 1e-300)
        prices = np.maximum(prices, CHEAPEST * mean)
        found: np.ndarray = prices[self._of_unit] / mean
        return found

    def about(self) -> dict[str, Any]:
        """Say what network and budget this is, in numbers and strings.

        A latency stands there as it was asked for: its dense cost is measured anew in every program.
        """
        asked = self._budget.asked()
        return {
            "groups": self._sizes,
            "dense cost": [self.dense.macs, self.dense.params],
            "budget": {r: asked[r] if r == "latency_ns" else limit for r, limit in self.limits.items()},
            "divisor or floor": [self._ladder.step.tolist(), self._ladder.lowest.tolist()],
            "ceiling": self._ladder.highest.tolist(),
        }

    def _first(self) -> str:
        return next(iter(self.limits))

    def _counts(self, living: Tensor) -> np.ndarray:
        return np.bincount(self._of_unit[_array(living)], minlength=len(self._sizes))


def of(cost: Cost, resource: str) -> int:
    """Return what a network takes of a resource.

    Example:
        >>> of(Cost(macs=8, params=4), "params")
        4
    """
    return int(getattr(cost, resource))


def _array(mask: Tensor) -> np.ndarray:
    found: np.ndarray = mask.cpu().numpy()
    return found
