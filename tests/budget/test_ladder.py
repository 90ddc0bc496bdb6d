"""The widths that groups may have: every rung, and what is said where none is left."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hyperprune import Budget
from hyperprune.budget import Ladder
from hyperprune.coupling import Group
from hyperprune.errors import BudgetError


def groups(*shapes: tuple[str, int, int], makers: dict[str, tuple[str, ...]] | None = None) -> tuple[Group, ...]:
    """Return groups of the given names, sizes and widths, one behind the other."""
    starts = np.cumsum([0, *(size for _, size, _ in shapes)]).tolist()
    made = makers or {}
    return tuple(
        Group(name, start, size, width, made.get(name, (name,)), (), ())
        for (name, size, width), start in zip(shapes, starts, strict=False)
    )


GROUPS = groups(("stem", 16, 1), ("layer1.conv1", 32, 1), ("layer2.attention", 6, 8))


@pytest.mark.parametrize(
    ("divisor", "options"),
    [
        *((divisor, {}) for divisor in (1, 2, 3, 8, 16, 64)),
        *((divisor, {"floor": 3}) for divisor in (1, 3, 8, 64)),
        *((divisor, {"floors": {"stem": 5, "layer2.*": 17}}) for divisor in (1, 2, 8, 16)),
        *((divisor, {"ceilings": {"stem": 11}}) for divisor in (1, 2, 3, 8)),
        *((divisor, {"floors": {"*": 9}, "ceilings": {"layer1.conv1": 27}}) for divisor in (1, 2, 8)),
    ],
    ids=str,
)
def test_every_allowed_width_is_a_rung(divisor: int, options: dict[str, Any]) -> None:
    """The widths are found one at a time, by the words of ``Budget``."""
    ladder = Ladder.of(GROUPS, Budget(macs=0.5, divisor=divisor, **options))
    assert ladder.names == tuple(group.name for group in GROUPS)
    assert ladder.full.tolist() == [16, 32, 6]
    for at, group in enumerate(GROUPS):
        below = [units for units in range(1, group.size) if units * group.width % divisor == 0]
        found = [units for units in (group.size, *below[::-1]) if ladder.lowest[at] <= units <= ladder.highest[at]]
        assert ladder.rungs(at).tolist() == found
        assert ladder.rungs(at)[[0, -1]].tolist() == [ladder.highest[at], ladder.lowest[at]]


@pytest.mark.parametrize("divisor", [1, 4, 8, 64])
def test_going_down_and_up_visits_the_rungs_and_ends_at_the_last(divisor: int) -> None:
    ladder = Ladder.of(GROUPS, Budget(macs=0.5, divisor=divisor, ceilings={"layer1.conv1": 30 if divisor < 64 else 32}))
    for at in range(len(GROUPS)):
        rungs = ladder.rungs(at).tolist()
        counts = ladder.highest.copy()
        for wider, narrower in zip(rungs, [*rungs[1:], rungs[-1]], strict=True):
            counts[at] = wider
            assert ladder.down(counts)[at] == narrower
            counts[at] = narrower
            assert ladder.up(counts)[at] == (wider if wider != narrower else rungs[max(len(rungs) - 2, 0)])


def test_the_bare_widths_forget_floors_but_not_the_divisor() -> None:
    budget = Budget(macs=0.5, divisor=4, floor=7, floors={"layer1.conv1": 20})
    ladder = Ladder.of(groups(("stem", 16, 1), ("layer1.conv1", 32, 1), ("tiny", 3, 1), ("wide", 6, 8)), budget)
    assert ladder.lowest.tolist() == [8, 20, 3, 6]
    assert ladder.bare().tolist() == [4, 4, 3, 1]


def test_of_several_floors_the_largest_counts_and_of_several_ceilings_the_smallest() -> None:
    floors, ceilings = {"layer1.*": 20, "*": 4, "layer1.conv1": 8}, {"layer1.*": 28, "*": 48, "layer1.conv1": 30}
    ladder = Ladder.of(GROUPS, Budget(macs=0.5, floors=floors, ceilings=ceilings))
    assert ladder.lowest.tolist() == [4, 20, 1]
    assert ladder.highest.tolist() == [16, 28, 6]


SHARED = groups(("made", 8, 1), ("other", 8, 1), makers={"made": ("a.b.c", "x.y")})


@pytest.mark.parametrize("pattern", ["a", "a.b", "a.b.c", "a.*", "x.y", "x", "made"])
def test_a_pattern_names_a_group_a_layer_or_a_module_around_one(pattern: str) -> None:
    assert Ladder.of(SHARED, Budget(macs=0.5, floors={pattern: 5})).lowest.tolist() == [5, 1]


@pytest.mark.parametrize("pattern", ["b", "c", "y", "A.B", "a.b.c.d", "a.b.c.*"])
def test_a_pattern_names_no_part_of_a_path_but_its_beginning(pattern: str) -> None:
    with pytest.raises(BudgetError, match="no prunable layer matches"):
        Ladder.of(SHARED, Budget(macs=0.5, floors={pattern: 5}))


def test_a_pattern_without_a_match_is_answered_by_at_most_three_names_that_are_near() -> None:
    found = groups(("conv1", 8, 1), ("conv2", 8, 1), ("conv3", 8, 1), ("conv4", 8, 1), ("head", 8, 1))
    with pytest.raises(
        BudgetError, match=r"^floors: no prunable layer matches 'conv'\. Did you mean conv\d, conv\d, conv\d\?$"
    ):
        Ladder.of(found, Budget(macs=0.5, floors={"conv": 2}))
    with pytest.raises(
        BudgetError,
        match=r"^ceilings: no prunable layer matches 'zzz'\. print\(hyper\.coupling\) lists them\.$",
    ):
        Ladder.of(found, Budget(macs=0.5, ceilings={"zzz": 2}))


def test_layers_that_share_channels_are_near_too() -> None:
    found = groups(("stem", 8, 1), makers={"stem": ("stem", "block1.conv2")})
    with pytest.raises(BudgetError, match=r"Did you mean block1\.conv2\?$"):
        Ladder.of(found, Budget(macs=0.5, floors={"block1.conv3": 2}))


def test_a_ceiling_without_room_says_how_much_is_kept_of_how_much() -> None:
    message = (
        "layer2.attention: a ceiling of 20 channels leaves no width. With its floor and divisor=4 it keeps at least "
        "24 of its 48 channels. Raise the ceiling, or lower the floor or divisor=."
    )
    options: dict[str, Any] = {"floors": {"layer2.*": 23}, "ceilings": {"layer2.*": 20}}
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        Ladder.of(GROUPS, Budget(macs=0.5, divisor=4, **options))
