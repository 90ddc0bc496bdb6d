"""The coupling map of a small residual network, written out by hand, and what can be asked of any map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from hyperprune.coupling import STAYS, CouplingMap
from hyperprune.plan import Slice
from tests.models import SMALL, Net, ResNet, couple, layout, residual, sequential, small


@pytest.fixture(scope="module")
def coupling() -> CouplingMap:
    return couple(ResNet(width=3, inner=2, classes=2), torch.randn(1, 3, 4, 4))


def test_a_residual_stream_is_one_group_and_every_inner_width_another(coupling: CouplingMap) -> None:
    stream, first, second = coupling.groups
    assert (stream.name, stream.size, stream.width) == ("stem", 3, 1)
    assert stream.makers == ("stem", "block1.conv2", "block2.conv2")
    assert stream.readers == ("block1.conv1", "block2.conv1", "fc")
    assert (first.name, first.size, first.makers, first.readers) == (
        "block1.conv1", 2, ("block1.conv1",), ("block1.conv2",),
    )  # fmt: skip
    assert (second.name, second.size) == ("block2.conv1", 2)
    assert [group.start for group in coupling.groups] == [0, 3, 5]
    assert coupling.units == 7


def test_the_calls_that_tie_the_stream_are_the_additions(coupling: CouplingMap) -> None:
    stream = coupling.group("stem")
    assert [tie.split(" (")[0] for tie in stream.ties] == ["aten.add.Tensor in 'block1', 'block2'"]
    assert coupling.group("block1.conv1").ties == ()


def test_every_site_is_where_a_hand_would_slice(coupling: CouplingMap) -> None:
    stream, inner1, inner2 = (0, 1, 2), (3, 4), (5, 6)
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = {
        ("stem.weight", 0, "writes", stream),
        ("block1.conv1.weight", 1, "reads", stream),
        ("block1.conv1.weight", 0, "writes", inner1),
        ("block1.conv2.weight", 1, "reads", inner1),
        ("block1.conv2.weight", 0, "writes", stream),
        ("block2.conv1.weight", 1, "reads", stream),
        ("block2.conv1.weight", 0, "writes", inner2),
        ("block2.conv2.weight", 1, "reads", inner2),
        ("block2.conv2.weight", 0, "writes", stream),
        ("fc.weight", 1, "reads", stream),
        *((f"bn.{name}", 0, "along", stream) for name in norm),
        *((f"block1.bn1.{name}", 0, "along", inner1) for name in norm),
        *((f"block1.bn2.{name}", 0, "along", stream) for name in norm),
        *((f"block2.bn1.{name}", 0, "along", inner2) for name in norm),
        *((f"block2.bn2.{name}", 0, "along", stream) for name in norm),
    }
    assert {(site.tensor, site.axis, site.role, site.units) for site in coupling.sites} == expected


def test_the_classifier_stays_because_it_is_the_output(coupling: CouplingMap) -> None:
    (stays,) = coupling.frozen
    assert (stays.layer, stays.channels, stays.reason) == ("fc", 2, "is the model's output")


def test_flatten_repeats_a_unit_at_every_place_it_reads() -> None:
    reads = [s for s in couple(sequential(), torch.randn(1, 3, 8, 8)).sites if (s.tensor, s.axis) == ("7.weight", 1)]
    units = np.array(reads[0].units).reshape(12, 4)
    assert (units == units[:, :1]).all()
    assert len(set(units[:, 0])) == 12


def test_a_plan_keeps_the_positions_of_the_living_units(coupling: CouplingMap) -> None:
    plan = coupling.plan(np.array([True, False, True, False, True, True, True]))
    cuts = {(cut.tensor, cut.axis): cut for cut in plan.slices}
    assert cuts["stem.weight", 0] == Slice("stem.weight", 0, 3, (0, 2))
    assert cuts["block1.conv1.weight", 0].kept == (1,)
    assert cuts["block1.conv1.weight", 1].kept == (0, 2)
    assert ("block2.conv1.weight", 0) not in cuts, "nothing is cut where nothing goes"


def test_a_plan_with_everything_alive_cuts_nothing(coupling: CouplingMap) -> None:
    assert coupling.plan(np.ones(7, dtype=bool)).slices == ()


def test_positions_that_stay_are_kept_whatever_dies() -> None:
    model = Net({"a": nn.Conv2d(3, 4, 1), "out": nn.Conv2d(7, 2, 1)}, lambda n, x: n.out(torch.cat([x, n.a(x)], 1)))
    coupling = couple(model, torch.randn(1, 3, 2, 2))
    (reads,) = [site for site in coupling.sites if site.role == "reads"]
    assert reads.units == (STAYS, STAYS, STAYS, 0, 1, 2, 3)
    assert reads.kept(np.array([False, True, False, False])) == (0, 1, 2, 4)


@pytest.mark.parametrize("name", SMALL)
def test_a_map_survives_a_trip_through_json_text(name: str) -> None:
    coupling = couple(*small(name))
    assert CouplingMap.from_json(json.loads(coupling.dumps())) == coupling


def test_a_map_with_norms_and_sizes_survives_a_trip_through_json_text() -> None:
    parts = {"a": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "out": nn.Linear(2, 2)}
    coupling = couple(Net(parts, lambda n, x: n.out(n.norm(n.a(x)).chunk(2, -1)[0])), torch.randn(2, 3))
    assert coupling.norms
    assert coupling.sizes
    assert CouplingMap.from_json(json.loads(coupling.dumps())) == coupling


@pytest.mark.parametrize("name", SMALL)
def test_units_are_numbered_group_by_group_without_gaps(name: str) -> None:
    coupling = couple(*small(name))
    assert [unit for group in coupling.groups for unit in range(group.start, group.start + group.size)] == list(
        range(coupling.units)
    )
    assert coupling.of_unit().tolist() == [at for at, group in enumerate(coupling.groups) for _ in range(group.size)]


@pytest.mark.parametrize("name", SMALL)
def test_all_units_of_a_group_live_at_the_same_sites_equally_often(name: str) -> None:
    coupling = couple(*small(name))
    for group in coupling.groups:
        for site in coupling.sites:
            counts = {site.units.count(unit) for unit in range(group.start, group.start + group.size)}
            assert len(counts) == 1, (group.name, site.tensor)


@pytest.mark.parametrize("name", SMALL)
def test_every_unit_is_made_somewhere_and_read_somewhere(name: str) -> None:
    coupling = couple(*small(name))
    for role in ("reads", "writes"):
        found = {unit for site in coupling.sites if site.role == role for unit in site.units}
        assert set(range(coupling.units)) <= found


def test_the_table_shows_every_group_and_what_stays(coupling: CouplingMap) -> None:
    text = str(coupling)
    assert "3 groups, 7 units" in text
    for group in coupling.groups:
        assert group.name in text
    assert "stays: fc, 2 channels: is the model's output" in text


def test_the_table_shows_how_many_channels_a_unit_takes() -> None:
    assert "4 x 4" in str(couple(*small("grouped")))


def test_explain_says_who_shares_a_layers_channels_and_through_which_call(coupling: CouplingMap) -> None:
    text = coupling.explain("stem")
    assert "stem makes group 'stem': 3 units of 1 channel." in text
    assert "They live or die together with those of block1.conv2, block2.conv2." in text
    assert "Tied by aten.add.Tensor in 'block1'" in text
    assert coupling.explain("fc") == (
        "fc reads 3 units of group 'stem', made by stem, block1.conv2, block2.conv2.\n"
        "2 channels made by fc stay: is the model's output: output.\n"
        "  What helps: where nobody needs this output, hyperize a wrapper whose forward() leaves it out."
    )


def test_asking_for_an_unknown_layer_lists_those_that_exist(coupling: CouplingMap) -> None:
    with pytest.raises(KeyError, match=r"no layer 'conv9'.*block1.conv1"):
        coupling.explain("conv9")
    with pytest.raises(KeyError, match=r"no group 'conv9'.*block1.conv1"):
        coupling.group("conv9")


def test_a_group_is_found_by_any_layer_that_makes_it(coupling: CouplingMap) -> None:
    assert coupling.group("block2.conv2") is coupling.group("stem")


def test_a_weight_that_two_modules_share_stays() -> None:
    a, b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    b.weight = a.weight
    parts = {"stem": nn.Conv2d(3, 4, 1), "a": a, "b": b, "c": nn.Conv2d(4, 5, 1), "out": nn.Conv2d(5, 2, 1)}
    coupling = couple(Net(parts, lambda n, x: n.out(n.c(n.b(n.a(n.stem(x)))))), torch.randn(1, 3, 2, 2))
    found = layout(coupling, ("c",))
    assert (found["stem"], found.get("a", found.get("b")), found["c"]) == ("....", "....", "abcde")
    assert any("is shared between modules" in stays.reason for stays in coupling.frozen)


def test_channels_that_no_weight_reads_stay() -> None:
    model = Net({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(4, 2, 1)}, _half_unread)
    coupling = couple(model, torch.randn(1, 3, 2, 2))
    assert layout(coupling, ("b",)) == {"a": "....", "b": "abcd", "c": ".."}
    assert {stays.layer: stays.reason for stays in coupling.frozen}["a"] == "no gated layer reads it"


def _half_unread(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.a(x)
    return net.c(net.b(x))


def test_a_layer_of_one_channel_keeps_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    coupling = couple(model, torch.randn(1, 3, 2, 2))
    assert layout(coupling, ("1",)) == {"0": ".", "1": "abcd", "2": ".."}
    assert "is the only unit of its group" in {stays.reason for stays in coupling.frozen}


def test_parameters_the_inputs_never_reach_are_reported() -> None:
    from hyperprune import hyperize

    model = Net({**dict(residual().named_children()), "idle": nn.Linear(2, 2)}, lambda net, x: ResNet.forward(net, x))
    coupling = hyperize(model, torch.randn(1, 3, 8, 8)).coupling
    assert coupling.unreached == ("idle.bias", "idle.weight")
    assert "not reached by the example inputs, left as they are: idle.bias, idle.weight" in str(coupling)
