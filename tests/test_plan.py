"""Width plans are plain data."""

from __future__ import annotations

import json

import pytest

from hyperprune import WidthPlan
from hyperprune.plan import Resize, Slice

PLAN = WidthPlan((Slice("a.weight", 0, 8, (0, 3, 5)), Slice("a.bias", 0, 8, (0, 3, 5))), (Resize("block", 8, 3),))


def test_a_plan_survives_a_trip_through_json_text() -> None:
    assert WidthPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_a_width_is_the_number_of_kept_positions() -> None:
    assert PLAN.width("a.weight", 0) == 3


@pytest.mark.parametrize(("tensor", "axis"), [("a.weight", 1), ("b.weight", 0)])
def test_an_axis_that_is_not_sliced_has_no_width_in_the_plan(tensor: str, axis: int) -> None:
    with pytest.raises(KeyError, match=f"axis {axis} of '{tensor}'"):
        PLAN.width(tensor, axis)


def test_plans_compare_by_value_and_cannot_be_changed() -> None:
    assert hash(PLAN) == hash(WidthPlan.from_json(PLAN.to_json()))
    with pytest.raises(AttributeError):
        PLAN.slices = ()  # type: ignore[misc]
