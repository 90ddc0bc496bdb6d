"""Three other ways to the same MACs, without looking at the data: each returns a slim copy of a trained network."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from hyperprune import Budget, HyperpruneError, export_pruned, hyperize, prune
from hyperprune.cost import CostModel, count_with_fvcore

TORCH_PRUNING_STEPS = 200  # how finely its channel ratio approaches the MACs


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
    """Let Torch-Pruning remove the groups of smallest magnitude, the same share of every layer.

    Its pruner works to a ratio of channels, so channels go in small steps until the MACs are met. The layer that makes
    the output stays whole, as its documentation asks.

    Raises:
        HyperpruneError: it fails on this network, or does not reach the MACs.
    """
    slim = copy.deepcopy(model).eval()
    try:
        _shrink_with_torch_pruning_(slim, example, macs)
    except (IndexError, RuntimeError, ValueError) as error:  # what it raises on networks it cannot follow
        raise HyperpruneError(f"Torch-Pruning fails on this network: {type(error).__name__}: {error}") from error
    return slim.train(model.training).requires_grad_(True)


def _shrink_with_torch_pruning_(slim: nn.Module, example: Tensor, macs: float) -> None:
    import torch_pruning as tp

    target = macs * count_with_fvcore(slim, example).macs
    weighted = [m for m in slim.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    pruner = tp.pruner.BasePruner(
        slim,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=1.0,
        max_pruning_ratio=0.95,
        iterative_steps=TORCH_PRUNING_STEPS,
        ignored_layers=weighted[-1:],
    )
    while (now := count_with_fvcore(slim, example).macs) > target:
        if pruner.current_step >= TORCH_PRUNING_STEPS:
            raise ValueError(f"it stops at {now:,} MACs; {target:,.0f} were asked for")
        pruner.step()


RIVALS = {"uniform": uniform_widths, "random": random_channels, "Torch-Pruning": torch_pruning}
