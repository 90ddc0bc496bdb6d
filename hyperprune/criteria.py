"""Scores of units that need no training: for ``prune`` and as baselines."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import nn

from hyperprune.cost import CHEAPEST, CostModel
from hyperprune.coupling import STAYS, CouplingMap
from hyperprune.errors import BudgetError


class Criterion(Protocol):
    """Scores units; ``resource`` is the field of ``Cost`` that the budget limits, the first if there are several."""

    def __call__(
        self, model: nn.Module, coupling: CouplingMap, cost: CostModel, resource: str = "macs"
    ) -> np.ndarray: ...


def magnitude(model: nn.Module, coupling: CouplingMap, cost: CostModel, resource: str = "macs") -> np.ndarray:
    """Score units by ``relative_norms``, multiplied by the price of their group, because the solver divides by it.

    Otherwise the dearest groups would go first, whatever their weights.
    """
    return relative_norms(model, coupling) * _prices(coupling, cost, resource)


def relative_norms(model: nn.Module, coupling: CouplingMap) -> np.ndarray:
    """Return the squared norm of all weights that make or read a unit, relative to its group's mean, ``[units]``."""
    norms = np.zeros(coupling.units)
    for site in coupling.sites:
        if site.role in ("reads", "writes"):
            np.add.at(norms, *_by_unit(model, site.tensor, site.axis, site.units))
    means = np.array([max(norms[group.units].mean(), 1e-300) for group in coupling.groups])
    return norms / means[coupling.of_unit()]


def random(model: nn.Module, coupling: CouplingMap, cost: CostModel, resource: str = "macs") -> np.ndarray:
    """Score units by chance (from torch's global random state), each group losing about the same share."""
    draws = torch.rand(coupling.units).double().numpy()
    return draws * _prices(coupling, cost, resource)


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random}


def criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        BudgetError: no such criterion; the message lists them.
    """
    if name not in CRITERIA:
        raise BudgetError(f"no criterion {name!r}; there are: {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]


def _by_unit(model: nn.Module, tensor: str, axis: int, units: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    path, _, name = tensor.rpartition(".")
    weight = getattr(model.get_submodule(path), name).detach().cpu().double()  # MPS has no float64
    others = [at for at in range(weight.ndim) if at != axis]
    norms = (weight.square().sum(dim=others) if others else weight.square()).numpy()
    index = np.array(units)
    return index[index != STAYS], norms[index != STAYS]


def _prices(coupling: CouplingMap, cost: CostModel, resource: str) -> np.ndarray:
    changes = cost.changes(cost.full, -np.ones_like(cost.full))
    prices = np.abs(changes[resource]).astype(float)
    prices[prices == 0] = CHEAPEST * prices.mean()
    return prices[coupling.of_unit()]
