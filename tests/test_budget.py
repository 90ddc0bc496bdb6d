"""The budget is met: never above it, and no unit is left out that would still fit."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from hyperprune import Budget
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import Cost, CostModel
from hyperprune.coupling import CouplingMap, Group
from hyperprune.errors import BudgetError
from tests.models import SMALL, count, couple, small


@cache
def analysed(name: str) -> tuple[CouplingMap, CostModel]:
    torch.manual_seed(0)
    model, x = small(name)
    coupling = couple(model, x)
    return coupling, CostModel(coupling, model)


def group(name: str, start: int, size: int, width: int = 1) -> Group:
    return Group(name, start, size, width, (name,), (), ())


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        (Budget(macs=0.5), {"macs": 500}),
        (Budget(macs=1.0), {"macs": 1001}),
        (Budget(macs=1001), {"macs": 1001}),
        (Budget(macs=1), {"macs": 1}),
        (Budget(params=0.1), {"params": 5}),
        (Budget(macs=0.9, params=20), {"macs": 900, "params": 20}),
    ],
    ids=str,
)
def test_a_float_is_a_share_rounded_down_and_an_int_a_count(budget: Budget, limits: dict[str, int]) -> None:
    assert budget.limits(Cost(macs=1001, params=57)) == limits


@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize(
    "value", [0.0, -0.5, 1.0001, 2.0, float("nan"), float("inf"), 0, -3, True, "0.5", [0.5], 1 + 2j], ids=repr
)
def test_a_bad_amount_is_refused(resource: str, value: Any) -> None:
    with pytest.raises(BudgetError, match=resource):
        Budget(**{resource: value})


@pytest.mark.parametrize("name", ["divisor", "floor"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "8"], ids=repr)
def test_a_bad_divisor_or_floor_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BudgetError, match=name):
        Budget(macs=0.5, **{name: value})


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"macs=0\.5"):
        Budget()


@pytest.mark.parametrize("resource", ["macs", "params"])
def test_a_count_above_the_dense_cost_is_refused_with_that_cost(resource: str) -> None:
    with pytest.raises(BudgetError, match=rf"{resource}=2,000 is above the dense network's 1,001"):
        Budget(**{resource: 2000}).limits(Cost(macs=1001, params=1001))


@pytest.mark.parametrize(
    ("size", "width", "divisor", "floor", "widths"),
    [
        (6, 1, 1, 1, [6, 5, 4, 3, 2, 1]),
        (20, 1, 8, 1, [20, 16, 8]),
        (16, 1, 8, 9, [16]),
        (6, 1, 8, 1, [6]),
        (6, 1, 1, 4, [6, 5, 4]),
        (6, 1, 1, 9, [6]),
        (16, 4, 8, 1, [16, 14, 12, 10, 8, 6, 4, 2]),
        (9, 3, 8, 1, [9, 8]),
    ],
)
def test_the_ladder_of_widths(size: int, width: int, divisor: int, floor: int, widths: list[int]) -> None:
    ladder = Ladder.of((group("a", 0, size, width),), Budget(macs=0.5, divisor=divisor, floor=floor))
    down, found = np.array([size]), []
    while not found or down[0] != found[-1]:
        found.append(int(down[0]))
        down = ladder.down(down)
    assert found == widths
    up = [int(ladder.up(np.array([w]))[0]) for w in widths]
    assert up == [size, *widths[:-1]]


def every_rung(ladder: Ladder, counts: np.ndarray) -> list[np.ndarray]:
    """Return the counts with any one group one rung wider."""
    wider = []
    for at in range(len(counts)):
        up = counts.copy()
        up[at] = ladder.up(counts)[at]
        if up[at] != counts[at]:
            wider.append(up)
    return wider


@pytest.mark.parametrize("name", SMALL)
def test_hundreds_of_random_budgets_are_met_and_leave_no_unit_that_fits(name: str) -> None:
    coupling, cost = analysed(name)
    rng, solved = np.random.default_rng(0), 0
    dense = cost.total(cost.full)
    for _ in range(100):
        asked: dict[str, Any] = {r: float(rng.uniform(0.05, 1)) for r in ("macs", "params") if rng.random() < 0.7}
        asked = asked or {"macs": float(rng.uniform(0.05, 1))}
        budget = Budget(**asked, divisor=int(rng.choice([1, 1, 2, 4])), floor=int(rng.choice([1, 1, 2, 3])))
        ladder, limits = Ladder.of(coupling.groups, budget), budget.limits(dense)
        scores = rng.choice(
            [rng.random(coupling.units), rng.exponential(1e-9, coupling.units), np.zeros(coupling.units)]
        )
        least = cost.total(ladder.lowest)
        if any(getattr(least, r) > limit for r, limit in limits.items()):
            with pytest.raises(BudgetError, match="cannot be reached"):
                Solver(cost, ladder).solve(scores, limits)
            continue
        solved += 1
        counts = count(Solver(cost, ladder).solve(scores, limits), coupling)
        total = cost.total(counts)
        assert all(getattr(total, r) <= limit for r, limit in limits.items())
        for wider in every_rung(ladder, counts):
            more = cost.total(wider)
            assert any(getattr(more, r) > limit for r, limit in limits.items()), "a unit that fits was left out"
        assert (counts >= np.minimum(budget.floor, cost.full)).all()
        widths = counts * [g.width for g in coupling.groups]
        assert ((widths % budget.divisor == 0) | (counts == cost.full)).all()
    assert solved > 40


@pytest.mark.parametrize("name", SMALL)
def test_within_a_group_the_best_scores_stay(name: str) -> None:
    coupling, cost = analysed(name)
    scores = np.random.default_rng(1).random(coupling.units)
    keep = Solver(cost, Ladder.of(coupling.groups, Budget(macs=0.5))).solve(
        scores, {"macs": cost.total(cost.full).macs // 2}
    )
    for g in coupling.groups:
        kept, gone = scores[g.units][keep[g.units]], scores[g.units][~keep[g.units]]
        assert not len(gone) or kept.min() > gone.max()


def test_preferred_units_stay_before_others_of_their_group() -> None:
    coupling, cost = analysed("sequential")
    preferred = np.random.default_rng(2).random(coupling.units) < 0.5
    scores = np.where(preferred, 1.0, 100.0)
    solver = Solver(cost, Ladder.of(coupling.groups, Budget(macs=0.5)))
    keep = solver.solve(scores, {"macs": cost.total(cost.full).macs // 2}, preferred)
    for g in coupling.groups:
        kept, first = keep[g.units], preferred[g.units]
        assert kept[first].all() or not kept[~first].any()


def test_a_dear_group_gives_way_before_a_cheap_one_of_equal_scores() -> None:
    coupling, cost = analysed("sequential")
    counts = count(
        Solver(cost, Ladder.of(coupling.groups, Budget(macs=0.6))).solve(
            np.ones(coupling.units), {"macs": int(0.6 * cost.total(cost.full).macs)}
        ),
        coupling,
    )
    prices = np.abs(cost.changes(cost.full, -np.ones_like(cost.full))["macs"])
    assert counts[prices.argmin()] == cost.full[prices.argmin()]
    assert counts[prices.argmax()] < cost.full[prices.argmax()]


def test_the_whole_budget_keeps_the_whole_network() -> None:
    coupling, cost = analysed("residual")
    keep = Solver(cost, Ladder.of(coupling.groups, Budget(macs=1.0))).solve(
        np.zeros(coupling.units), Budget(macs=1.0).limits(cost.total(cost.full))
    )
    assert keep.all()


def test_the_lowest_reachable_cost_stands_in_the_error_and_can_be_asked_for() -> None:
    coupling, cost = analysed("residual")
    budget = Budget(macs=1, floor=2)
    solver = Solver(cost, Ladder.of(coupling.groups, budget))
    lowest = cost.total(np.full(len(cost.full), 2)).macs
    with pytest.raises(BudgetError, match=rf"lowest is {lowest:,} "):
        solver.check({"macs": 1})
    keep = solver.solve(np.ones(coupling.units), {"macs": lowest})
    assert count(keep, coupling).tolist() == [2] * len(cost.full)
    with pytest.raises(BudgetError):
        solver.solve(np.ones(coupling.units), {"macs": lowest - 1})


GROUPS = (
    Group("stem", 0, 16, 1, ("stem", "layer1.0.conv2"), ("layer1.0.conv1",), ()),
    Group("layer1.0.conv1", 16, 32, 1, ("layer1.0.conv1",), ("layer1.0.conv2",), ()),
    Group("layer2.attention", 48, 6, 8, ("layer2.attention",), ("layer2.out",), ()),
)


@pytest.mark.parametrize(
    ("options", "lowest", "highest"),
    [
        ({"floors": {"stem": 5}}, [5, 1, 1], [16, 32, 6]),
        ({"floors": {"layer1.*": 10}}, [10, 10, 1], [16, 32, 6]),  # the stem's channels are layer1.0.conv2's too
        ({"floors": {"layer1": 10, "layer1.0.conv1": 20}}, [10, 20, 1], [16, 32, 6]),
        ({"floors": {"layer2.attention": 20}}, [1, 1, 3], [16, 32, 6]),  # channels, in units of eight
        ({"floors": {"*": 1000}}, [16, 32, 6], [16, 32, 6]),
        ({"floors": {"stem": 5}, "floor": 7}, [7, 7, 6], [16, 32, 6]),
        ({"floors": {"stem": 5}, "divisor": 4}, [8, 4, 1], [16, 32, 6]),
        ({"ceilings": {"layer1.0.conv1": 20}}, [1, 1, 1], [16, 20, 6]),
        ({"ceilings": {"layer1.0.conv1": 21}, "divisor": 4}, [4, 4, 1], [16, 20, 6]),
        ({"ceilings": {"*": 30, "stem": 3}}, [1, 1, 1], [3, 30, 3]),
        ({"ceilings": {"*": 1000}}, [1, 1, 1], [16, 32, 6]),
        ({"floors": {"stem": 8}, "ceilings": {"stem": 8}}, [8, 1, 1], [8, 32, 6]),
    ],
    ids=str,
)
def test_floors_and_ceilings_of_layers_count_channels(
    options: dict[str, Any], lowest: list[int], highest: list[int]
) -> None:
    ladder = Ladder.of(GROUPS, Budget(macs=0.5, **options))
    assert ladder.lowest.tolist() == lowest
    assert ladder.highest.tolist() == highest
    assert (ladder.up(ladder.highest) == ladder.highest).all()
    assert (ladder.down(ladder.lowest) == ladder.lowest).all()


@pytest.mark.parametrize("what", ["floors", "ceilings"])
def test_a_pattern_that_matches_nothing_is_refused_with_what_is_near(what: str) -> None:
    with pytest.raises(BudgetError, match=rf"{what}: no prunable layer matches 'layer1.0.conv3'.*Did you mean layer1"):
        Ladder.of(GROUPS, Budget(macs=0.5, **{what: {"layer1.0.conv3": 4}}))


def test_a_floor_above_a_ceiling_is_refused_with_both() -> None:
    with pytest.raises(BudgetError, match=r"stem: a ceiling of 8 channels.*keeps at least 12 of its 16"):
        Ladder.of(GROUPS, Budget(macs=0.5, floors={"stem": 12}, ceilings={"stem": 8}))
    with pytest.raises(BudgetError, match=r"stem: a ceiling of 8 channels.*divisor=16"):
        Ladder.of(GROUPS, Budget(macs=0.5, divisor=16, ceilings={"stem": 8}))


@pytest.mark.parametrize("what", ["floors", "ceilings"])
@pytest.mark.parametrize("value", [64, {"a": 0}, {"a": 2.5}, {"a": True}, {3: 4}, [("a", 4)]], ids=repr)
def test_bad_bounds_are_refused(what: str, value: Any) -> None:
    with pytest.raises(BudgetError, match=what):
        Budget(macs=0.5, **{what: value})


def test_floors_that_put_a_budget_out_of_reach_are_named_with_what_they_hold() -> None:
    coupling, cost = analysed("residual")
    budget = Budget(macs=0.3, floors={"block1.conv1": 8, "stem": 5})
    dense = cost.total(cost.full)
    with pytest.raises(BudgetError, match=r"The floors that hold most: .*stem \(5 units, macs=[\d,]+\)") as caught:
        Solver(cost, Ladder.of(coupling.groups, budget)).check(budget.limits(dense))
    assert "block1.conv1 (8 units, macs=" in str(caught.value)


def test_a_ceiling_holds_even_where_the_budget_would_keep_everything() -> None:
    coupling, cost = analysed("residual")
    budget = Budget(macs=1.0, ceilings={"block1.conv1": 3})
    solver = Solver(cost, Ladder.of(coupling.groups, budget))
    counts = count(solver.solve(np.ones(coupling.units), budget.limits(cost.total(cost.full))), coupling)
    names = [group.name for group in coupling.groups]
    expected = cost.full.copy()
    expected[names.index("block1.conv1")] = 3
    assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("budget", "limit"),
    [(Budget(latency=0.5), 5_000_000), (Budget(latency_ms=4), 4_000_000), (Budget(latency_ms=0.25), 250_000)],
    ids=str,
)
def test_latency_is_a_fraction_or_milliseconds(budget: Budget, limit: int) -> None:
    assert budget.limits(Cost(1, 1, latency_ns=10_000_001)) == {"latency_ns": limit}


def test_latency_above_the_dense_one_is_refused_in_milliseconds() -> None:
    with pytest.raises(BudgetError, match=r"latency_ms=20 is above the dense network's 10"):
        Budget(latency_ms=20).limits(Cost(1, 1, latency_ns=10_000_000))


@pytest.mark.parametrize(
    "options",
    [
        {"latency": 1},
        {"latency": 20.0},
        {"latency": 0.0},
        {"latency": "fast"},
        {"latency_ms": 0},
        {"latency_ms": -3.0},
        {"latency_ms": float("nan")},
        {"latency_ms": True},
        {"latency_ms": "20"},
        {"latency": 0.5, "latency_ms": 20},
        {"activation_bytes": 0},
        {"activation_bytes": 1.5},
    ],
    ids=str,
)
def test_a_bad_latency_or_memory_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"latency|activation_bytes"):
        Budget(**options)


def test_a_resource_that_is_not_priced_is_refused() -> None:
    with pytest.raises(BudgetError, match="does not price activation_bytes"):
        Budget(activation_bytes=0.5).limits(Cost(10, 10))
