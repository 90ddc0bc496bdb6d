"""The latency model, its error, and the last look at the clock.

Most tests run on a device of their own: one on which time is the work done, so nothing depends on the machine.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperprune import Budget, HyperModel, Search, fit_latency, hyperize
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import LatencyModel
from hyperprune.errors import BudgetError
from hyperprune.metering import settled
from hyperprune.stopwatch import Clock, Stopwatch
from tests.budget_networks import drawn_latency, hyperized
from tests.models import count, small


@contextmanager
def counting() -> Iterator[Clock]:
    """A clock that shows multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        yield lambda: counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def network() -> HyperModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 10)]
    return hyperize(nn.Sequential(*layers), torch.randn(1, 3, 12, 12))


@pytest.fixture(scope="module")
def counted(network: HyperModel) -> LatencyModel:
    with counting() as clock:
        return fit_latency(network, seconds=0.0, clock=clock)


def test_on_a_device_whose_time_is_its_work_the_model_is_right_at_any_widths(
    network: HyperModel, counted: LatencyModel
) -> None:
    assert counted.worst < 0.02
    rng = np.random.default_rng(5)
    for _ in range(10):
        counts = rng.integers(network.cost.full // 10 + 1, network.cost.full + 1)
        work = network.cost.total(counts).macs
        assert counted.values(counts)[0] == pytest.approx(work, rel=0.02)


def test_the_dense_latency_is_that_of_the_dense_network(network: HyperModel, counted: LatencyModel) -> None:
    assert counted.dense_ns == pytest.approx(network.cost.total(network.cost.full).macs, rel=1e-3)
    assert counted.values(network.cost.full)[0] == counted.dense_ns


def test_the_error_is_printed(counted: LatencyModel) -> None:
    told = str(replace(counted, errors=(0.01, -0.031, 0.2)))
    assert "3 networks of random widths" in told
    assert "3.1% (median), 20.0% (worst)" in told


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_change_of_one_group_is_the_difference_of_two_values_and_more_units_never_cost_less(seed: int) -> None:
    coupling = hyperized("resnet18").coupling
    model, rng = drawn_latency(coupling, seed), np.random.default_rng(seed)
    for _ in range(5):
        counts = rng.integers(1, model.axes.full + 1)
        delta = rng.integers(-counts + 1, model.axes.full - counts + 1)
        changes = model.changes(counts, delta)[0]
        for group, step in enumerate(delta):
            moved = counts.copy()
            moved[group] += step
            assert changes[group] == model.values(moved)[0] - model.values(counts)[0]
            assert changes[group] * step >= 0


class Device:
    """Takes another power of the model's prediction: its errors are systematic."""

    def __init__(self, hyper: HyperModel, model: LatencyModel, power: float) -> None:
        self._hyper, self._model, self._power = hyper, model, power
        self.looks = 0

    def ratio(self, alive: np.ndarray) -> float:
        self.looks += 1
        return float(self._model.values(count(alive, self._hyper.coupling))[0] / self._model.dense_ns) ** self._power


def settle(hyper: HyperModel, model: LatencyModel, budget: Budget) -> tuple[np.ndarray, dict[str, int]]:
    cost = hyper.cost.metered("latency_ns", model)
    solver, limits = Solver(cost, Ladder.of(hyper.coupling.groups, budget)), budget.limits(cost.total(cost.full))
    scores = np.random.default_rng(0).exponential(size=hyper.coupling.units)
    return settled(cost, limits, lambda bounds: solver.solve(scores, bounds)), limits


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("power", [0.6, 1.0, 1.5])
def test_a_wrong_model_is_corrected_until_the_real_network_takes_what_was_asked_for(share: float, power: float) -> None:
    hyper = hyperized("resnet18")
    model = drawn_latency(hyper.coupling, seed=1)
    device = Device(hyper, model, power)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep, _ = settle(hyper, replace(model, clock=device), Budget(latency=share))
    assert device.ratio(keep) == pytest.approx(share, rel=0.05)
    assert device.looks <= 8


def test_a_single_reading_that_flatters_is_not_believed() -> None:
    class Flattering(Device):
        def ratio(self, alive: np.ndarray) -> float:
            truth = 1.08 * super().ratio(alive)
            return truth / 1.08 if self.looks == 1 else truth

    hyper = hyperized("resnet18")
    model = drawn_latency(hyper.coupling, seed=1)
    device = Flattering(hyper, model, 1.0)
    keep, _ = settle(hyper, replace(model, clock=device), Budget(latency=0.5))
    assert device.ratio(keep) == pytest.approx(0.5, rel=0.02)


@pytest.mark.slow
def test_other_limits_hold_while_the_latency_is_corrected() -> None:
    hyper = hyperized("resnet18")
    model = drawn_latency(hyper.coupling, seed=1)
    keep, limits = settle(hyper, replace(model, clock=Device(hyper, model, 0.5)), Budget(latency=0.7, macs=0.4))
    assert hyper.cost.total(count(keep, hyper.coupling)).macs <= limits["macs"]


@pytest.mark.slow
def test_a_latency_that_the_clock_never_shows_is_warned_of() -> None:
    class Stuck:
        def ratio(self, alive: np.ndarray) -> float:
            return 0.9

    hyper = hyperized("resnet18")
    with pytest.warns(UserWarning, match=r"nearest network found takes .*\+80"):
        settle(hyper, replace(drawn_latency(hyper.coupling, seed=1), clock=Stuck()), Budget(latency=0.5))


def test_layers_may_be_called_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(input=torch.relu(self.first(input=x)))

    with counting() as clock:
        model = fit_latency(hyperize(Named(), torch.randn(3, 6)), seconds=0.0, clock=clock)
    assert len(model.tables) == 2


def test_a_search_ends_at_the_latency_asked_for() -> None:
    hyper = hyperize(nn.Sequential(*small_layers()), torch.randn(1, 3, 12, 12))
    with counting() as clock:
        model = fit_latency(hyper, seconds=0.0, clock=clock)
        hyper.cost = hyper.cost.metered("latency_ns", model)
        optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
        search = Search(hyper, optimizer, Budget(latency=0.5), steps=3)
        for _ in range(3):
            optimizer.zero_grad()
            hyper(torch.randn(1, 3, 12, 12)).square().mean().backward()
            optimizer.step()
            search.step()
    assert search.done
    assert search.state_dict()["about"]["budget"] == {"latency_ns": 0.5}  # not the limit, which is measured anew
    work = hyper.cost.total(count(hyper.living(), hyper.coupling)).macs
    assert work == pytest.approx(0.5 * model.dense_ns, rel=0.05)


def small_layers() -> list[nn.Module]:
    convolutions: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1)]
    return [*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobile", "grouped", "transposed", "one_dimensional"])
def test_every_kind_of_layer_is_timed_at_the_sizes_it_will_have(name: str) -> None:
    hyper = hyperize(*small(name))
    with counting() as clock:
        model = fit_latency(hyper, seconds=0.0, clock=clock)
    assert model.worst < 0.1
    assert model.dense_ns == pytest.approx(hyper.cost.total(hyper.cost.full).macs, rel=0.01)


def test_several_processes_are_refused(network: HyperModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    optimizer = torch.optim.SGD(network.parameter_groups(lr=0.01))
    with pytest.raises(BudgetError, match="several processes"):
        Search(network, optimizer, Budget(latency=0.5), steps=2)


def test_the_stopwatch_takes_turns_and_stops_in_time() -> None:
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    Stopwatch(torch.device("cpu"), fewest=2, most=4, seconds=60.0).medians(calls)
    assert "".join(order) == "ab" + "baab" * 2
    order.clear()
    Stopwatch(torch.device("cpu"), fewest=2, most=4, seconds=0.0).medians(calls)
    assert len(order) == 2 + 2 * 2


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "cpu"])
def test_an_accelerator_of_any_kind_is_waited_for_before_and_after_each_call(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(device.type))
    Stopwatch(torch.device(kind), warmups=0, fewest=2, most=2, seconds=0.0).times([lambda: order.append("call")])
    assert order == [each for each in [kind, "call", kind] * 2 if each != "cpu"]


