"""Layers whose weights the user's own parametrizations make: they keep their channels, everything else is pruned."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from hyperprune import Budget, Search, export_pruned, hyperize, load_pruned, save_pruned, transfer_optimizer
from hyperprune.labels.reasons import PARAMETRIZED
from tests.models import assert_same, snapshot

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.9))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


KINDS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "of a weight": lambda layer: register_parametrization(layer, "weight", Scaled()),
    "of a bias": lambda layer: register_parametrization(layer, "bias", Scaled()),
}


def network(parametrized: Callable[[nn.Module], object]) -> nn.Module:
    """Five convolutions; the third is parametrized."""
    torch.manual_seed(0)
    widths = (3, 10, 8, 12, 6, 4)
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths)]
    parametrized(layers[2])
    return nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.Tanh())), layers[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrized_layer_keeps_its_channels_and_its_parametrization(kind: str, tmp_path: Path) -> None:
    model = network(KINDS[kind])
    before = snapshot(model)
    hyper = hyperize(model, X)
    assert_same(before, snapshot(model))
    assert torch.equal(hyper.eval()(X), model.eval()(X))
    assert {group.name for group in hyper.coupling.groups} == {"0", "6"}
    assert {frozen.reason for frozen in hyper.coupling.frozen if frozen.layer == "2"} == {PARAMETRIZED}

    hyper.train()
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=1e-2))
    search = Search(hyper, optimizer, Budget(macs=0.6), steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        hyper(X).square().mean().backward()
        optimizer.step()
        search.step()
    slim = export_pruned(hyper)
    assert is_parametrized(slim[4])
    assert (slim[0].out_channels, slim[6].out_channels) < (10, 6)
    names = dict(slim.named_parameters())
    trained = {id(p) for group in transfer_optimizer(hyper, slim, optimizer).param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in names.values()}

    save_pruned(slim, tmp_path / "slim.safetensors")
    loaded = load_pruned(network(KINDS[kind]), tmp_path / "slim.safetensors")
    assert torch.equal(loaded.eval()(X), slim.eval()(X))
