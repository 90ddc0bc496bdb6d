"""Three other ways to the same MACs, without looking at the data: each returns a slim copy of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.common.stepping import brought_to
from hyperprune import Budget, HyperpruneError, export_pruned, hyperize, prune
from hyperprune.cost import CostModel


def random_channels(model: nn.Module, example: Tensor, macs: float, seed: int) -> nn.Module:
    """Remove channels by chance, wherever they lie."""
    torch.manual_seed(seed)
    return prune(model, example, Budget(macs=macs), criterion="random")


def uniform_widths(model: nn.Module, example: Tensor, macs: float, seed: int) -> nn.Module:
    """Keep the same share of every group of channels, and in it channels by chance."""
    hyper = hyperize(model, example)
    rng = torch.Generator().manual_seed(seed)
    keep = torch.zeros(hyper.coupling.units, dtype=torch.bool)
    for group, count in zip(hyper.coupling.groups, _widest_uniform(hyper.cost, macs), strict=True):
        keep[group.units.start + torch.randperm(group.size, generator=rng)[:count]] = True
    hyper.bank.keep_(keep)
    return export_pruned(hyper)


def _widest_uniform(cost: CostModel, macs: float) -> np.ndarray:
    """Return units per group for the largest uniform share of channels whose MACs fit."""
    limit = macs * cost.total(cost.full).macs
    for share in np.linspace(1, 0, 1001):
        counts = np.maximum(np.round(share * cost.full), 1).astype(np.int64)
        if cost.total(counts).macs <= limit:
            return counts
    raise HyperpruneError(f"no uniform share of the channels costs {macs:.0%} of the MACs or less")


def torch_pruning(model: nn.Module, example: Tensor, macs: float, seed: int) -> nn.Module:
    """Let Torch-Pruning remove the channels of smallest magnitude, the same share of every layer.

    Raises:
        HyperpruneError: it fails on this network, or does not reach the MACs.
    """
    return brought_to(partial(_by_magnitude, keep=()), model, example, macs)


def torch_pruning_by_hand(model: nn.Module, example: Tensor, macs: float, seed: int) -> nn.Module:
    """As ``torch_pruning``, with every layer in front of a PixelShuffle kept whole: it cannot follow channels there.

    Raises:
        HyperpruneError: it fails on this network, or does not reach the MACs.
    """
    chains = [list(module) for module in model.modules() if isinstance(module, nn.Sequential)]
    shuffled = {layer for chain in chains for layer, after in pairwise(chain) if isinstance(after, nn.PixelShuffle)}
    names = [name for name, module in model.named_modules() if module in shuffled]
    return brought_to(partial(_by_magnitude, keep=names), model, example, macs)


def _by_magnitude(
    model: nn.Module, example: Tensor, keep: Sequence[str], ignored_layers: list[nn.Module], **options: Any
) -> Any:
    """Make a pruner that keeps some layers besides those that it would ignore anyway."""
    import torch_pruning as tp

    ignored_layers = [*ignored_layers, *(model.get_submodule(name) for name in keep)]
    importance = tp.importance.GroupMagnitudeImportance()
    return tp.pruner.BasePruner(model, example, importance=importance, ignored_layers=ignored_layers, **options)


RIVALS = {"uniform": uniform_widths, "random": random_channels, "Torch-Pruning": torch_pruning}
