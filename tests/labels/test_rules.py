"""Every rule, one operation at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from hyperprune import export_pruned, hyperize
from hyperprune.coupling import CouplingMap, build
from hyperprune.errors import NothingPrunableError
from hyperprune.labels import flow, operator_name, registered, rule, unregister
from hyperprune.labels.reasons import COMPUTED, INDEXED, PARAMETRIZED, SLID_OVER
from hyperprune.labels.registry import find
from hyperprune.rehearsal.rehearse import rehearse
from hyperprune.trace import ExampleInputs, Trace, trace
from hyperprune.verify import Proof
from tests.labels.operations import ALIASES, RANDOM, TABLE, UNKNOWN, Row, conv, one
from tests.models import couple, layout, random_half, relative_error, zeroed

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.says)
EXACT = [row for row in TABLE if row.says.rpartition(" ")[2] not in RANDOM and "rand" not in row.says]


@cache
def traced(row: Row) -> tuple[nn.Module, ExampleInputs, tuple[Trace, ...]]:
    model, inputs = row.model(), ExampleInputs.of(row.x())
    return model, inputs, trace(model, inputs)


@cache
def operators(row: Row) -> list[str]:
    """Return the operators that a row's graph calls, in order, without repetition."""
    graph = traced(row)[2][0].graph
    return list(dict.fromkeys(operator_name(node.target) for node in graph.nodes if node.op == "call_function"))


@cache
def all_operators() -> frozenset[str]:
    return frozenset(name for row in TABLE for name in operators(row))


@cache
def removals() -> tuple[tuple[Row, str], ...]:
    """Pair each operator with the first row that calls it and can tell what its absence does."""
    first: dict[str, Row] = {}
    for row in EXACT:
        for operator in operators(row) if row.expected else ():
            if operator in registered():
                first.setdefault(operator, row)
    return tuple((row, operator) for operator, row in first.items())


@contextmanager
def without(operator: str) -> Iterator[None]:
    taken = unregister(operator)
    try:
        yield
    finally:
        rule(operator)(taken)


def spelled(expected: Mapping[str, str], found: dict[str, str]) -> dict[str, str]:
    """Spell out the layers that are expected to stay whole."""
    return {name: expected.get(name, "." * len(letters)) for name, letters in found.items()} | dict(expected)


def removes_half_exactly(row: Row, times: int = 1) -> CouplingMap:
    """Remove random halves from what ``hyperize`` offers and compare with zeroed weights; return what it offers."""
    hyper = hyperize(row.model(), row.x())
    for seed in range(times):
        keep = random_half(hyper, torch.Generator().manual_seed(seed))
        hyper.bank.keep_(keep)
        slim = export_pruned(hyper)
        reference = hyper if hyper.coupling.norms or hyper.coupling.standardised else zeroed(hyper, keep)
        assert relative_error(reference(row.x()), slim(row.x())) < 1e-10
    return hyper.coupling


@every_row
def test_channels_are_tied_as_the_operation_ties_them(row: Row) -> None:
    model, _, traces = traced(row)
    found = layout(build(flow(traces), model), tuple(row.expected))
    assert found == spelled(row.expected, found)


@pytest.mark.parametrize("row", EXACT, ids=lambda row: row.says)
def test_what_is_offered_equals_the_network_with_zeroed_weights(row: Row) -> None:
    offered = row.expected if row.offered is None else row.offered
    if not offered:
        with pytest.raises(NothingPrunableError):
            hyperize(row.model(), row.x())
        return
    found = layout(removes_half_exactly(row, times=3), tuple(offered))
    assert found == spelled(offered, found)


def test_without_its_rule_an_operation_freezes_what_it_touches_and_nothing_goes_wrong() -> None:
    cost_units = 0
    for row, operator in removals():
        model, inputs, traces = traced(row)
        before = build(flow(traces), model)
        with without(operator):
            coupling = build(flow(traces), model)
            fewer = coupling.units < before.units
            assert fewer or coupling.units == before.units, (row.says, operator)
            reasons = {stays.reason for stays in coupling.frozen}
            named = {COMPUTED, PARAMETRIZED} & reasons or any(f"no rule for {operator}" in reason for reason in reasons)
            layer = "conv" in operator or operator == "aten::linear"  # without its rule it makes no channels
            assert named or layer or not fewer, (row.says, operator)
            cost_units += fewer
            if coupling.units and not isinstance(rehearse(copy.deepcopy(model), coupling, inputs), Proof):
                with suppress(NothingPrunableError):
                    removes_half_exactly(row)
    assert cost_units > 0.8 * len(removals())  # the others make numbers that no channel feels


def test_every_registered_operator_stands_in_the_table() -> None:
    assert set(registered()) - all_operators() - set(ALIASES) == set()


def test_no_alias_stands_in_the_table_too() -> None:
    assert set(ALIASES) & all_operators() == set()
    assert set(ALIASES) <= set(registered())


