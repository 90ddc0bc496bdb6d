"""Three other ways to the same MACs, without looking at the data: each returns a slim copy of a trained network."""

from __future__ import annotations

from functools import partial

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
    import torch_pruning as tp

    by_magnitude = partial(tp.pruner.BasePruner, importance=tp.importance.GroupMagnitudeImportance())
    return brought_to(by_magnitude, model, example, macs)


RIVALS = {"uniform": uniform_widths, "random": random_channels, "Torch-Pruning": torch_pruning}
