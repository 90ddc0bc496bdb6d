"""From a ledger to a map: small ledgers written by hand, and what must come of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune.coupling import STAYS, CouplingMap, Frozen, Norm, Product, Size, build, lies_inside
from hyperprune.coupling.freezing import shared_tensors
from hyperprune.coupling.map import Tensor as MapTensor
from hyperprune.labels import Ledger
from hyperprune.labels.ledger import ELASTIC, Freeze, NormCall, ProductCall, SizedCall, TensorRef, Tie
from hyperprune.labels.reasons import ALONE, FOLLOWS, INPUT, OUTPUT, REDUCED
from hyperprune.trace import Origin
from tests.models import Net

ADD = Origin("aten.add.Tensor", "block", "model.py:7")


class Script(Ledger):
    """A ledger that is told of layers one after the other."""

    def image(self, channels: int) -> Tensor:
        """Say that the model's input has so many channels."""
        return self.pinned(INPUT, Origin("input", "", "")).expand(channels)

    def layer(self, name: str, reads: Tensor, width: int, op: str = "aten.linear.default") -> Tensor:
        """Say that a layer reads these channels; return those that it makes."""
        weight = TensorRef(f"{name}.weight", (width, len(reads)), True)
        self.tie(self.axis(weight, 1), reads, Origin(op, name, ""))
        self.reads.add((weight.name, 1))
        self.writes.add((weight.name, 0))
        self.positions[weight.name] = 1
        return self.axis(weight, 0)

    def along(self, tensor: str, channels: Tensor) -> None:
        """Say that a vector of the model lies along these channels."""
        self.tie(self.axis(TensorRef(tensor, (len(channels),), True), 0), channels, Origin("aten.batch_norm", "", ""))

    def tie(self, left: Tensor, right: Tensor, origin: Origin = ADD, reason: str = "") -> None:
        self.ties.append(Tie(left.reshape(-1), right.reshape(-1), origin, reason))

    def output(self, channels: Tensor) -> None:
        self.freezes.append(Freeze(channels, OUTPUT, Origin("output", "", "")))

    def solved(self, **options: Any) -> CouplingMap:
        return build(self, nn.Module(), **options)


def chain(*widths: int) -> tuple[Script, list[Tensor]]:
    """Return layers a, b, c... on an input of three channels, and what each makes; the last makes the output."""
    script = Script()
    made = [script.image(3)]
    for name, width in zip("abcdef", widths, strict=False):
        made.append(script.layer(name, made[-1], width))
    script.output(made[-1])
    return script, made[1:]


def sites(coupling: CouplingMap) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(site.tensor, site.axis): site.units for site in coupling.sites}


def test_a_chain_has_a_group_between_every_two_layers() -> None:
    coupling = chain(4, 5, 2)[0].solved()
    first, second = coupling.groups
    assert (first.name, first.start, first.size, first.width) == ("a", 0, 4, 1)
    assert (first.makers, first.readers, first.ties) == (("a",), ("b",), ())
    assert (second.name, second.start, second.size, second.makers, second.readers) == ("b", 4, 5, ("b",), ("c",))
    assert sites(coupling) == {
        ("a.weight", 0): (0, 1, 2, 3),
        ("b.weight", 1): (0, 1, 2, 3),
        ("b.weight", 0): (4, 5, 6, 7, 8),
        ("c.weight", 1): (4, 5, 6, 7, 8),
    }
    assert {(site.tensor, site.role) for site in coupling.sites if site.axis == 1} == {
        ("b.weight", "reads"),
        ("c.weight", "reads"),
    }
    assert coupling.frozen == (Frozen("c", 2, OUTPUT, "output"),)


def test_without_any_tie_nothing_is_read_and_all_stays() -> None:
    script = Script()
    script.writes.add(("a.weight", 0))
    script.axis(TensorRef("a.weight", (3, 2), True), 0)
    coupling = script.solved()
    assert (coupling.groups, coupling.sites) == ((), ())
    assert coupling.frozen == (Frozen("a", 3, "no gated layer reads it", "a.weight"),)


