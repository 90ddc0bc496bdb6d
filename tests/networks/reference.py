"""The network without some units, by hand: nothing here uses hyperprune's generators, norms or slimming.

Wherever a removed channel is read, the reading weights become zero. Norms that read all channels together are
replaced by ones that look at the living channels only. Everything keeps its full width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hyperprune.coupling import STAYS, CouplingMap, Norm, Product


class OverSome(nn.Module):
    """A norm over some of the channels; the others become zero.

    Args:
        layer: the norm over all channels.
        axis: where the channels lie.
        some: which of them to look at.
    """

    def __init__(self, layer: nn.Module, axis: int, some: Tensor) -> None:
        super().__init__()
        self.layer: Any = copy.deepcopy(layer)
        self.axis, self.some = axis, some
        for name, parameter in list(self.layer.named_parameters()):
            setattr(self.layer, name, nn.Parameter(parameter.detach()[some]))
        if hasattr(self.layer, "normalized_shape"):
            self.layer.normalized_shape = (len(some),)
        if hasattr(self.layer, "num_channels"):
            self.layer.num_channels = len(some)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer(x.index_select(self.axis, self.some))
        return torch.zeros_like(x).index_copy(self.axis, self.some, normed)


def by_hand(model: nn.Module, coupling: CouplingMap, gates: Tensor) -> nn.Module:
    """Return a copy of the dense network in which each unit counts as much as its gate says, 0 for not at all.

    Args:
        gates: one factor per unit, float64 of shape ``[units]``.
    """
    other = copy.deepcopy(model)
    factors = torch.cat([gates, gates.new_ones(1)])  # the last stands for channels that stay: STAYS is -1
    for site in coupling.sites:
        if site.role == "reads":
            _multiply_(other.get_parameter(site.tensor), factors[list(site.units)], site.axis)
    for name, product in _factors(coupling).items():
        parameter = other.get_parameter(name)
        _multiply_(parameter, factors[list(product.along(len(parameter)))], 0)
    for norm in coupling.norms:
        _replace_(other, norm, factors != 0)
    return other


def _factors(coupling: CouplingMap) -> dict[str, Product]:
    """Return the weights and biases that make a factor of a product; a layer that is used twice makes two."""
    return {name: product for product in coupling.products for name in product.tensors}


@torch.no_grad()
def _multiply_(weight: Tensor, factors: Tensor, axis: int) -> None:
    weight.mul_(factors.view([-1 if at == axis else 1 for at in range(weight.ndim)]))


def _replace_(model: nn.Module, norm: Norm, lives: Tensor) -> None:
    path, _, name = norm.module.rpartition(".")
    some = lives[list(norm.units)].nonzero()[:, 0]
    setattr(model.get_submodule(path), name, OverSome(model.get_submodule(norm.module), norm.axis, some))


def latent_gradients(model: nn.Module, coupling: CouplingMap) -> Tensor:
    """Return what each latent's gradient must be at latents of 1, from the dense network's own gradients.

    A latent multiplies the slices that read its unit, so its gradient is their inner product with the gradient of
    the weight. ``model`` has just had a backward. Shape ``[units]``.
    """
    found = torch.zeros(coupling.units + 1, dtype=torch.float64)
    reading = [(site.tensor, site.axis, site.units) for site in coupling.sites if site.role == "reads"]
    reading += [(t, 0, product.along(len(model.get_parameter(t)))) for t, product in _factors(coupling).items()]
    for name, axis, units in reading:
        weight = model.get_parameter(name)
        if weight.grad is not None:
            slices = (weight.grad * weight).detach().movedim(axis, 0).reshape(len(units), -1).sum(1)
            found.index_add_(0, torch.tensor(units) % len(found), slices)
    return found[:STAYS]
