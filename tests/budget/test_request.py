"""What a budget asks for, what it refuses, and in which words."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from hyperprune import Budget
from hyperprune.budget import shown
from hyperprune.cost import Cost
from hyperprune.errors import BudgetError

FRACTION = "is outside (0, 1]. A float is a fraction of the dense cost; for an absolute count pass an int."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "an empty budget: say macs=0.5 (half the MACs) or params=5_000_000, or both."),
        ({"macs": 1.5}, f"macs=1.5 {FRACTION}"),
        ({"params": 0.0}, f"params=0.0 {FRACTION}"),
        ({"macs": 0}, "macs=0 must be at least 1."),
        ({"activation_bytes": True}, "activation_bytes must be a float in (0, 1] or a positive int, not True."),
        ({"params": "5"}, "params must be a float in (0, 1] or a positive int, not '5'."),
        ({"latency": 20}, "latency=20 must be a float in (0, 1]; for milliseconds say latency_ms=20."),
        ({"latency": 1.01}, "latency=1.01 must be a float in (0, 1]; for milliseconds say latency_ms=20."),
        ({"latency_ms": -1}, "latency_ms=-1 must be a positive number; for a fraction say latency=0.5."),
        ({"latency_ms": math.inf}, "latency_ms=inf must be a positive number; for a fraction say latency=0.5."),
        ({"latency_ms": "20"}, "latency_ms='20' must be a positive number; for a fraction say latency=0.5."),
        (
            {"latency": 0.5, "latency_ms": 20},
            "latency= is a fraction of the dense latency, latency_ms= an absolute one: give only one.",
        ),
        ({"macs": 1, "divisor": 0}, "divisor must be an integer of at least 1, not 0."),
        ({"macs": 1, "floor": 2.0}, "floor must be an integer of at least 1, not 2.0."),
        ({"macs": 1, "floors": [3]}, 'floors must map layers to channels, as {"layer4.*": 64}, not [3].'),
        ({"macs": 1, "ceilings": {3: 4}}, "ceilings: a layer's name or a glob is needed, not 3."),
        ({"macs": 1, "ceilings": {"a": 0}}, "ceilings['a'] must be an integer of at least 1, not 0."),
    ],
    ids=str,
)
def test_a_refusal_says_what_is_wrong_and_what_to_write(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        Budget(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"macs": 1.0},
        {"macs": 1},
        {"params": 1e-9},
        {"latency": 1.0},
        {"latency_ms": 1e-3},
        {"activation_bytes": 1},
        {"macs": 1, "divisor": 1, "floor": 1, "floors": {"a": 1}, "ceilings": {"a": 1}},
    ],
    ids=str,
)
def test_the_smallest_and_the_largest_amounts_are_fine(options: dict[str, Any]) -> None:
    assert Budget(**options)


def test_only_what_is_asked_for_is_limited() -> None:
    assert Budget(macs=0.5).asked() == {"macs": 0.5}
    assert Budget(activation_bytes=7).asked() == {"activation_bytes": 7}
    assert Budget(latency=0.25).asked() == {"latency_ns": 0.25}
    assert Budget(latency_ms=1.5, params=3).asked() == {"latency_ns": 1_500_000, "params": 3}


def test_a_budget_says_no_more_than_it_was_told() -> None:
    plain = Budget(macs=0.5)
    assert (plain.params, plain.activation_bytes, plain.latency, plain.latency_ms) == (None, None, None, None)
    assert (plain.divisor, plain.floor, dict(plain.floors), dict(plain.ceilings)) == (1, 1, {}, {})


def test_budgets_are_values_that_can_be_compared_and_stand_in_sets() -> None:
    assert Budget(macs=0.5, floors={"a": 2}) == Budget(macs=0.5, floors={"a": 2})
    assert Budget(macs=0.5, floors={"a": 2}) != Budget(macs=0.5, floors={"a": 3})
    assert len({Budget(macs=0.5, floors={"a": 2}), Budget(macs=0.5, floors={"a": 2})}) == 1
    with pytest.raises(AttributeError):
        Budget(macs=0.5).macs = 0.6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(macs=2001),
            "macs=2,001 is above the dense network's 2,000. Give a smaller count, or a fraction such as 0.5.",
        ),
        (
            Budget(latency_ms=12.5),
            "latency_ms=12.5 is above the dense network's 3. Give a smaller count, or a fraction such as 0.5.",
        ),
        (
            Budget(activation_bytes=0.5),
            "this cost model does not price activation_bytes: "
            "prepare it with hyperprune.metering.priced(hyper, budget).",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_limit_that_means_nothing_is_refused_in_the_users_units(budget: Budget, message: str) -> None:
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        budget.limits(Cost(macs=2000, params=10, latency_ns=3_000_000))


def test_amounts_are_shown_in_the_users_units() -> None:
    assert shown("macs", 1_234_567) == "macs=1,234,567"
    assert shown("latency_ns", 1_234_567) == "latency_ms=1.235"