def test_an_elastic_label_ties_nothing() -> None:
    script, (a, b, _) = chain(4, 5, 2)
    script.tie(torch.full((4,), ELASTIC), a)
    script.tie(b, torch.full((5,), ELASTIC))
    assert [group.size for group in script.solved().groups] == [4, 5]


def test_a_tie_between_two_layers_makes_one_group_and_says_through_which_call() -> None:
    script, (a, b, _) = chain(4, 4, 2)
    script.tie(a, b)
    (group,) = script.solved().groups
    assert (group.name, group.size, group.makers, group.readers) == ("a", 4, ("a", "b"), ("b", "c"))
    assert group.ties == ("aten.add.Tensor in 'block' (model.py:7)",)


@pytest.mark.parametrize(
    ("op", "crossed", "shown"),
    [
        ("aten.add.Tensor", False, True),
        ("aten.linear.default", False, False),
        ("aten.batch_norm.default", False, False),
        ("aten.instance_norm.default", False, False),
        ("aten.conv2d.default", False, False),
        ("aten.conv2d.default", True, True),
    ],
)
def test_a_layer_that_reads_its_own_input_is_not_shown_as_a_tie_but_a_grouped_convolution_is(
    op: str, crossed: bool, shown: bool
) -> None:
    script, (a, _) = chain(4, 2)
    left, right = (a[[0, 0, 2, 2]], a) if crossed else (a, a)
    script.tie(left, right, Origin(op, "g", ""))
    (group,) = script.solved().groups
    assert group.ties == ((f"{op} in 'g'",) if shown else ())


def test_ties_are_listed_once_and_sorted_by_name_and_only_where_they_tie() -> None:
    script, (a, *_) = chain(4, 5, 2)
    for origin in (Origin("aten.mul", "z", ""), Origin("aten.add", "b", ""), Origin("aten.mul", "z", "")):
        script.tie(a, a, origin)
    first, second = script.solved().groups
    assert first.ties == ("aten.add in 'b'", "aten.mul in 'z'")
    assert second.ties == ()


@pytest.mark.parametrize(
    ("reason", "crossed", "told"),
    [(FOLLOWS, True, True), (FOLLOWS, False, False), (REDUCED, True, False), ("", True, False)],
)
def test_a_group_says_why_what_must_be_equally_wide_goes_together(reason: str, crossed: bool, told: bool) -> None:
    script, (a, b, _) = chain(4, 4, 2)
    script.tie(a, b)
    script.tie(a, b if crossed else a, Origin("aten.reshape", "attn", ""), reason)
    (group,) = script.solved().groups
    assert group.because == (((reason, "aten.reshape in 'attn'"),) if told else ())


def test_a_table_whose_channels_all_go_together_stays_as_the_only_unit() -> None:
    script, (a, _) = chain(4, 2)
    script.tie(script.element(TensorRef("tokens", (3, 4), True)), a.expand(3, 4))
    script.tie(a[:1].expand(4), a)
    assert {stays.reason for stays in script.solved().frozen if stays.layer == "a"} == {ALONE}


def test_channels_that_the_user_keeps_stay_and_no_others() -> None:
    coupling = chain(4, 5, 2)[0].solved(kept=frozenset({"a"}))
    assert [group.name for group in coupling.groups] == ["b"]
    assert coupling.frozen == (Frozen("a", 4, "is kept by the user", "a"), Frozen("c", 2, OUTPUT, "output"))


def test_a_closed_module_keeps_every_channel_inside_and_none_beside() -> None:
    script = Script()
    made = script.image(3)
    for name, width in (("in.a", 4), ("block.b", 5), ("blocks.c", 6), ("d", 2)):
        made = script.layer(name, made, width)
    script.output(made)
    coupling = script.solved(closed=["block"])
    assert [group.name for group in coupling.groups] == ["blocks.c"]
    reason = "a size written into forward() could not be repaired"
    assert coupling.frozen[:2] == (Frozen("in.a", 4, reason, "block"), Frozen("block.b", 5, reason, "block"))