class Transform(nn.Module):
    """A convolution whose output goes through an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = torch.lgamma(y)  # the line to report
        return self.out(y)


def test_an_unknown_operation_is_reported_with_its_name_its_module_and_its_line() -> None:
    lines, first = inspect.getsourcelines(Transform)
    line = first + next(at for at, text in enumerate(lines) if "the line to report" in text)
    (stays,) = [f for f in couple(nn.Sequential(Transform()), torch.randn(1, 3, 4, 4)).frozen if f.layer == "0.a"]
    assert (stays.channels, stays.reason) == (4, "no rule for aten::lgamma")
    assert stays.where == f"aten.lgamma.default in '0' (test_rules.py:{line})"


@pytest.mark.parametrize("row", UNKNOWN, ids=lambda row: row.says)
def test_an_unknown_operation_freezes_what_it_reads(row: Row) -> None:
    (stays,) = [f for f in couple(row.model(), row.x()).frozen if f.layer == "a"]
    assert stays.reason in {f"no rule for {name}" for name in operators(row) if find(name) is None}
    assert stays.channels == 4


def test_channels_in_an_order_that_a_tensor_holds_stay_and_the_report_says_so() -> None:
    row = Row("permuted", one(), lambda net, x: net.out(net.a(x)[:, torch.tensor([2, 0, 3, 1])]), {})
    (stays,) = [f for f in couple(row.model(), row.x()).frozen if f.layer == "a"]
    assert stays.reason == INDEXED


def test_channels_that_a_convolution_slides_over_say_so() -> None:
    """Efficient channel attention makes each gate of the means of neighbouring channels."""
    row = Row(
        "gates",
        lambda: {"a": nn.Conv2d(3, 8, 1), "gate": nn.Conv1d(1, 1, 3, padding=1), "out": nn.Conv2d(8, 2, 1)},
        lambda net, x: net.out((y := net.a(x)) * net.gate(y.mean((2, 3))[:, None]).mT[..., None]),
        {},
    )
    frozen = couple(row.model(), row.x()).frozen
    assert ("a", 8, SLID_OVER) in {(stays.layer, stays.channels, stays.reason) for stays in frozen}


def test_a_table_of_positions_as_long_as_tutorials_make_it_loses_the_channels_of_its_stream() -> None:
    parts = {"a": nn.Linear(3, 64), "places": nn.Buffer(torch.randn(5000, 64)), "out": nn.Linear(64, 2)}
    row = Row("positions", lambda: parts, lambda net, x: net.out(net.a(x) + net.places[: x.shape[1]]), {}, (2, 5, 3))
    (group,) = couple(row.model(), row.x()).groups
    assert (group.name, group.size) == ("a", 64)


def test_an_in_place_operation_follows_the_rule_of_its_plain_twin() -> None:
    assert find("aten::relu_") is find("aten::relu")
    assert find("aten::no_such_operation_") is None


def test_registering_an_operation_twice_is_an_error_and_changes_nothing() -> None:
    before = registered()
    with pytest.raises(ValueError, match="aten::relu already has a rule: unary"):
        rule("relu")(lambda call: None)
    assert registered() == before


def test_a_rule_of_the_user_frees_what_was_frozen() -> None:
    row = Row("lgamma", one(), lambda net, x: net.out(torch.lgamma(net.a(x).abs() + 1)), {})
    assert couple(row.model(), row.x()).units == 0
    names = [name for name in operators(row) if find(name) is None]
    rule(*names)(lambda call: call.labels(call.tensors()[0]))
    try:
        assert removes_half_exactly(row).units == 4
    finally:
        for name in names:
            unregister(name)


def test_a_rule_that_fails_freezes_what_it_touches_and_says_why():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.third(torch.relu(self.second(torch.erfinv(self.first(x).tanh() / 2))))

    @rule("aten::erfinv")
    def broken(call):
        raise IndexError("off by one")

    try:
        coupling = hyperize(Doubled(), torch.randn(1, 4)).coupling
    finally:
        unregister("aten::erfinv")
    assert [group.name for group in coupling.groups] == ["second"]
    (frozen,) = [frozen for frozen in coupling.frozen if frozen.layer == "first"]
    assert "the rule for aten::erfinv failed (IndexError: off by one)" in frozen.reason


def test_a_tensor_too_large_to_label_stays_whole_and_holds_what_it_meets(monkeypatch):
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)
            self.places = nn.Parameter(torch.randn(5, 6))

        def forward(self, x):
            return self.third(torch.relu(self.second(self.first(x) + self.places)))

    inputs = torch.randn(5, 4)
    assert "first" in [group.name for group in hyperize(Placed(), inputs).coupling.groups]
    monkeypatch.setattr("hyperprune.labels.ledger.LARGEST_TENSOR", 29)
    coupling = hyperize(Placed(), inputs).coupling
    assert [group.name for group in coupling.groups] == ["second"]
    assert any("too large to label" in frozen.reason for frozen in coupling.frozen)
