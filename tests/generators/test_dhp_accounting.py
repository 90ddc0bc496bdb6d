"""What DHP costs on the paper's networks: parameters of the hypernetwork, MACs of the network it makes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.networks import resnet56
from hyperprune import DHP, HyperModel, export_pruned, hyperize
from hyperprune.cost import CountedCost, count_with_fvcore

M = 8
X = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def hyper() -> HyperModel:
    torch.manual_seed(0)
    return hyperize(resnet56(), torch.randn(X), generator=DHP(embedding=M))


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def pairs_and_kernels(model: nn.Module) -> list[tuple[int, int]]:
    """Return n c and the elements of the kernel for each convolution."""
    return [(len(w) * w.shape[1], w[0, 0].numel()) for w in (conv.weight for conv in convolutions(model))]


def hypernetwork(layers: Iterable[tuple[int, int]]) -> int:
    """Count w1 and W2."""
    return sum(nc * M + nc * k2 * M for nc, k2 in layers)


def biases(layers: Iterable[tuple[int, int]]) -> int:
    """Count b0, b1 and b2, which ours leaves out."""
    return sum(nc + nc * M + nc * k2 for nc, k2 in layers)


def weights(layers: Iterable[tuple[int, int]]) -> int:
    return sum(nc * k2 for nc, k2 in layers)


def generated(hyper: HyperModel) -> int:
    """Count what the convolutions own."""
    return sum(parameter.numel() for conv in convolutions(hyper.model) for parameter in conv.parameters())


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_every_convolution_of_resnet56_is_generated_at_one_plus_k_squared_times_m(hyper: HyperModel) -> None:
    layers = pairs_and_kernels(resnet56())
    assert len(convolutions(hyper.model)) == 57
    assert generated(hyper) == hypernetwork(layers) == 7_581_440
    assert round(generated(hyper) / weights(layers), 1) == 8.9


def test_everything_else_of_resnet56_costs_what_it_did_and_a_latent_for_each_channel(hyper: HyperModel) -> None:
    dense = resnet56()
    others = sum(p.numel() for p in dense.parameters()) - weights(pairs_and_kernels(dense))
    assert sum(p.numel() for p in hyper.parameters()) == others + generated(hyper) + hyper.coupling.units


def test_with_its_biases_resnet56_costs_the_published_10_9_times(hyper: HyperModel) -> None:
    layers = pairs_and_kernels(resnet56())
    published = generated(hyper) + biases(layers)
    assert published == sum(nc * (1 + 2 * M + k2 * M + k2) for nc, k2 in layers)
    assert round(published / weights(layers), 1) == 10.9


def test_with_its_biases_resnet50_costs_the_published_18_7_times() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        layers = pairs_and_kernels(models.resnet50())
    published = hypernetwork(layers) + biases(layers)
    assert round(published / 1e6, 1) == 438.7
    assert round(published / weights(layers), 1) == 18.7


# ---- MACs -----------------------------------------------------------------------------------------------------------


def masked_macs(hyper: HyperModel) -> int:
    """Count as the published search does: living inputs x living outputs x kernel x positions, at full width."""
    macs, handles = 0, []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = module.weight.detach()
        living = [int(weight.transpose(0, axis).flatten(1).any(dim=1).sum()) for axis in (0, 1)]
        macs += living[0] * living[1] * weight[0, 0].numel() * (output[0].numel() // output.shape[1])

    for module in hyper.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(count))
    hyper.eval()(torch.zeros(X))
    for handle in handles:
        handle.remove()
    return macs


def draw_widths_(hyper: HyperModel, seed: int) -> np.ndarray:
    """Let a random number of random channels of each group live, four at least, as published; return the numbers."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(hyper.coupling.units, dtype=bool)
    sizes = np.array([group.size for group in hyper.coupling.groups])
    counts = rng.integers(np.minimum(4, sizes), sizes + 1)
    for group, count in zip(hyper.coupling.groups, counts, strict=True):
        kept[group.start + rng.permutation(group.size)[:count]] = True
    hyper.bank.keep_(torch.from_numpy(kept))
    return counts


def published_macs(counted: CountedCost) -> int:
    """The published counter has two operations more for each element that a batch norm writes."""
    return counted.macs + counted.by_operator["batch_norm"]


@pytest.fixture(scope="module")
def dense() -> CountedCost:
    return count_with_fvcore(resnet56(), torch.zeros(X))


def test_the_dense_resnet56_costs_what_is_published(hyper: HyperModel, dense: CountedCost) -> None:
    """125.7 M, by arithmetic from the widths of its layers; 126.8 M as the published counter has it."""
    stem, classifier = 1024 * 3 * 16 * 9, 64 * 10
    narrow, middle, wide = (1024 * 16 * 16 * 9, 256 * 32 * 32 * 9, 64 * 64 * 64 * 9)
    firsts, shortcuts = 256 * 16 * 32 * 9 + 64 * 32 * 64 * 9, 256 * 16 * 32 + 64 * 32 * 64
    by_hand = stem + 18 * narrow + 17 * (middle + wide) + firsts + shortcuts + classifier
    assert hyper.cost.total(hyper.cost.full).macs == dense.macs == by_hand == 125_747_840
    norms = 2 * 19 * (1024 * 16 + 256 * 32 + 64 * 64)
    assert published_macs(dense) == by_hand + norms == 126_837_376


@pytest.mark.parametrize("seed", range(4))
def test_at_random_widths_the_search_and_the_slim_network_cost_the_same(
    hyper: HyperModel, dense: CountedCost, seed: int
) -> None:
    counts = draw_widths_(hyper, seed)
    cost, slim = hyper.cost.total(counts), count_with_fvcore(export_pruned(hyper), torch.zeros(X))
    assert cost.macs == masked_macs(hyper) == slim.macs < dense.macs
    assert cost.params == slim.params < dense.params
    assert published_macs(slim) / published_macs(dense) == pytest.approx(cost.macs / dense.macs, abs=0.005)