def test_a_machine_that_becomes_slower_meanwhile_changes_no_ratio() -> None:
    now, rounds = [0], [0]

    def takes(ticks: int) -> None:
        now[0] += ticks * (1 if rounds[0] < 8 else 7)

    def slower() -> None:
        rounds[0] += 1
        takes(500)

    watch = Stopwatch(torch.device("cpu"), fewest=15, most=15, clock=lambda: now[0])
    assert watch.ratio(lambda: takes(300), to=slower) == pytest.approx(0.6)


@pytest.mark.slow
def test_on_this_machine_the_model_is_right_within_a_quarter_and_its_network_near_what_was_asked_for() -> None:
    """In one of three tries: other jobs share the caches even where the processor's own time is read.

    docs/budgets.md holds the real figures.
    """
    torch.manual_seed(0)
    widths = [3, 64, 64, 96, 96, 128, 128]
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    hyper = hyperize(nn.Sequential(*layers, *head), torch.randn(1, 3, 24, 24))
    tries: list[tuple[float, float]] = []
    while len(tries) < 3 and not any(error < 0.25 and abs(share - 0.5) <= 0.05 for error, share in tries):
        model = fit_latency(hyper, seconds=1.0, clock=time.thread_time_ns)
        keep, _ = settle(hyper, model, Budget(latency=0.5))
        tries.append((model.error, model.clock.ratio(keep)))
    error, share = tries[-1]
    assert error < 0.25, tries
    assert share == pytest.approx(0.5, rel=0.1), tries
