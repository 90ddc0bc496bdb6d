"""Hundreds of random budgets on real coupling maps: never above, nothing left that fits, every bound held."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest

from hyperprune import Budget
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import CostModel
from hyperprune.coupling import CouplingMap, Group
from hyperprune.errors import BudgetError
from hyperprune.metering.networks import Tailor
from hyperprune.metering.recorder import Storage, record
from tests.budget_networks import NETWORKS, chain, fully_priced, hyperized
from tests.models import count

SHARES = {"macs": 0.05, "params": 0.05, "activation_bytes": 0.25, "latency": 0.1}


def drawn_budget(coupling: CouplingMap, rng: np.random.Generator) -> Budget:
    """Draw limits on one to four resources, a divisor, a floor, and bounds of single layers and of globs."""
    asked: dict[str, Any] = {name: float(rng.uniform(low, 1)) for name, low in SHARES.items() if rng.random() < 0.4}
    asked = asked or {"macs": float(rng.uniform(0.1, 1))}
    names = [group.makers[0] if group.makers else group.name for group in coupling.groups]
    sizes = {name: group.size * group.width for name, group in zip(names, coupling.groups, strict=True)}
    floors, ceilings = {}, {}
    for name in rng.choice(names, size=int(rng.integers(0, 4)), replace=False).tolist():
        floors[pattern(name, rng)] = int(rng.integers(1, sizes[name] // 2 + 2))
    for name in rng.choice(names, size=int(rng.integers(0, 4)), replace=False).tolist():
        ceilings[pattern(name, rng)] = int(rng.integers(sizes[name] // 2, sizes[name] + 1))
    divisor, floor = int(rng.choice([1, 1, 2, 4, 8, 16, 32])), int(rng.choice([1, 1, 1, 2, 5]))
    return Budget(**asked, divisor=divisor, floor=floor, floors=floors, ceilings=ceilings)


def pattern(name: str, rng: np.random.Generator) -> str:
    return name if rng.random() < 0.7 else f"{name.rpartition('.')[0]}.*" if "." in name else name


def matching(group: Group, bounds: Any) -> list[int]:
    """Return the bounds that apply to a group, by another way than the ladder's."""
    paths = [path.split(".") for path in (group.name, *group.makers)]
    modules = {".".join(path[: depth + 1]) for path in paths for depth in range(len(path))}
    return [channels for glob, channels in bounds.items() if any(fnmatchcase(module, glob) for module in modules)]


def assert_met(coupling: CouplingMap, cost: CostModel, budget: Budget, counts: np.ndarray) -> None:
    limits, total = budget.limits(cost.total(cost.full)), cost.total(counts)
    assert all(getattr(total, resource) <= limit for resource, limit in limits.items()), "above the budget"
    for at, group in enumerate(coupling.groups):
        channels, whole = counts[at] * group.width, group.size * group.width
        assert channels % budget.divisor == 0 or counts[at] == group.size
        assert counts[at] >= min(budget.floor, group.size)
        assert all(channels >= min(floor, whole) for floor in matching(group, budget.floors))
        assert all(channels <= ceiling for ceiling in matching(group, budget.ceilings))
        wider = next_width(group, int(counts[at]), budget)
        if wider is not None:
            more = counts.copy()
            more[at] = wider
            assert any(getattr(cost.total(more), resource) > limit for resource, limit in limits.items()), (
                f"{group.name}: {wider} units would still fit"
            )


def next_width(group: Group, units: int, budget: Budget) -> int | None:
    """Return the next larger width that divisor and ceilings allow, found one unit at a time."""
    for wider in range(units + 1, group.size + 1):
        fits = all(wider * group.width <= ceiling for ceiling in matching(group, budget.ceilings))
        if fits and (wider == group.size or wider * group.width % budget.divisor == 0):
            return wider
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_random_budgets_are_met_and_leave_no_unit_that_fits(name: str) -> None:
    coupling, cost = hyperized(name).coupling, fully_priced(name)
    rng, solved, refused = np.random.default_rng(7), 0, 0
    for _ in range(100):
        budget = drawn_budget(coupling, rng)
        scores = rng.exponential(size=coupling.units) * rng.choice([0.0, 1e-9, 1.0], p=[0.1, 0.2, 0.7])
        try:
            ladder = Ladder.of(coupling.groups, budget)
            keep = Solver(cost, ladder).solve(scores, budget.limits(cost.total(cost.full)))
        except BudgetError:
            refused += 1
            continue
        solved += 1
        assert_met(coupling, cost, budget, count(keep, coupling))
    assert solved >= 50, f"{solved} solved, {refused} refused"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit"])