@pytest.mark.parametrize(("closed", "groups"), [("block", 0), ("blo", 1), ("a", 0)])
def test_elements_of_a_closed_module_stay_too(closed: str, groups: int) -> None:
    script, (a, _) = chain(4, 2)
    script.tie(script.element(TensorRef("block.scale", (4, 3), True)), a[:, None].expand(4, 3))
    assert len(script.solved(closed=[closed]).groups) == groups


def test_the_first_reason_counts() -> None:
    script, (a, _) = chain(4, 2)
    script.freezes.append(Freeze(a[:1], "first", Origin("op", "m", "")))
    script.freezes.append(Freeze(a, "second", Origin("", "elsewhere", "")))
    assert script.solved().frozen[:2] == (Frozen("a", 1, "first", "op in 'm'"), Frozen("a", 3, "second", "elsewhere"))


def test_a_unit_alone_stays_and_says_so_or_why_it_is_alone() -> None:
    script, (_, b, _) = chain(1, 3, 2)
    assert script.solved().frozen[0] == Frozen("a", 1, "is the only unit of its group", "")
    script.tie(b[:1].expand(3), b, Origin("aten.select", "m", ""))
    assert script.solved().frozen[1] == Frozen("b", 3, "is the only unit of its group", "aten.select in 'm'")
    script.tie(b[:-1], b[1:], Origin("aten.sum", "m", ""), "is summed")
    assert script.solved().groups == ()
    assert script.solved().frozen[1] == Frozen("b", 3, "is summed", "aten.sum in 'm'")


def test_two_units_are_company_enough() -> None:
    assert [group.size for group in chain(2, 2)[0].solved().groups] == [2]


def test_channels_at_different_sites_are_different_groups_with_numbered_names() -> None:
    script = Script()
    a = script.layer("a", script.image(3), 6)
    script.output(script.layer("b", a[:2], 2))
    script.output(script.layer("c", a[2:], 2))
    first, second = script.solved().groups
    assert (first.name, first.size, first.readers) == ("a", 2, ("b",))
    assert (second.name, second.start, second.size, second.readers) == ("a#2", 2, 4, ("c",))


def test_layers_that_are_joined_stay_groups_of_their_own_with_one_reader() -> None:
    script = Script()
    image = script.image(3)
    made = [script.layer(name, image, width) for name, width in (("a", 4), ("b", 5), ("c", 6))]
    script.output(script.layer("d", torch.cat(made), 2))
    groups = script.solved().groups
    assert [(group.name, group.size, group.readers) for group in groups] == [
        ("a", 4, ("d",)),
        ("b", 5, ("d",)),
        ("c", 6, ("d",)),
    ]


def test_channels_that_occur_twice_are_a_group_of_their_own() -> None:
    script = Script()
    a = script.layer("a", script.image(3), 5)
    script.output(script.layer("b", torch.cat([a, a[:2]]), 2))
    coupling = script.solved()
    assert [(group.name, group.size) for group in coupling.groups] == [("a", 2), ("a#2", 3)]
    assert sites(coupling)["b.weight", 1] == (0, 1, 2, 3, 4, 0, 1)


def test_the_width_is_that_of_the_widest_site_that_makes_or_carries_the_channels() -> None:
    script = Script()
    a = script.layer("a", script.image(3), 6)
    script.tie(a[:-1:2], a[1::2])
    script.output(script.layer("b", a.repeat(5), 2))
    (group,) = script.solved().groups
    assert (group.size, group.width) == (3, 2)


def test_a_parameter_that_is_read_but_made_by_no_layer_names_its_group() -> None:
    script = Script()
    tokens = script.element(TensorRef("tokens", (4,), True))
    script.output(script.layer("b", tokens, 2))
    (group,) = script.solved().groups
    assert (group.name, group.width, group.makers, group.readers) == ("tokens", 1, (), ("b",))
    assert [(site.tensor, site.role) for site in script.solved().sites] == [("tokens", "along"), ("b.weight", "reads")]


