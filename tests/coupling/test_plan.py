"""From a mask over units to a plan: what is sliced, resized and rescaled, on maps written by hand."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import fields

import numpy as np
import pytest

from hyperprune.coupling import STAYS, Branch, CouplingMap, Frozen, Group, Norm, Product, Site, Size, Tensor, Use
from hyperprune.plan import Closing, Rescale, Resize, Slice, Spared

MAP = CouplingMap(
    groups=(Group("a", 0, 2, 1, ("a", "c"), ("b",), ("add",)), Group("b", 2, 3, 1, ("b",), (), ())),
    sites=(
        Site("block.a.weight", 0, "writes", (0, 1, STAYS)),
        Site("tokens", 1, "along", (2, 3, 4)),
    ),
    frozen=(Frozen("a", 1, "why", "where"),),
    tensors=(Tensor("block.a.weight", (3, 4), 7), Tensor("tokens", (1, 3), 0)),
    sizes=(Size("view", "block", ((0,), (1,), (STAYS,)), "model.py:3", (2, 1)),),
    norms=(Norm("norm.weight", (0, 1), 1, 2, "rms", True),),
    products=(Product("dot", ("q.weight", "q.bias"), (1, 2), (2, 3), (2, 3, STAYS, STAYS), True),),
    standardised=("x.weight",),
    unreached=("y.weight",),
    branches=(Branch("last", (0,), ("first",), ("norm",), -1),),
    spared=(Spared("block", "block_size"),),
    uses=(Use("mix.weight", 12, ((0, STAYS),)),),
)


CLOSABLE = CouplingMap(
    groups=(Group("one", 0, 2, 1, ("one",), ("two",), ()), Group("stem", 2, 3, 1, ("stem",), ("head",), ())),
    sites=(
        Site("one.weight", 0, "writes", (0, 1)),
        Site("one.bias", 0, "along", (0, 1)),
        Site("two.weight", 1, "reads", (0, 1)),
        Site("two.weight", 0, "writes", (2, 3, 4)),
        Site("two.bias", 0, "along", (2, 3, 4)),
    ),
    frozen=(),
    tensors=(Tensor("one.weight", (2, 3), 1), Tensor("two.weight", (3, 2), 1)),
    sizes=(Size("chunk", "one", ((0,), (1,))),),
    branches=(Branch("two", (0,), ("one",), (), -1),),
)


def mask(*dead: int) -> np.ndarray:
    alive = np.ones(5, dtype=bool)
    alive[list(dead)] = False
    return alive


def resized(*sizes: Size, dead: tuple[int, ...] = ()) -> tuple[Resize, ...]:
    return CouplingMap(MAP.groups, (), (), (), sizes).plan(mask(*dead)).resizes


def size(module: str, *slots: tuple[int, ...], parts: tuple[int, ...] = ()) -> Size:
    return Size("view", module, slots, "", parts)


def test_a_plan_slices_the_sites_that_lose_something() -> None:
    assert MAP.plan(mask(0)).slices == (Slice("block.a.weight", 0, 3, (1, 2)),)
    assert MAP.plan(mask(3, 4)).slices == (Slice("tokens", 1, 3, (0,)),)
    assert MAP.plan(mask()).slices == ()


def test_a_plan_closes_a_branch_once_all_of_its_channels_are_gone() -> None:
    assert CLOSABLE.plan(mask(0)).closings == ()
    plan = CLOSABLE.plan(mask(0, 1, 3))
    assert plan.closings == (Closing("one", "starts"), Closing("two", "ends", 2, -1))
    assert plan.slices == (Slice("two.bias", 0, 3, (0, 2)),), "the other tensors go with their layers"
    assert plan.resizes == ()
    assert type(plan).from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_mask_may_be_given_in_numbers() -> None:
    assert MAP.plan([0, 1, 1, 1, 1]).slices == MAP.plan(mask(0)).slices  # type: ignore[arg-type]


def test_a_site_knows_the_module_that_owns_it() -> None:
    assert [site.module for site in MAP.sites] == ["block.a", ""]


def test_groups_are_found_by_name_or_maker_and_know_their_place() -> None:
    assert MAP.group("c") is MAP.groups[0]
    assert MAP.group("b") is MAP.groups[1]
    assert (MAP.units, MAP.groups[1].units) == (5, slice(2, 5))
    assert MAP.of_unit().tolist() == [0, 0, 1, 1, 1]


def test_a_size_counts_the_positions_where_anything_lives() -> None:
    counted = size("m", (0, 1), (2,), (STAYS, 3), (4,))
    assert counted.after(mask()) == 4
    assert counted.after(mask(0, 3)) == 4
    assert counted.after(mask(0, 1, 3)) == 3
    assert counted.after(mask(0, 1, 2, 3, 4)) == 1


def test_a_size_may_come_from_no_known_line_and_be_cut_into_no_parts() -> None:
    bare = Size("view", "m", ((0,), (1,)))
    assert (bare.source, bare.parts, bare.parts_after(mask())) == ("", (), ())


def test_parts_are_counted_one_after_the_other() -> None:
    cut = size("m", (0,), (1,), (2,), (3,), (4,), (STAYS,), parts=(1, 3, 2))
    assert cut.parts_after(mask()) == (1, 3, 2)
    assert cut.parts_after(mask(0, 2, 3, 4)) == (0, 1, 1)


def test_a_size_whose_positions_hold_the_same_units_cannot_change() -> None:
    assert not size("m", (0, 1), (0, 1)).can_change
    assert size("m", (0, 1), (0, 2)).can_change
    assert resized(size("m", (0, 1), (0, 1)), dead=(0, 1)) == ()


def test_sizes_are_resized_in_a_fixed_order_each_once() -> None:
    found = resized(
        size("z", (0,), (1,)), size("m", (2,), (3,), (4,)), size("m", (0,), (1,)), size("m", (1,), (0,)), dead=(0, 2)
    )
    assert found == (Resize("m", 2, 1), Resize("m", 3, 2), Resize("z", 2, 1))


def test_a_number_that_two_calls_use_for_different_channels_is_left_alone() -> None:
    both = (size("m", (0,), (1,)), size("m", (2,), (3,)))
    assert resized(*both, dead=(0,)) == ()
    assert resized(*both, size("n", (0,), (1,)), dead=(0,)) == (Resize("n", 2, 1),)
    assert resized(size("m", (0,), (1,)), size("m", (2,), (2,)), dead=(0,)) == (Resize("m", 2, 1),)


def test_the_parts_of_a_split_are_resized_together() -> None:
    split = size("m", (0,), (1,), (2,), (3,), parts=(2, 2))
    assert resized(split, dead=(0,)) == (Resize("m", (2, 2), (1, 2)), Resize("m", 4, 3))


def test_parts_that_two_calls_cut_alike_but_of_different_channels_are_left_alone() -> None:
    one, other = size("m", (0,), (1,), parts=(1, 1)), size("m", (2,), (3,), parts=(1, 1))
    assert resized(one, other, dead=(0,)) == ()
    assert resized(one, size("n", (2,), (3,), parts=(1, 1)), dead=(0,)) == (
        Resize("m", (1, 1), (0, 1)),
        Resize("m", 2, 1),
        Resize("n", (1, 1), (1, 1)),
        Resize("n", 2, 2),
    )


@pytest.mark.parametrize(("dead", "living"), [((), 4), ((2,), 3), ((2, 3), 2)])
def test_a_rooted_product_is_rescaled_by_the_root_of_the_living_share(dead: tuple[int, ...], living: int) -> None:
    (product,) = MAP.products
    assert product.factor(mask(*dead)) == math.sqrt(living / 4)
    expected = [Rescale(name, (1, 2), math.sqrt(living / 4)) for name in ("q.weight", "q.bias")]
    assert MAP.plan(mask(*dead)).rescales == tuple(expected if dead else [])


def test_a_product_that_is_not_divided_by_a_root_is_not_rescaled() -> None:
    assert Product("dot", ("q",), (0, 1), (0, 1), (0, 1), False).factor(mask(0)) == 1


def test_rows_that_enter_two_products_are_rescaled_once() -> None:
    twice = CouplingMap(MAP.groups, (), (), (), products=(*MAP.products, *MAP.products))
    assert len(twice.plan(mask(2)).rescales) == 2


def test_the_units_of_gated_rows_lie_along_the_first_axis() -> None:
    assert MAP.products[0].along(5) == (STAYS, 2, 3, STAYS, STAYS)


def test_json_holds_every_field_and_comes_back() -> None:
    data = MAP.to_json()
    assert set(data) == {field.name for field in fields(CouplingMap)}
    assert all(data.values())
    assert json.loads(MAP.dumps()) == json.loads(json.dumps(data))
    assert CouplingMap.from_json(data) == MAP
    assert CouplingMap.from_json(json.loads(MAP.dumps())) == MAP
    assert hash(CouplingMap.from_json(json.loads(MAP.dumps()))) == hash(MAP), "lists have become tuples"


def test_changing_the_json_changes_no_map() -> None:
    MAP.to_json()["groups"][0]["name"] = "other"
    assert MAP.groups[0].name == "a"


def test_a_map_is_its_own_copy() -> None:
    assert copy.deepcopy(MAP) is MAP
    assert copy.deepcopy([MAP])[0] is MAP