def test_random_budgets_with_depth_are_met_and_close_whole_branches(name: str) -> None:
    coupling, cost = hyperized(name).coupling, fully_priced(name)
    rng, closed = np.random.default_rng(9), 0
    for _ in range(60):
        budget = Budget(macs=float(rng.uniform(0.05, 0.6)), divisor=int(rng.choice([1, 2, 8])), depth=True)
        limits = budget.limits(cost.total(cost.full))
        scores = rng.exponential(size=coupling.units)
        for branch in coupling.branches:
            for group in branch.groups:
                scores[coupling.groups[group].units] *= rng.choice([1e-6, 1.0])
        keep = Solver(cost, Ladder.of(coupling.groups, budget, coupling.branches)).solve(scores, limits)
        counts = count(keep, coupling)
        empty = {frozenset(b.groups) for b in coupling.branches if not counts[list(b.groups)].any()}
        assert set(np.flatnonzero(counts == 0).tolist()) == set().union(*empty)
        closed += len(empty)
        assert cost.total(counts).macs <= limits["macs"]
        for at, group in enumerate(coupling.groups):
            wider = next_width(group, int(counts[at]), budget) if counts[at] else None
            if wider is not None:
                more = counts.copy()
                more[at] = wider
                assert cost.total(more).macs > limits["macs"], f"{group.name}: {wider} units would still fit"
    assert closed > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_refused_cannot_be_met_by_the_narrowest_network(name: str) -> None:
    coupling, cost = hyperized(name).coupling, fully_priced(name)
    rng, refused = np.random.default_rng(8), 0
    for _ in range(60):
        budget = drawn_budget(coupling, rng)
        try:
            ladder = Ladder.of(coupling.groups, budget)
        except BudgetError:
            continue  # a floor above a ceiling: tests/test_budget.py
        limits, least = budget.limits(cost.total(cost.full)), cost.total(ladder.lowest)
        if any(getattr(least, resource) > limit for resource, limit in limits.items()):
            refused += 1
            with pytest.raises(BudgetError, match="cannot be reached"):
                Solver(cost, ladder).check(limits)
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_the_memory_of_a_real_slim_network_stays_within_its_budget(name: str, share: float) -> None:
    hyper, cost = hyperized(name), fully_priced(name)
    budget = Budget(activation_bytes=share)
    scores = np.random.default_rng(3).exponential(size=hyper.coupling.units)
    limits = budget.limits(cost.total(cost.full))
    keep = Solver(cost, Ladder.of(hyper.coupling.groups, budget)).solve(scores, limits)
    tailor = Tailor(hyper)
    network = tailor.slim(keep)
    given = [*network.parameters(), *network.buffers(), *tailor.inputs.tensors()]
    peak = highest(record(lambda: tailor.run(network), given))
    assert peak == cost.total(count(keep, hyper.coupling)).activation_bytes
    assert 0.9 * limits["activation_bytes"] < peak <= limits["activation_bytes"]


def highest(storages: list[Storage]) -> int:
    calls = range(max(storage.died for storage in storages) + 1)
    return max(sum(s.bytes for s in storages if s.born <= call < s.died) for call in calls)


@pytest.mark.parametrize(
    ("layers", "width", "budget"),
    [
        (200, 250, Budget(macs=0.5)),
        (200, 250, Budget(macs=0.1, divisor=8)),
        (50, 1000, Budget(macs=0.3, params=0.3)),
        (1000, 50, Budget(macs=0.5)),
    ],
    ids=str,
)
def test_fifty_thousand_units_are_decided_within_a_second(layers: int, width: int, budget: Budget) -> None:
    coupling, cost = chain(layers, width)
    assert coupling.units == 50_000
    scores, limits = np.random.default_rng(0).exponential(size=50_000), budget.limits(cost.total(cost.full))
    started = time.thread_time()
    keep = Solver(cost, Ladder.of(coupling.groups, budget)).solve(scores, limits)
    assert time.thread_time() - started < 1.0
    assert_met(coupling, cost, budget, count(keep, coupling))
