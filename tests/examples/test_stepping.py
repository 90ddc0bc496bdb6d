"""Torch-Pruning's ratio is stepped so that the MACs are those that were asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from examples.common.stepping import brought_to
from examples.networks import resnet20
from hyperprune import HyperpruneError
from hyperprune.cost import count_with_fvcore

tp = pytest.importorskip("torch_pruning")


@pytest.mark.parametrize(("macs", "global_pruning"), [(0.5, True), (0.15, False)])
def test_the_macs_lie_within_a_hundredth_below_the_target(macs: float, global_pruning: bool) -> None:
    torch.manual_seed(0)
    model, x = resnet20().eval(), torch.rand(1, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make = partial(
        tp.pruner.BasePruner, importance=tp.importance.GroupMagnitudeImportance(), global_pruning=global_pruning
    )
    slim = brought_to(make, model, x, macs)
    assert 0.99 * macs <= count_with_fvcore(slim, x).macs / count_with_fvcore(model, x).macs <= macs
    assert slim(x).shape == (1, 10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_gradients_reach_the_importance_and_do_not_stay() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 4, 3)), torch.rand(2, 3, 8, 8)
    model(x).square().mean().backward()
    with torch.no_grad():
        model[0].weight.grad[5:] = 0
        model[2].weight.grad[:, 5:] = 0
    kept = model[0].weight[:5].detach().clone()
    slim = brought_to(
        partial(tp.pruner.BasePruner, importance=tp.importance.GroupTaylorImportance()), model, x[:1], 0.25
    )
    assert torch.equal(slim[0].weight.detach(), kept)
    assert all(parameter.grad is None for parameter in slim.parameters())
    assert model[0].weight.grad is not None


def test_what_cannot_be_reached_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))  # its only layer makes the output, which stays whole
    with pytest.raises(HyperpruneError, match="Torch-Pruning fails on this network"):
        brought_to(
            partial(tp.pruner.BasePruner, importance=tp.importance.GroupMagnitudeImportance()),
            model,
            torch.rand(1, 3, 8, 8),
            0.5,
        )
