"""The memory of activations at any widths is what a real network of these widths takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, export_pruned, hyperize, prune
from hyperprune.errors import BudgetError
from hyperprune.memory import forward_peak
from hyperprune.metering import measure_activations, priced, record
from hyperprune.metering.networks import Tailor
from hyperprune.verify import eval_mode
from tests.budget_networks import NETWORKS, activations, hyperized
from tests.models import SMALL, Net, assert_same, count, random_half, searched, small, snapshot


@torch.no_grad()
def recorded_peak(network: nn.Module, x: Tensor) -> int:
    with eval_mode(network):
        storages = record(lambda: network(x), [*network.parameters(), *network.buffers(), x])
    calls = range(max(s.died for s in storages) + 1)
    return max(sum(s.bytes for s in storages if s.born <= call < s.died) for call in calls)


@pytest.mark.parametrize("name", SMALL)
def test_the_peak_of_exported_networks_is_predicted_to_the_byte(name: str) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    found = measure_activations(hyper)
    assert found.fixed == 0
    for seed in range(4):
        keep = random_half(hyper, torch.Generator().manual_seed(seed), 0.2 + 0.2 * seed)
        hyper.bank.keep_(keep)
        assert found.peak().values(count(keep, hyper.coupling)).max() == recorded_peak(export_pruned(hyper), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_of_real_networks_is_predicted_to_the_byte(name: str) -> None:
    hyper, found = hyperized(name), activations(name)
    assert found.fixed == 0
    tailor, rng = Tailor(hyper), np.random.default_rng(11)
    for _ in range(3):
        counts = rng.integers(1, hyper.cost.full + 1)
        assert found.peak().values(counts).max() == recorded_peak(tailor.of_counts(counts), *hyper.inputs.tensors())


@pytest.mark.parametrize("name", SMALL)
def test_the_profiler_never_measures_less_than_is_predicted(name: str) -> None:
    """It counts the scratch memory of kernels too.

    Except that max_pool1d makes int64 indices (2 x 8 x 8 of them here) only where its calls are watched.
    """
    unmade = 2 * 8 * 8 * 8 if name == "one_dimensional" else 0
    model, x = small(name)
    hyper = hyperize(model, x)
    tailor = Tailor(hyper)
    predicted = int(measure_activations(hyper).peak().values(hyper.cost.full).max())
    assert predicted - unmade <= forward_peak(lambda: tailor.run(tailor.dense), torch.device("cpu"))


@pytest.mark.parametrize("name", SMALL)
def test_moments_that_are_dropped_are_never_the_peak(name: str) -> None:
    hyper = hyperize(*small(name))
    found, rng = measure_activations(hyper), np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(1, hyper.cost.full + 1)
        sizes = found.own + found.slope @ counts
        every = [int(sizes[(found.born <= at) & (at < found.died)].sum()) for at in range(int(found.died.max()) + 1)]
        assert found.peak().values(counts).max() == max(every)


def test_what_follows_no_axis_counts_at_its_full_size() -> None:
    """Memory that grows with the square of a width is no length of an axis."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.b(y.relu() + torch.zeros(y.shape[1] ** 2).sum())

    hyper = hyperize(Net({"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}, run), torch.rand(2, 4))
    found = measure_activations(hyper)
    assert found.fixed == 1
    assert found.peak().values(np.array([8])).max() == recorded_peak(hyper.model, *hyper.inputs.tensors())
    slim = Tailor(hyper).of_counts(np.array([4]))
    assert found.peak().values(np.array([4])).max() > recorded_peak(slim, *hyper.inputs.tensors())


def test_prune_meets_a_memory_budget_to_the_byte_and_leaves_the_model_alone() -> None:
    model, x = small("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hyper = hyperize(model, x)
    cost = priced(hyper, Budget(activation_bytes=0.6))
    limit = int(0.6 * (cost.total(cost.full).activation_bytes or 0))
    slim = prune(model, x, Budget(activation_bytes=limit))
    assert 0.8 * limit < recorded_peak(slim, x) <= limit
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_that_calls_otherwise_at_other_widths_is_refused() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        y = net.a(x).relu()
        return net.b(y if y.shape[1] == 8 else y.exp().log())

    hyper = hyperize(Net({"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}, run), torch.rand(2, 4))
    with pytest.raises(BudgetError, match="other calls"):
        measure_activations(hyper)


def test_a_search_meets_memory_and_macs_at_once_and_a_ceiling() -> None:
    model, x = small("residual")
    budget = Budget(activation_bytes=0.7, macs=0.6, ceilings={"block1.conv1": 4})
    hyper = searched(model, x, budget)
    cost = priced(hyper, budget)
    counts, limits = count(hyper.living(), hyper.coupling), budget.limits(cost.total(cost.full))
    total = cost.total(counts)
    assert total.macs <= limits["macs"]
    assert recorded_peak(export_pruned(hyper), x) == total.activation_bytes
    assert total.activation_bytes <= limits["activation_bytes"]
    assert counts[[group.name for group in hyper.coupling.groups].index("block1.conv1")] <= 4


def test_metering_leaves_random_state_modes_and_weights_as_found() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(net.a(x).relu() + 1e-6 * torch.rand(1))

    model = Net({"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}, run).train()
    hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)).train(), torch.rand(2, 4))
    before, state = snapshot(hyper.model), torch.random.get_rng_state()
    measure_activations(hyper)
    record(lambda: model(torch.ones(2, 4)), [])
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same(before, snapshot(hyper.model))
