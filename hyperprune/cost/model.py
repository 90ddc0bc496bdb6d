"""MACs and parameters as a function of how many units of each group live.

All units of a group live at the same sites equally often, so cost depends on the groups' counts alone. A weight
costs as many MACs as it has elements, at each position it is applied to; both are products of the lengths of
its axes, and each length is linear in the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from hyperprune.coupling import STAYS, CouplingMap

RESOURCES = ("macs", "params")


@dataclass(frozen=True)
class Cost:
    """Cost of one network: multiply-adds of its convolutions and linear layers, and all its parameters.

    MACs are those of one forward pass on the example inputs: with a batch of one, MACs per image.
    """

    macs: int
    params: int


@dataclass(frozen=True)
class LayerCost:
    """Cost of one parameter tensor."""

    tensor: str
    shape: tuple[int, ...]
    macs: int
    params: int


class CostModel:
    """Prices counts of living units per group.

    Args:
        coupling: the network's groups and sites.
        model: the dense network; parameters the analysis never met count as they are.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4))
        >>> hyper.cost.total(hyper.cost.full)
        Cost(macs=48, params=58)
        >>> hyper.cost.total([5])
        Cost(macs=30, params=37)
    """

    def __init__(self, coupling: CouplingMap, model: nn.Module) -> None:
        self._names = [tensor.name for tensor in coupling.tensors]
        self._shapes = [tensor.shape for tensor in coupling.tensors]
        self.full = np.array([group.size for group in coupling.groups], dtype=np.int64)
        parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
        met = [name in parameters for name in self._names]
        self._weights = {
            "macs": np.array([tensor.positions for tensor in coupling.tensors], dtype=np.int64),
            "params": np.array(met, dtype=np.int64),
        }
        self._rest = sum(size for name, size in parameters.items() if name not in set(self._names))
        self._read_sites(coupling)

    def _read_sites(self, coupling: CouplingMap) -> None:
        """Write each tensor's elements as fixed x (own_a + a . counts) x (own_b + b . counts)."""
        tensors, groups = len(self._names), len(self.full)
        place = {name: at for at, name in enumerate(self._names)}
        self._fixed = np.array([int(np.prod(shape, dtype=np.int64)) for shape in self._shapes], dtype=np.int64)
        self._own = np.ones((2, tensors), dtype=np.int64)
        self._slope = np.zeros((2, tensors, groups), dtype=np.int64)
        self._axis_of: dict[tuple[int, int], int] = {}
        of_unit = coupling.of_unit()
        taken = np.zeros(tensors, dtype=np.int64)
        for site in coupling.sites:
            if site.tensor not in place:
                continue
            at = place[site.tensor]
            side = int(taken[at])
            taken[at] += 1
            units = np.array(site.units)
            self._fixed[at] //= len(units)
            self._own[side, at] = int((units == STAYS).sum())
            self._slope[side, at] = np.bincount(of_unit[units[units != STAYS]], minlength=groups) // self.full
            self._axis_of[at, site.axis] = side

    def lengths(self, counts: np.ndarray) -> np.ndarray:
        """Return the lengths of the two sliced axes of every tensor, shape ``[2, tensors]``."""
        return self._own + self._slope @ np.asarray(counts, dtype=np.int64)

    def total(self, counts: np.ndarray) -> Cost:
        """Return the cost of a network with so many units living in each group, shape ``[groups]``."""
        elements = self._fixed * self.lengths(counts).prod(axis=0)
        return Cost(int(self._weights["macs"] @ elements), int(self._weights["params"] @ elements) + self._rest)

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Return what each resource gains when one group alone changes by ``delta[g]`` units, shape ``[groups]``.

        This is exact: the cost is bilinear in the counts.
        """
        a, b = self.lengths(counts)
        grow = self._slope * np.asarray(delta, dtype=np.int64)
        gain = a[:, None] * grow[1] + b[:, None] * grow[0] + grow[0] * grow[1]
        gain *= self._fixed[:, None]
        return {resource: self._weights[resource] @ gain for resource in RESOURCES}

    def layers(self, counts: np.ndarray) -> list[LayerCost]:
        """Return the cost of every parameter tensor the analysis met."""
        lengths = self.lengths(counts)
        elements = self._fixed * lengths.prod(axis=0)
        return [
            LayerCost(
                name,
                self._shape(at, lengths),
                int(self._weights["macs"][at] * elements[at]),
                int(self._weights["params"][at] * elements[at]),
            )
            for at, name in enumerate(self._names)
        ]

    def _shape(self, at: int, lengths: np.ndarray) -> tuple[int, ...]:
        shape = list(self._shapes[at])
        for (tensor, axis), side in self._axis_of.items():
            if tensor == at:
                shape[axis] = int(lengths[side, at])
        return tuple(shape)
