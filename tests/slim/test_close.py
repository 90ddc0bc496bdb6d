"""Closed branches: exact, trainable, saved, exported, and paid for by nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from examples.networks import EDSR, resnet20
from hyperprune import Budget, HyperModel, Search, export_pruned, hyperize, prune, transfer_optimizer
from hyperprune.checkpoint import load_pruned, save_pruned
from hyperprune.cost import count_with_fvcore
from hyperprune.errors import SlimmingError
from hyperprune.export import export_with_proof
from hyperprune.plan import Closing, WidthPlan
from hyperprune.slim import carve_
from hyperprune.slim.close import End, Start
from tests.models import assert_same, count, residual, snapshot

IMAGE = torch.randn(2, 3, 32, 32)
NETWORKS = {
    "resnet20": (resnet20, IMAGE),
    "resnet50": (torchvision.models.resnet50, IMAGE),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, IMAGE),
    "efficientnet": (lambda: timm.create_model("efficientnet_b0"), IMAGE),
    "convnext": (lambda: timm.create_model("convnext_atto"), IMAGE),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3), IMAGE),
    "edsr": (lambda: EDSR(channels=8, blocks=3), torch.rand(2, 3, 8, 8)),
}


def closed(name: str, every: int = 2) -> tuple[HyperModel, Tensor]:
    """Return a hyperized network with every so many-th branch closed, and a third of the other units gone."""
    torch.manual_seed(0)
    build, x = NETWORKS[name]
    hyper = hyperize(build().eval(), x)
    keep = torch.rand(hyper.coupling.units) > 0.3
    keep[[group.start for group in hyper.coupling.groups]] = True
    for branch in hyper.coupling.branches[::every]:
        for group in branch.groups:
            keep[hyper.coupling.groups[group].units] = False
    hyper.bank.keep_(keep)
    return hyper, x


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_closed_branches_is_exported_exactly_and_costs_what_was_counted(name: str) -> None:
    hyper, x = closed(name)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-5
    cost = hyper.cost.total(count(hyper.living().numpy(), hyper.coupling))
    assert cost.params == sum(parameter.numel() for parameter in slim.parameters())
    if name != "vit":  # fvcore cannot see fused attention; its own layers are counted in tests/test_zoo.py
        assert cost.macs == count_with_fvcore(slim, x).macs
    assert sum(isinstance(module, End) for module in slim.modules()) == len(hyper.coupling.branches[::2])


@pytest.mark.parametrize("name", ["resnet20", "efficientnet", "convnext"])
def test_train_mode_equals_the_searched_network_too(name: str) -> None:
    hyper, x = closed(name)
    hyper, x = hyper.double(), x.double()  # batch norm over few values amplifies rounding
    slim = export_pruned(hyper)
    torch.manual_seed(1)
    expected = hyper.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(slim.train()(x), expected)


def test_a_search_with_depth_closes_what_is_worth_nothing_and_meets_its_budget() -> None:
    torch.manual_seed(0)
    model = resnet20().eval()
    with torch.no_grad():  # these two blocks add nothing at all
        for block in (model.stages[0][1], model.stages[2][2]):
            block.norm2.weight.zero_()
            block.norm2.bias.zero_()
    hyper = hyperize(model, IMAGE)
    budget = Budget(macs=0.6, depth=True)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=1e-4))
    search = Search(hyper, optimizer, budget, steps=6)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(hyper(IMAGE), torch.tensor([1, 2])).backward()
        optimizer.step()
        search.step()
    slim = export_pruned(hyper)
    ends = {path for path, module in slim.named_modules() if isinstance(module, End)}
    assert {"stages.0.1.conv2", "stages.2.2.conv2"} <= ends
    dense, found = (count_with_fvcore(net, IMAGE).macs for net in (model, slim))
    assert 0.59 < found / dense <= 0.6


def test_without_depth_every_group_keeps_a_unit() -> None:
    slim = prune(resnet20().eval(), IMAGE, Budget(macs=0.05))
    assert not any(isinstance(module, (End, Start)) for module in slim.modules())


@pytest.mark.parametrize("bounds", [{"floor": 2}, {"floors": {"stages.*.conv1": 2}}])
def test_a_floor_keeps_branches_open(bounds: dict) -> None:
    slim = prune(resnet20().eval(), IMAGE, Budget(macs=0.1, depth=True, **bounds), criterion="random")
    assert not any(isinstance(module, End) for module in slim.modules())


def test_depth_goes_below_what_widths_allow() -> None:
    model = torchvision.models.resnet50().eval()
    least = hyperize(model, IMAGE)
    narrowest = least.cost.total([1] * len(least.coupling.groups)).params
    slim = prune(model, IMAGE, Budget(params=narrowest - 100, depth=True))
    assert sum(parameter.numel() for parameter in slim.parameters()) <= narrowest - 100


def test_what_is_closed_trains_on() -> None:
    hyper, x = closed("resnet20")
    slim = export_pruned(hyper).train()
    slim(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


def test_an_activation_in_place_does_not_reach_what_runs_past_a_closed_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
            self.act, self.two, self.head = nn.ReLU(inplace=True), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.two(self.act(self.one(x))))

    hyper = hyperize(Block().eval(), IMAGE)
    (branch,) = hyper.coupling.branches
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    keep[hyper.coupling.groups[branch.groups[0]].units] = False
    hyper.bank.keep_(keep)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-6
    assert isinstance(slim.one, Start)
    assert slim.two.bias is not None


@pytest.mark.parametrize("name", ["resnet20", "edsr"])
def test_a_closed_network_is_saved_and_built_again(name: str, tmp_path: Path) -> None:
    hyper, x = closed(name)
    slim = export_pruned(hyper)
    save_pruned(slim, tmp_path / "slim.safetensors")
    again = load_pruned(NETWORKS[name][0](), tmp_path / "slim.safetensors").eval()
    assert torch.equal(again(x), slim.eval()(x))


def test_a_closed_network_is_hyperized_and_pruned_again() -> None:
    hyper, x = closed("resnet20")
    slim = export_pruned(hyper).eval()
    again = prune(slim, x, Budget(macs=0.5))
    assert count_with_fvcore(again, x).macs <= 0.5 * count_with_fvcore(slim, x).macs


def test_the_optimisers_state_goes_with_the_survivors() -> None:
    hyper, x = closed("resnet20")
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1), momentum=0.9)
    hyper.train()(x).sum().backward()
    optimizer.step()
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, optimizer)
    assert {id(p) for group in carried.param_groups for p in group["params"]} == {id(p) for p in slim.parameters()}


def test_a_plan_that_closes_a_layer_that_is_not_there_changes_nothing() -> None:
    model = residual()
    before = snapshot(model)
    with pytest.raises(SlimmingError, match="closes 'nowhere'"):
        carve_(model, WidthPlan((), closings=(Closing("nowhere", "starts"),)))
    assert_same(before, snapshot(model))
