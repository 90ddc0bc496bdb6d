"""The coupling map against numbers: units are silenced, what makes them is disturbed, and nothing else may change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn

from hyperprune import HyperModel, Lean, hyperize
from hyperprune.coupling import CouplingMap, Site
from hyperprune.generators import attach
from hyperprune.latents import LatentBank
from tests.models import SMALL, randomise_norms_, residual, small
from tests.second_opinion import second_opinion

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "shufflenet_v2_x0_5": torchvision.models.shufflenet_v2_x0_5,
    "squeezenet1_1": torchvision.models.squeezenet1_1,
    "test_vit": lambda: timm.create_model("test_vit"),
    "test_convnext": lambda: timm.create_model("test_convnext"),
    "test_nfnet": lambda: timm.create_model("test_nfnet"),
    "test_efficientnet_gn": lambda: timm.create_model("test_efficientnet_gn"),
}


@pytest.mark.parametrize("name", SMALL)
def test_it_agrees_on_small_networks(name: str) -> None:
    model, x = small(name)
    opinion = second_opinion(hyperize(randomise_norms_(model).eval(), x))
    assert opinion.agrees, opinion
    assert opinion.felt >= 0.7 * opinion.asked > 0


@pytest.mark.zoo
@pytest.mark.parametrize("name", NETWORKS)
def test_it_agrees_on_known_networks(name: str) -> None:
    """``make zoo`` asks for every network of the table."""
    torch.manual_seed(0)
    model = randomise_norms_(NETWORKS[name]()).eval()
    for parameter in model.parameters():
        if not parameter.any():  # gains and biases of branches, which start silent
            nn.init.normal_(parameter)
    hyper = hyperize(model, torch.randn(1, 3, 160, 160))
    opinion = second_opinion(hyper, rounds=1)
    assert opinion.agrees, opinion
    assert opinion.units == hyper.coupling.units
    assert opinion.felt >= 0.5 * opinion.asked > 0


def test_it_leaves_the_model_as_it_was() -> None:
    hyper = hyperize(randomise_norms_(residual()).eval(), torch.randn(2, 3, 8, 8))
    before = copy.deepcopy(hyper.state_dict())
    second_opinion(hyper)
    after = hyper.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def swapped(site: Site) -> Site:
    first, second, *others = site.units
    return replace(site, units=(second, first, *others))


LIES: dict[str, Callable[[CouplingMap], CouplingMap]] = {
    "a layer reads two channels in another order": lambda true: _with(true, "reads", swapped),
    "a layer makes two channels in another order": lambda true: _with(true, "writes", swapped),
    "a reader was not seen": lambda true: _with(true, "reads", lambda _: None),
}


def _with(true: CouplingMap, role: str, lie: Callable[[Site], Site | None]) -> CouplingMap:
    """Return a map that lies about the first site of a role."""
    at, site = next((at, site) for at, site in enumerate(true.sites) if site.role == role)
    told = lie(site)
    return replace(true, sites=(*true.sites[:at], *([told] if told else []), *true.sites[at + 1 :]))


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ["residual", "sequential", "mobile"])
def test_it_finds_every_lie(name: str, lie: str) -> None:
    model, x = small(name)
    model = randomise_norms_(model).eval()
    true = hyperize(model, x)
    told = LIES[lie](true.coupling)
    bank = LatentBank(told.groups)
    attach(model, bank, told, Lean(), seed=0)
    assert not second_opinion(HyperModel(model, bank, told, true.cost, true.inputs)).agrees
