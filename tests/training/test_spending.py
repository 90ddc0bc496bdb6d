"""What came of a budget, measured on the networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune import Budget, hyperize, prune, report
from hyperprune.metering import priced
from hyperprune.training.spending import activation_peak, spending
from tests.models import mobile, residual, sequential

X = torch.randn(1, 3, 8, 8)


def test_a_chain_of_layers_takes_the_two_largest_neighbours() -> None:
    chain = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 30), nn.Linear(30, 20), nn.Linear(20, 1))
    assert activation_peak(chain, torch.zeros(2, 4)) == 2 * (30 + 20) * 4


@pytest.mark.parametrize("make", [residual, sequential, mobile])
def test_the_peak_is_what_the_budget_was_priced_with(make: type[nn.Module]) -> None:
    model = make().eval()
    cost = priced(hyperize(model, X), Budget(activation_bytes=0.5))
    assert activation_peak(model, X) == cost.total(cost.full).activation_bytes


def test_every_resource_that_was_asked_is_told_and_no_other() -> None:
    dense = residual()
    budget = Budget(macs=0.7, params=1500, activation_bytes=0.8)
    slim = prune(dense, X, budget)
    found = spending(budget, report(dense, slim, X), dense, slim, X)
    assert list(found) == ["macs", "params", "activation_bytes"]
    assert {resource: told["asked"] for resource, told in found.items()} == budget.asked()
    limits = {"macs": 0.7 * found["macs"]["dense"], "params": 1500}
    limits["activation_bytes"] = 0.8 * found["activation_bytes"]["dense"]
    assert all(found[resource]["slim"] <= limits[resource] for resource in limits)
    assert found["params"]["slim"] == sum(parameter.numel() for parameter in slim.parameters())


def test_a_latency_is_timed_and_the_modes_come_back() -> None:
    dense, slim = nn.Linear(2048, 2048).train(), nn.Linear(2048, 64).train()
    x = torch.randn(64, 2048)
    found = spending(Budget(latency=0.9), report(dense, slim, x), dense, slim, x)
    assert list(found) == ["latency_ns"]
    assert 0 < found["latency_ns"]["slim"] < found["latency_ns"]["dense"]
    assert dense.training
    assert slim.training
