"""The promises on architectures of torchvision and timm, with random weights and trained-like norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import DHP, Budget, HyperModel, export_pruned, hyperize
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import count_with_fvcore
from hyperprune.export import export_with_proof
from tests.models import count, dead_units, random_half, randomise_norms_

pytestmark = [pytest.mark.zoo, pytest.mark.slow]


def torchvision(name: str, size: int = 64, **options: Any) -> tuple[str, Callable[[], nn.Module], int]:
    def make() -> nn.Module:
        return pytest.importorskip("torchvision.models").get_model(name, weights=None, **options)

    return name, make, size


def timm(name: str, size: int = 64) -> tuple[str, Callable[[], nn.Module], int]:
    return name, lambda: pytest.importorskip("timm").create_model(name, pretrained=False), size


ZOO = [
    torchvision("resnet18"),
    torchvision("resnet50"),
    torchvision("mobilenet_v2"),
    torchvision("mobilenet_v3_large"),
    torchvision("shufflenet_v2_x1_0"),
    torchvision("resnext50_32x4d"),
    torchvision("efficientnet_b0"),
    torchvision("squeezenet1_0"),
    timm("repvgg_a0"),
]
QUICK_AS_DHP = {"resnet18", "mobilenet_v2", "squeezenet1_0"}
LARGE = [  # or slow; the table of docs/zoo.md has these and 320 more
    torchvision("densenet121"),
    torchvision("googlenet", init_weights=False),
    torchvision("regnet_y_400mf"),
    timm("ghostnet_100"),
    torchvision("vgg11_bn", size=32),
    torchvision("mnasnet1_0"),
    timm("dla34"),
    timm("hrnet_w18_small"),
    timm("cspdarknet53"),
]
PARAMS = [
    *(pytest.param(entry, id=entry[0]) for entry in ZOO),
    *(pytest.param(entry, id=entry[0], marks=pytest.mark.nightly) for entry in LARGE),
]
AS_DHP = [
    *(pytest.param(e, id=e[0], marks=[pytest.mark.nightly] * (e[0] not in QUICK_AS_DHP)) for e in ZOO),
    *PARAMS[len(ZOO) :],
]


@dataclass
class Animal:
    name: str
    model: nn.Module
    hyper: HyperModel
    x: Tensor


@pytest.fixture(scope="module", params=PARAMS)
def animal(request: pytest.FixtureRequest) -> Animal:
    name, make, size = request.param
    torch.manual_seed(0)
    model = randomise_norms_(make()).eval()
    x = torch.randn(2, 3, size, size)
    return Animal(name, model, hyperize(model, x[:1]), x)


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [t for t in output if isinstance(t, Tensor)]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(s, t) for s, t in zip(tensors(a), tensors(b), strict=True))


def run(model: nn.Module, x: Tensor, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(x)


def assert_bit_exact(animal: Animal, hyper: HyperModel) -> None:
    assert same(run(animal.model.eval(), animal.x), run(hyper.eval(), animal.x))
    model, hyper = copy.deepcopy(animal.model).train(), copy.deepcopy(hyper).train()
    assert same(run(model, animal.x), run(hyper, animal.x))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, hyper.model.get_buffer(name)), name


def test_lean_is_bit_exact_in_eval_and_in_train_mode(animal: Animal) -> None:
    assert_bit_exact(animal, animal.hyper)


@pytest.mark.parametrize("animal", AS_DHP, indirect=True)
def test_dhp_is_bit_exact_in_eval_and_in_train_mode(animal: Animal) -> None:
    assert_bit_exact(animal, hyperize(animal.model, animal.x[:1], generator=DHP(embedding=2)))


def test_every_latent_receives_a_gradient_on_the_first_backward(animal: Animal) -> None:
    """A unit may go without one only where the plain network's own weights do: its activation is dead."""
    model, hyper = copy.deepcopy(animal.model).train(), copy.deepcopy(animal.hyper).train()
    for network in (model, hyper):
        torch.manual_seed(0)
        outputs = tensors(network(torch.cat([animal.x] * 2)))
        sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).sum() for t in outputs).backward()
    gradient = hyper.bank.latents.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert not ((gradient == 0) & ~dead_units(model, hyper)).any()
    assert int((gradient == 0).sum()) < len(gradient) / 3


def test_without_a_random_half_the_slim_model_equals_the_searched_one(animal: Animal, rng: torch.Generator) -> None:
    hyper = copy.deepcopy(animal.hyper).eval()
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.8, 1.2, generator=rng)
    hyper.bank.keep_(random_half(hyper, rng))
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-5
    assert type(slim) is type(animal.model)
    for (path, module), (other, original) in zip(slim.named_modules(), animal.model.named_modules(), strict=True):
        assert path == other
        assert type(module) is type(original)
        assert not type(module).__module__.startswith("hyperprune")
    outputs = tensors(slim.train()(animal.x))
    sum(t.square().mean() for t in outputs).backward()
    assert any(p.grad is not None for p in slim.parameters())


def test_the_dense_network_costs_what_fvcore_counts(animal: Animal) -> None:
    dense = animal.hyper.cost.total(animal.hyper.cost.full)
    assert count_with_fvcore(animal.model, animal.x[:1]).macs == pytest.approx(dense.macs, rel=1e-3)
    assert dense.params == sum(p.numel() for p in animal.model.parameters())


def test_budgets_are_met_within_one_unit_and_fvcore_agrees(animal: Animal) -> None:
    hyper = animal.hyper
    dense = hyper.cost.total(hyper.cost.full)
    scores = torch.rand(hyper.coupling.units, generator=torch.Generator().manual_seed(0)).numpy()
    for resource in ("macs", "params"):
        for share in (0.7, 0.5, 0.3):
            budget = Budget(**{resource: share})
            ladder, limits = Ladder.of(hyper.coupling.groups, budget), budget.limits(dense)
            keep = torch.from_numpy(Solver(hyper.cost, ladder).solve(scores, limits))
            counts = count(keep, hyper.coupling)
            planned, limit = hyper.cost.total(counts), limits[resource]
            assert getattr(planned, resource) <= limit
            gains = hyper.cost.changes(counts, ladder.up(counts) - counts)[resource]
            assert (getattr(planned, resource) + gains[counts < hyper.cost.full] > limit).all()
            if share == 0.5:
                hyper.bank.keep_(keep)
                counted = count_with_fvcore(export_pruned(hyper), animal.x[:1])
                hyper.bank.alive.fill_(1.0)
                assert counted.params == planned.params
                assert counted.macs == pytest.approx(planned.macs, rel=1e-3)