def test_a_parameter_of_several_axes_that_no_layer_makes_names_its_group_too() -> None:
    script = Script()
    grid = script.element(TensorRef("tokens", (3, 4), True))
    script.tie(grid, grid[:1].expand(3, 4))
    script.output(script.layer("b", grid[0], 2))
    (group,) = script.solved().groups
    assert (group.name, group.size, group.readers) == ("tokens", 4, ("b",))


def test_elements_lie_along_the_one_axis_on_which_they_differ() -> None:
    script, (a, _) = chain(4, 2)
    grid = script.element(TensorRef("scale", (3, 4, 2), True))
    script.tie(grid, a.reshape(1, 4, 1).expand(3, 4, 2))
    coupling = script.solved()
    assert sites(coupling)["scale", 1] == (0, 1, 2, 3)
    assert ("scale", 0) not in sites(coupling)
    assert len(coupling.groups) == 1


def test_elements_that_differ_along_several_axes_stay() -> None:
    script, (a, b, _) = chain(4, 3, 2)
    grid = script.element(TensorRef("scale", (4, 3), True))
    script.tie(grid[:, 0], a)
    script.tie(grid[0], b)
    coupling = script.solved()
    found = {stays.layer: (stays.channels, stays.reason, stays.where) for stays in coupling.frozen}
    assert found["a"] == (4, "channels lie along several axes here", "parameter in 'scale'")
    assert "scale" not in {site.tensor for site in coupling.sites}


def test_a_tensor_used_as_a_weight_and_element_by_element_stays() -> None:
    script, _ = chain(4, 5, 2)
    script.elements["b.weight"] = script.fresh(20).reshape(5, 4)
    coupling = script.solved()
    assert coupling.groups == ()
    assert {stays.reason for stays in coupling.frozen} == {"channels lie along several axes here", OUTPUT}


def test_a_tensor_too_large_to_label_stays_where_it_is_a_weight() -> None:
    script, _ = chain(4, 5, 6, 2)
    script.unlabelled["b.weight"] = script.fresh(1)[0]
    coupling = script.solved()
    assert [group.name for group in coupling.groups] == ["c"]
    reason = "is used element by element and too large to label"
    assert [(f.layer, f.channels, f.reason) for f in coupling.frozen[:2]] == [("a", 4, reason), ("b", 5, reason)]


def test_a_tensor_that_two_modules_hold_stays_and_names_the_other() -> None:
    script, _ = chain(4, 5, 2)
    a, b = nn.Linear(3, 4), nn.Linear(4, 5)
    other = nn.Linear(4, 5)
    other.weight = b.weight
    coupling = build(script, nn.ModuleDict({"a": a, "b": b, "other": other}))
    assert coupling.groups == ()
    assert Frozen("b", 5, "is shared between modules (also other.weight)", "") in coupling.frozen


def test_shared_tensors_are_those_of_different_modules_only() -> None:
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.running_mean = one.running_mean
    model = nn.ModuleDict({"one": one, "again": one, "two": two})
    model.scale = one.weight
    assert shared_tensors(model) == {
        "scale": "again.weight",
        "one.weight": "scale",
        "again.weight": "scale",
        "two.running_mean": "one.running_mean",
        "one.running_mean": "two.running_mean",
    }
    assert shared_tensors(nn.ModuleDict({"one": one, "again": one})) == {}
    assert shared_tensors(Net({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)}, None)) == {}


