"""What a budget needs to be met: a cost model with all its resources, and a last look at the real clock."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch

from hyperprune.budget import Budget
from hyperprune.cost import CostModel, LatencyModel
from hyperprune.errors import BudgetError
from hyperprune.hyper import HyperModel
from hyperprune.metering.activations import measure_activations
from hyperprune.metering.latency import fit_latency

ROUNDS = 6  # networks that are timed until one is near enough
NEAR = 0.015  # of the latency asked for: no further round is worth its time
CLEAR = 0.03  # of the latency asked for: a difference that is no noise of the clock
PROMISED = 0.05  # of the latency asked for: further off than this is worth a warning

Solve = Callable[[dict[str, int]], np.ndarray]


def priced(hyper: HyperModel, budget: Budget) -> CostModel:
    """Return a cost model that prices everything the budget limits; what ``hyper.cost`` lacks is measured.

    Raises:
        BudgetError: memory cannot be told from widths, or latency is budgeted in several processes at once.

    Example:
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4))
        >>> cost = priced(hyper, Budget(activation_bytes=0.5))
        >>> cost.total(cost.full)
        Cost(macs=144, params=58, activation_bytes=192)
    """
    cost = hyper.cost
    lacking = budget.asked().keys() - cost.meters.keys()
    if "latency_ns" in budget.asked():
        _require_one_process()
    if "activation_bytes" in lacking:
        cost = cost.metered("activation_bytes", measure_activations(hyper).peak())
    if "latency_ns" in lacking:
        cost = cost.metered("latency_ns", fit_latency(hyper, divisor=budget.divisor))
    return cost


def _require_one_process() -> None:
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise BudgetError(
            "a latency is measured, and several processes would measure different ones and prune differently. Budget "
            "macs= there; or find the widths in one process, with prune(model, x, Budget(latency_ms=...)), first."
        )


def settled(cost: CostModel, limits: Mapping[str, int], solve: Solve) -> np.ndarray:
    """Solve, and where latency is limited, time the slim network beside the dense one and correct the limit.

    The other limits stand as they are in every round. The network nearest to the latency asked for is returned; a
    warning says how far it is off if that is more than 5 %, unless it is faster and nothing is left to add.

    Args:
        cost: prices every limited resource.
        limits: bound on each resource.
        solve: returns which units stay under such limits.

    Returns:
        which units stay, bool of shape ``[units]``.
    """
    model = cost.meters.get("latency_ns")
    if "latency_ns" not in limits or not isinstance(model, LatencyModel):
        return solve(dict(limits))
    search = _Correction(limits["latency_ns"], model)
    tried: list[np.ndarray] = []
    while len(tried) < ROUNDS and not search.near():
        try:
            keep = solve({**limits, "latency_ns": search.limit})
        except BudgetError:
            if not tried:
                raise
            break
        if any((keep == other).all() for other in tried):
            break
        tried.append(keep)
        search.learn(keep, _looked_at(keep, model, search))
    search.warn()
    return search.best


def _looked_at(keep: np.ndarray, model: LatencyModel, search: _Correction) -> float:
    """Time a network; once more if it seems near: the nearest of several noisy readings flatters."""
    ratio = model.clock.ratio(keep)
    return (ratio + model.clock.ratio(keep)) / 2 if abs(search.off(ratio)) <= NEAR else ratio


class _Correction:
    """Moves the limit given to the model until the clock shows the latency asked for."""

    def __init__(self, asked: int, model: LatencyModel) -> None:
        self.limit = asked
        self._full = model.dense_ns
        self._wanted = asked / model.dense_ns
        self._below, self._above = 0, 2 * model.dense_ns
        self._off = np.inf
        self.best: np.ndarray = np.zeros(0, dtype=bool)

    def near(self) -> bool:
        """Say whether the best network is near enough."""
        return abs(self._off) <= NEAR

    def off(self, ratio: float) -> float:
        """Return how far a share of the dense latency is from the one asked for, relative to it."""
        return ratio / self._wanted - 1

    def learn(self, keep: np.ndarray, ratio: float) -> None:
        """Take in a measurement, and choose the next limit: in proportion, or halfway between the nearest two."""
        off = self.off(ratio)
        if abs(off) < abs(self._off):
            self._off, self.best = off, keep
        if off > CLEAR:
            self._above = min(self._above, self.limit)
        if off < -CLEAR:
            self._below = max(self._below, self.limit)
        nearer = round(self.limit / (1 + off))
        if not self._below < nearer < self._above:
            nearer = (self._below + self._above) // 2
        self.limit = min(max(nearer, 1), self._full)

    def warn(self) -> None:
        """Say how far the best network is off, if it is slower than promised, or could have been slower."""
        held_back = self._off < 0 and self.limit >= self._full  # by another limit, or nothing is left to add
        if abs(self._off) > PROMISED and not held_back:
            warnings.warn(
                f"latency: {self._wanted * self._full / 1e6:.3f} ms were asked for, the nearest network found takes "
                f"{(1 + self._off) * self._wanted * self._full / 1e6:.3f} ms ({self._off:+.1%}; dense "
                f"{self._full / 1e6:.3f} ms). Is the machine busy? print(fit_latency(hyper)) tells the model's error.",
                stacklevel=4,
            )
