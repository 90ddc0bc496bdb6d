"""Which units stay: against a plain greedy choice, one unit at a time, where prices never change."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest

from hyperprune import Budget
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import Cost
from hyperprune.errors import BudgetError
from tests.budget.test_ladder import groups


@dataclass(frozen=True)
class Linear:
    """A meter of fixed prices, ``[rows, groups]``: the largest row counts."""

    prices: np.ndarray

    def values(self, counts: np.ndarray) -> np.ndarray:
        return self.prices @ np.asarray(counts)

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return self.prices * delta


class Prices:
    """A cost model of fixed prices, per unit of each group."""

    def __init__(self, full: list[int], **prices: list[list[int]]) -> None:
        self.full = np.array(full)
        self.meters = {resource: Linear(np.array(rows)) for resource, rows in prices.items()}

    def total(self, counts: np.ndarray) -> Cost:
        found = {resource: int(meter.values(counts).max()) for resource, meter in self.meters.items()}
        return Cost(**{"macs": 1, "params": 1, **found})

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> dict[str, np.ndarray]:
        return {
            resource: (meter.values(counts)[:, None] + meter.changes(counts, delta)).max(0) - meter.values(counts).max()
            for resource, meter in self.meters.items()
        }


def solver(prices: Prices, **options: object) -> Solver:
    names = [(f"g{at}", int(size), 1) for at, size in enumerate(prices.full)]
    return Solver(prices, Ladder.of(groups(*names), Budget(macs=1, **options)))  # type: ignore[arg-type]


def parts(keep: np.ndarray, full: np.ndarray) -> list[list[bool]]:
    return [part.tolist() for part in np.split(keep, np.cumsum(full)[:-1])]


def greedy(scores: np.ndarray, full: np.ndarray, price: np.ndarray, limit: int, step: int) -> list[int]:
    """Take the cheapest rung away until the limit holds, then give back the dearest that fits."""
    held = [np.sort(part)[::-1] for part in np.split(scores, np.cumsum(full)[:-1])]
    counts = full.tolist()

    def down(at: int) -> int:
        return max((counts[at] - 1) // step * step, min(step, full[at]))

    def up(at: int) -> int:
        return min((counts[at] // step + 1) * step, full[at])

    while counts @ price > limit:
        options = [at for at in range(len(full)) if down(at) < counts[at] and price[at]]
        at = min(options, key=lambda g: held[g][down(g) : counts[g]].mean() / price[g])
        counts[at] = down(at)
    while True:
        left = limit - counts @ price
        options = [g for g in range(len(full)) if up(g) > counts[g] and (up(g) - counts[g]) * price[g] <= left]
        if not options:
            return counts
        at = max(options, key=lambda g: held[g][counts[g] : up(g)].mean() / max(price[g], 1e-300))
        counts[at] = up(at)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_with_fixed_prices_the_solver_is_the_greedy_choice(seed: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    full = rng.integers(5, 30, int(rng.integers(1, 6)))
    price = rng.integers(1, 50, len(full))
    scores = rng.random(full.sum())
    limit = int(rng.uniform(price @ np.minimum(full, step), price @ full))
    keep = solver(Prices(full.tolist(), macs=[price.tolist()]), divisor=step).solve(scores, {"macs": limit})
    assert [sum(part) for part in parts(keep, full)] == greedy(scores, full, price, limit, step)


def test_what_costs_nothing_stays_whatever_its_scores() -> None:
    keep = solver(Prices([4, 4], macs=[[0, 10]])).solve(np.array([0.0] * 4 + [9.0] * 4), {"macs": 20})
    assert parts(keep, np.array([4, 4])) == [[True] * 4, [True, True, False, False]]


def test_of_equal_scores_the_earlier_channels_stay() -> None:
    keep = solver(Prices([5], macs=[[1]])).solve(np.array([1.0, 2.0, 1.0, 1.0, 2.0]), {"macs": 3})
    assert keep.tolist() == [True, True, False, False, True]


def test_scores_of_units_that_are_not_preferred_count_for_nothing() -> None:
    scores, preferred = np.array([5.0, 5.0, 0.5, 0.5]), np.array([False, False, True, True])
    prices = Prices([2, 2], macs=[[1, 1]])
    assert solver(prices).solve(scores, {"macs": 3}).sum() == 3
    assert parts(solver(prices).solve(scores, {"macs": 3}, preferred), prices.full) == [[True, False], [True, True]]
    assert parts(solver(prices).solve(scores, {"macs": 3}), prices.full) == [[True, True], [True, False]]


def test_the_largest_row_of_a_meter_is_what_counts() -> None:
    """Row by row the network costs 4a and 4b: each group is held by a row of its own."""
    keep = solver(Prices([8, 8], activation_bytes=[[4, 0], [0, 4]])).solve(np.ones(16), {"activation_bytes": 12})
    assert [sum(part) for part in parts(keep, np.array([8, 8]))] == [3, 3]


def test_several_limits_hold_together_and_each_is_used_up() -> None:
    prices = Prices([10, 10], macs=[[10, 1]], params=[[1, 10]])
    keep = solver(prices).solve(np.random.default_rng(0).random(20), {"macs": 55, "params": 33})
    counts = np.array([sum(part) for part in parts(keep, prices.full)])
    assert [10, 1] @ counts <= 55
    assert [1, 10] @ counts <= 33
    for wider in counts + np.eye(2, dtype=int):
        assert [10, 1] @ wider > 55 or [1, 10] @ wider > 33


def test_a_limit_that_is_just_met_puts_no_price_on_what_must_go() -> None:
    """The dear multiply-adds of the first group do not matter while only parameters have to go."""
    prices = Prices([4, 4], macs=[[100, 1]], params=[[1, 1]])
    keep = solver(prices).solve(np.array([2.0] * 4 + [1.9] * 4), {"macs": 404, "params": 6})
    assert [sum(part) for part in parts(keep, prices.full)] == [4, 2]


def test_room_that_is_left_goes_to_the_best_score_per_price() -> None:
    """The dear unit of the first group goes last and leaves room for two of the three units that went before it."""
    prices = Prices([2, 20, 3], macs=[[100, 40, 40]])
    scores = np.array([1000, 0.5, *[100] * 18, 0.002, 0.002, 100, 100, 0.001])
    keep = solver(prices).solve(scores, {"macs": prices.total(prices.full).macs - 130})
    assert [sum(part) for part in parts(keep, prices.full)] == [1, 20, 2]


def test_a_large_score_does_not_drown_small_ones_in_single_precision() -> None:
    prices = Prices([4, 4], macs=[[1, 1]])
    keep = solver(prices).solve(np.array([1e9, 3, 3, 3, 2, 2, 2, 2], dtype=np.float32), {"macs": 6})
    assert [sum(part) for part in parts(keep, prices.full)] == [4, 2]


def test_of_equal_groups_the_earlier_give_way() -> None:
    prices = Prices([2] * 40, macs=[[1] * 40])
    keep = solver(prices).solve(np.ones(80), {"macs": 60})
    assert [sum(part) for part in parts(keep, prices.full)] == [1] * 20 + [2] * 20


def test_of_floors_that_hold_the_same_the_first_are_named() -> None:
    prices = Prices([2] * 40, macs=[[1] * 40])
    with pytest.raises(BudgetError, match=r"hold most: g0 \(2 units, macs=1\), g1 .*, g2 \(2 units, macs=1\)\. Ask"):
        solver(prices, floor=2).check({"macs": 60})


def test_a_resource_without_a_limit_is_free() -> None:
    prices = Prices([4, 4], macs=[[1, 1]], params=[[1000, 1]])
    keep = solver(prices).solve(np.array([2.0] * 4 + [1.0] * 4), {"macs": 4})
    assert parts(keep, prices.full) == [[True, True, True, False], [True, False, False, False]]


def test_a_limit_of_what_the_narrowest_network_costs_is_met_and_one_less_refused() -> None:
    prices = Prices([8, 8], macs=[[3, 5]])
    assert solver(prices, floor=2).solve(np.ones(16), {"macs": 16}).sum() == 4
    with pytest.raises(BudgetError, match="cannot be reached"):
        solver(prices, floor=2).solve(np.ones(16), {"macs": 15})


def test_a_limit_out_of_reach_is_refused_with_the_three_floors_that_hold_most() -> None:
    prices = Prices([10, 10, 10, 10, 10], macs=[[1, 2, 3, 4, 90]])
    floors = {"g0": 4, "g1": 4, "g2": 4, "g3": 3}
    message = (
        "macs=100 cannot be reached: with the floors and the divisor asked for, the lowest is 126 (12.6% of dense). "
        "The floors that hold most: g2 (4 units, macs=9), g3 (3 units, macs=8), g1 (4 units, macs=6). "
        "Ask for more, or lower floor= or divisor=."
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        solver(prices, floors=floors).check({"macs": 100})


def test_where_no_floor_holds_anything_the_layers_that_stay_are_pointed_at() -> None:
    message = (
        "macs=2 cannot be reached: the lowest is 8 (12.5% of dense), with the fewest channels everywhere. "
        "print(hyper.coupling) says which others stay, and why. Ask for more."
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        solver(Prices([8, 8], macs=[[3, 5]])).check({"macs": 2})
    with pytest.raises(BudgetError, match=r"Ask for more. An int is a count; for all of the dense cost say 1.0.$"):
        solver(Prices([8, 8], macs=[[3, 5]])).check({"macs": 1})


def test_floors_that_hold_nothing_are_not_named() -> None:
    prices = Prices([10, 10], latency_ns=[[1_000_000, 0]])
    message = (
        "latency_ms=0.5 cannot be reached: with the floors and the divisor asked for, the lowest is 1 "
        "(10.0% of dense). Ask for more, or lower floor= or divisor=."
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        solver(prices, floors={"g1": 4}).check({"latency_ns": 500_000})
