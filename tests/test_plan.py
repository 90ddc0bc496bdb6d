"""Width plans are plain data."""

from __future__ import annotations

import copy
import json

import pytest
from torch import nn

from hyperprune import WidthPlan
from hyperprune.plan import Resize, Slice, plans_of
from hyperprune.slim import carve_

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


def test_a_carved_model_and_its_copies_know_the_plans_that_made_them() -> None:
    model = nn.Linear(3, 4)
    assert plans_of(model) == ()
    first, second = (WidthPlan((Slice("weight", 0, n, (0, 1)), Slice("bias", 0, n, (0, 1)))) for n in (4, 2))
    carve_(carve_(model, first), second)
    assert plans_of(copy.deepcopy(model)) == (first, second)
    assert list(model.state_dict()) == ["weight", "bias"]