def test_rows_gated_by_a_product_count_as_read() -> None:
    script = Script()
    image = script.image(3)
    query, key = script.layer("q", image, 6), script.layer("k", image, 6)
    script.tie(query[:4], key[:4])
    weight, bias = (TensorRef(f"q.{name}", shape, True) for name, shape in (("weight", (6, 3)), ("bias", (6,))))
    script.along("q.bias", query)
    rows = torch.tensor([0, 1, 2, 3])
    script.products.append(ProductCall("dot", weight, bias, rows, key[:4], rooted=True))
    script.products.append(ProductCall("none", weight, None, torch.tensor([5]), key[4:5], rooted=False))
    coupling = script.solved()
    (group,) = coupling.groups
    assert (group.name, group.size, group.makers, group.readers) == ("q", 4, ("q", "k"), ())
    units = (0, 1, 2, 3)
    assert coupling.products == (Product("dot", ("q.weight", "q.bias"), units, units, units, True),)
    unread = [(f.layer, f.channels, f.where) for f in coupling.frozen if f.reason == "no gated layer reads it"]
    assert unread == [("q", 1, "q.weight"), ("k", 2, "k.weight")]


def test_a_product_without_a_bias_has_one_tensor() -> None:
    script = Script()
    query = script.layer("q", script.image(3), 4)
    weight = TensorRef("q.weight", (4, 3), True)
    script.products.append(ProductCall("dot", weight, None, torch.tensor([1, 2, 3]), query[[1, 2, 3]], rooted=False))
    coupling = script.solved()
    assert coupling.products == (Product("dot", ("q.weight",), (1, 2, 3), (0, 1, 2), (0, 1, 2), False),)
    assert sites(coupling)["q.weight", 0] == (STAYS, 0, 1, 2)


def test_norms_that_read_prunable_channels_are_listed_once() -> None:
    script, (a, b, c) = chain(4, 5, 2)
    calls = [
        NormCall("n1.weight", torch.cat([a, c]), 1, groups=2, kind="rms", spatial=True),
        NormCall("n1.weight", torch.cat([a, c]), 1, groups=2, kind="rms", spatial=True),
        NormCall("n2.weight", c, -1),
        NormCall("n3.weight", b, 2),
    ]
    script.norms += calls
    assert script.solved().norms == (
        Norm("n1.weight", (0, 1, 2, 3, STAYS, STAYS), 1, 2, "rms", True),
        Norm("n3.weight", (4, 5, 6, 7, 8), 2, 1, "layer", False),
    )


def test_standardised_weights_that_read_prunable_channels_are_sorted_by_name() -> None:
    script, _ = chain(4, 5, 2)
    script.standardised |= {"c.weight", "b.weight", "a.weight"}
    assert script.solved().standardised == ("b.weight", "c.weight")


def test_sizes_of_calls_say_which_units_lie_at_every_position() -> None:
    script, (a, b, c) = chain(2, 4, 2)
    origin = Origin("aten.view", "m", "model.py:3")
    script.sized.append(SizedCall("view", origin, (b.reshape(2, 2), c.reshape(2, 1), a.reshape(2, 1)), (1, 1)))
    script.sized.append(SizedCall("view", origin, (b.reshape(2, 2),), (1, 1)))
    assert script.solved().sizes == (
        Size("view", "m", ((2, 3), (4, 5)), "model.py:3", (1, 1)),
        Size("view", "m", ((0,), (1,)), "model.py:3", ()),
    )


def test_a_slot_names_each_unit_once_and_a_channel_that_stays() -> None:
    script, (a, b) = chain(2, 2)
    script.sized.append(SizedCall("view", ADD, (torch.stack([a[[0, 0, 1]], torch.stack([b[0], a[1], a[1]])]),)))
    assert script.solved().sizes[0].slots == ((0, 1), (STAYS, 1))


def test_an_heir_takes_over_the_sizes_on_its_line_of_the_nearest_module_around_it() -> None:
    script, (a, _) = chain(4, 2)
    for node, module, source in (
        ("v1", "m", "x.py:1"),
        ("v2", "m", "x.py:2"),
        ("v3", "m.n", "x.py:1"),
        ("v4", "o", "x.py:1"),
    ):
        script.sized.append(SizedCall(node, Origin("aten.view", module, source), (a.reshape(4, 1),)))
    heirs = [("m.n.heir", "x.py:1"), ("m.heir", "x.py:2"), ("p.heir", "x.py:1")]
    found = script.solved(heirs=heirs).sizes
    assert [(size.node, size.module) for size in found[:4]] == [("v1", "m"), ("v2", "m"), ("v3", "m.n"), ("v4", "o")]
    assert [(size.node, size.module) for size in found[4:]] == [("v2", "m.heir"), ("v3", "m.n.heir")]
    assert script.solved(heirs=reversed(heirs)).sizes == found  # sets have their orders from the process


