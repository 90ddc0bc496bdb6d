"""What a network costs as a function of how many units of each group live.

All units of a group live at the same sites equally often, so cost depends on the groups' counts alone. A weight
costs as many MACs as it has elements, at each position it is applied to; all are products of the lengths of
one or two axes, and each length is linear in the counts. Other resources come as meters (``hyperprune.metering``).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from hyperprune.cost.axes import Axes
from hyperprune.cost.meters import Elements, Meter
from hyperprune.coupling import CouplingMap

CHEAPEST = 0.01  # of the mean price: nothing is free, for what lies outside a peak now may be it later


@dataclass(frozen=True, repr=False)
class Cost:
    """Cost of one network: multiply-adds of its convolutions and linear layers, and all its parameters.

    MACs are those of one forward pass on the example inputs: with a batch of one, MACs per image.

    Attributes:
        macs: multiply-adds.
        params: parameters.
        activation_bytes: most bytes of activations alive at one time; None where that is not metered.
        latency_ns: nanoseconds of one forward pass; None where that is not metered.
    """

    macs: int
    params: int
    activation_bytes: int | None = None
    latency_ns: int | None = None

    def __repr__(self) -> str:
        known = {name: value for name, value in vars(self).items() if value is not None}
        return f"Cost({', '.join(f'{name}={value}' for name, value in known.items())})"


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

    Attributes:
        full: units per group, shape ``[groups]``.
        meters: what prices each resource.

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
        self._tensors = coupling.tensors
        self._sliced = _sliced_axes(coupling)
        self._uses = coupling.costs
        self._axes = Axes(coupling, [use.lines for use in self._uses])
        self.full = self._axes.full
        parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
        whole = self._axes.lengths(self.full).prod(axis=0)
        self._macs = np.array([use.macs for use in self._uses], dtype=np.int64) // whole
        self._params = np.zeros_like(self._macs)
        for at, tensor in enumerate(self._tensors):
            self._params[at] = (tensor.name in parameters) * math.prod(tensor.shape) // whole[at]
        unmet = parameters.keys() - {tensor.name for tensor in coupling.tensors}
        self.meters: Mapping[str, Meter] = {
            "macs": Elements(self._axes, self._macs),
            "params": Elements(self._axes, self._params, sum(parameters[name] for name in unmet)),
        }

    def metered(self, resource: str, meter: Meter) -> CostModel:
        """Return a cost model that prices one resource more: a field of ``Cost``."""
        found = copy.copy(self)
        found.meters = {**self.meters, resource: meter}
        return found

    def total(self, counts: np.ndarray) -> Cost:
        """Return the cost of a network with so many units living in each group, shape ``[groups]``."""
        return Cost(**{resource: int(meter.values(counts).max()) for resource, meter in self.meters.items()})

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Return what each resource gains when one group alone changes by ``delta[g]`` units, shape ``[groups]``.

        This is exact.
        """
        found = {}
        for resource, meter in self.meters.items():
            values = meter.values(counts)
            found[resource] = (values[:, None] + meter.changes(counts, delta)).max(axis=0) - values.max()
        return found

    def layers(self, counts: np.ndarray) -> list[LayerCost]:
        """Return the cost of every parameter tensor the analysis met."""
        lengths = self._axes.lengths(counts)
        products = lengths.prod(axis=0)
        params = (self._params * products).tolist()
        macs: Counter[str] = Counter()
        for use, count in zip(self._uses, (self._macs * products).tolist(), strict=True):
            macs[use.tensor] += count
        return [
            LayerCost(tensor.name, self._shape(at, lengths), macs[tensor.name], params[at])
            for at, tensor in enumerate(self._tensors)
        ]

    def _shape(self, at: int, lengths: np.ndarray) -> tuple[int, ...]:
        shape = list(self._tensors[at].shape)
        for side, axis in enumerate(self._sliced[self._tensors[at].name]):
            shape[axis] = int(lengths[side, at])
        return tuple(shape)


def _sliced_axes(coupling: CouplingMap) -> dict[str, tuple[int, ...]]:
    """Return for each tensor the axes along which units lie: none, one or two."""
    found: dict[str, tuple[int, ...]] = {tensor.name: () for tensor in coupling.tensors}
    for site in coupling.sites:
        if site.tensor in found:
            found[site.tensor] += (site.axis,)
    return found
