"""One question for every network: half of it removed at random, is what is left the same network?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hyperprune import HyperModel, hyperize
from hyperprune.export import export_with_proof
from hyperprune.trace import ExampleInputs
from hyperprune.verify import tensors_of
from tests.models import random_half


def runs(model: nn.Module, inputs: Any, training: bool) -> list[Tensor]:
    """Run a copy of a model, with the same random numbers every time."""
    torch.manual_seed(5)
    with torch.no_grad():
        return tensors_of(ExampleInputs.of(inputs).call(copy.deepcopy(model).train(training)))


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) > 0 and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def halved(model: nn.Module, inputs: Any, bound: float = 1e-5) -> tuple[HyperModel, nn.Module]:
    """Hyperize, compare in both modes, remove a random half, export, and hold the proof to a bound."""
    model.eval()
    hyper = hyperize(model, inputs)
    for training in (False, True):
        assert same(runs(hyper, inputs, training), runs(model, inputs, training))
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(0)))
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error <= bound
    assert type(slim) is type(model)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    return hyper, slim


def units_of(hyper: HyperModel, layer: str) -> int:
    """Return how many channels of a layer may go."""
    sites = [site for site in hyper.coupling.sites if site.role == "writes" and site.module == layer]
    return sum(unit >= 0 for site in sites for unit in site.units)


def stays(hyper: HyperModel, layer: str) -> str:
    return " ".join(f.reason for f in hyper.coupling.frozen if f.layer == layer)