def test_a_follower_holds_the_widths_of_its_layers_or_what_the_first_of_them_reads() -> None:
    script = Script()
    made = script.layer("stem", script.image(3), 4)
    made = script.layer("m.n.b", script.layer("m.a", made, 5), 6)
    script.output(script.layer("mm.c", made, 2))
    follower, first, other = (
        [(size.node, size.module, size.slots) for size in script.solved(followers=[way]).sizes]
        for way in (("m", False), ("m", True), ("m.n", False))
    )
    stem, a, b = (tuple((unit,) for unit in range(*ends)) for ends in ((0, 4), (4, 9), (9, 15)))
    assert sorted(follower) == [("", "m", stem), ("", "m", a), ("", "m", b)]
    assert first == [("", "m", stem)]
    assert sorted(other) == [("", "m.n", a), ("", "m.n", b)]


@pytest.mark.parametrize(
    ("path", "module", "inside"),
    [("a.b", "a", True), ("a", "", True), ("ab", "a", False), ("a", "a", False), ("", "", False), ("a", "a.b", False)],
)
def test_a_module_lies_inside_those_around_it(path: str, module: str, inside: bool) -> None:
    assert lies_inside(path, module) is inside


def test_tensors_are_the_parameters_and_the_buffers_that_are_weights() -> None:
    script, _ = chain(4, 2)
    script.axis(TensorRef("mean", (4,), False), 0)
    script.axis(TensorRef("blur", (4, 1), False), 0)
    script.positions |= {"blur": 49, "a.weight": 9}
    script.along("bias", script.axes["mean", 0])
    assert script.solved().tensors == (
        MapTensor("a.weight", (4, 3), 9),
        MapTensor("b.weight", (2, 4), 1),
        MapTensor("blur", (4, 1), 49),
        MapTensor("bias", (4,), 0),
    )


def test_unreached_parameters_are_sorted() -> None:
    assert chain(4, 2)[0].solved(unreached=["z", "b"]).unreached == ("b", "z")
    assert chain(4, 2)[0].solved().unreached == ()


def test_a_value_that_may_not_lose_its_last_channel_makes_a_group_of_its_own() -> None:
    script, (a, _) = chain(6, 2)
    script.inhabited.append(a[1:4])
    assert [(group.name, group.size) for group in script.solved().groups] == [("a", 3), ("a#2", 3)]


@pytest.mark.parametrize("case", ["whole group", "larger", "with one that stays", "one that stays alone"])
def test_a_value_that_keeps_a_channel_anyway_splits_nothing(case: str) -> None:
    script, (a, b, c) = chain(6, 4, 2)
    value = {"whole group": a, "larger": torch.cat([a, b[:2]]), "with one that stays": torch.cat([a[:2], c[:1]])}
    script.inhabited.append(value.get(case, c))
    assert [group.size for group in script.solved().groups] == [6, 4]


def test_a_smaller_value_may_keep_a_larger_one_alive() -> None:
    script, (a, _) = chain(8, 2)
    script.inhabited += [a[:4], a[2:4]]
    assert sorted(group.size for group in script.solved().groups) == [2, 6]


def test_a_value_of_several_layers_splits_the_group_of_each() -> None:
    script, (a, b, _) = chain(6, 4, 2)
    script.inhabited.append(torch.cat([a[:2], b[2:]]))
    assert [(group.name, group.size) for group in script.solved().groups] == [
        ("a", 2),
        ("a#2", 4),
        ("b", 2),
        ("b#2", 2),
    ]
