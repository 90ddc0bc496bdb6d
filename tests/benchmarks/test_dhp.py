"""`make bench-dhp`: its published hypernetwork is the paper's formula, and its page shows what was measured."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from benchmarks.dhp import EMBEDDING, KINDS, MARKS, PublishedWeight, attach_published_, measure, page
from benchmarks.speed_steps import DEVICE
from examples.networks.resnet import Basic, ResNet
from hyperprune import hyperize

X = (2, 3, 8, 8)


def tiny() -> nn.Module:
    return ResNet(Basic, 1)


def test_every_pair_of_channels_goes_through_both_layers_and_their_biases() -> None:
    reads, writes = (nn.Parameter(torch.randn(length, dtype=torch.float64)) for length in (3, 4))
    made = PublishedWeight(reads, writes, kernel=(2, 3), embedding=5)
    parts = [torch.randn_like(part) for part in made.right_inverse(torch.zeros(4, 3, 2, 3, dtype=torch.float64))]
    b0, w1, b1, w2, b2 = parts
    weight = made(*parts)
    for j, i in product(range(4), range(3)):
        embedded = (reads[i] * writes[j] + b0[i, j]) * w1[i, j] + b1[i, j]
        torch.testing.assert_close(weight[j, i].flatten(), w2[i, j] @ embedded + b2[i, j])


def test_the_published_start_has_the_papers_ranges_and_no_bias() -> None:
    made = PublishedWeight(nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(32)), kernel=(3, 3))
    b0, w1, b1, w2, b2 = made.right_inverse(torch.zeros(32, 16, 3, 3))
    assert not any(bias.any() for bias in (b0, b1, b2))
    assert 0.99 * 3**0.5 < w1.abs().max() <= 3**0.5
    half_width = (3 / (EMBEDDING * 16 * 9)) ** 0.5
    assert 0.99 * half_width < w2.abs().max() <= half_width


def test_the_published_network_costs_the_published_parameters_and_shares_latents() -> None:
    model = tiny()
    coupling = hyperize(model, torch.randn(X)).coupling
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Conv2d)]
    others = sum(p.numel() for p in model.parameters()) - sum(shape.numel() for shape in shapes)
    m, image = EMBEDDING, 3
    made = sum(n * c * (1 + 2 * m + k * k * m + k * k) for n, c, k, _ in shapes)
    attach_published_(model, coupling)
    assert sum(p.numel() for p in model.parameters()) == others + made + coupling.units + image


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    about = {"torch": "2", "cores": 2, "threads": 1, "load_before": 0.5}
    return {"about": about, **measure(tiny, X, rounds=2)}


def parameters(kind: str) -> int:
    model = KINDS[kind](tiny().to(DEVICE), torch.randn(X, device=DEVICE)).model
    return sum(parameter.numel() for parameter in model.parameters())


def test_memory_follows_the_parameters(results: dict[str, Any]) -> None:
    for kind, one in results["kinds"].items():
        assert one["params"] == parameters(kind)
        assert one["optimizer_bytes"] == 4 * one["params"]  # one momentum in float32 for each
        assert len(one["step_ns"]) == len(one["weights_ns"]) == 2
    peaks = [results["kinds"][kind]["peak_bytes"] for kind in ("dense", "lean", "dhp", "published")]
    assert peaks == sorted(set(peaks))


def test_the_page_shows_every_kind_and_leaves_the_rest_alone(results: dict[str, Any]) -> None:
    kinds = {kind: {**one, "step_ns": [1, 1, 1], "weights_ns": [1, 1, 1]} for kind, one in results["kinds"].items()}
    kinds["published"] |= {"step_ns": [6, 8, 10], "weights_ns": [4, 4, 4]}
    text = page(f"before {MARKS[0]} old {MARKS[1]} after", {**results, "kinds": kinds})
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert " old " not in text
    assert all(f"| {kind} |" in text for kind in KINDS)
    assert (
        text.count(" | 8.00 | 6.00 to 10.00 | 4.00 |") == 2
    )  # step time and weights alone, beside dhp and beside lean
