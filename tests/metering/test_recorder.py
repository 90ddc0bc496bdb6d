"""The recorder sees every piece of memory, from the call that takes it to the first one after it is gone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperprune.memory import forward_peak
from hyperprune.metering import Storage, record

X = torch.zeros(10)


def kept_by_python(x: Tensor) -> Tensor:
    first = x.exp()
    second = first.sin()
    return second.cos() + 1


def dropped_at_once(x: Tensor) -> Tensor:
    return x.exp().sin().cos() + 1


def test_memory_lives_as_long_as_python_holds_it() -> None:
    assert [(s.born, s.died) for s in record(lambda: kept_by_python(X), [X])] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [(s.born, s.died) for s in record(lambda: dropped_at_once(X), [X])] == [(0, 2), (1, 3), (2, 4), (3, 4)]


def test_views_share_memory_and_calls_in_place_take_none() -> None:
    assert record(lambda: X.exp().view(2, 5).t().relu_(), [X]) == [Storage(40, 0, 4)]


def test_weights_and_inputs_are_not_counted() -> None:
    weight = torch.ones(10, 10)
    assert record(lambda: torch.mv(weight.t(), X.view(10)), [weight, X]) == [Storage(40, 2, 3)]


@pytest.mark.parametrize("width", [8, 33])
def test_the_peak_is_what_torchs_own_profiler_measures_where_kernels_take_no_scratch_memory(width: int) -> None:
    model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 2)).eval()
    x = torch.randn(5, 16)

    def run() -> object:
        with torch.no_grad():
            return model(x)

    storages = record(run, [*model.parameters(), x])
    calls = range(max(s.died for s in storages) + 1)
    peak = max(sum(s.bytes for s in storages if s.born <= call < s.died) for call in calls)
    assert peak == forward_peak(run, torch.device("cpu"))
