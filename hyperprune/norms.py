"""Norms over channels that count the living channels only, while the network is still at full width.

A layer norm reads all channels together, so a removed channel would still shift the mean and the variance of the
others. With m the mask of the living, n of C channels alive, s = sqrt(C / n), a = s m and mean taken over the
living, T(x) = a x + (1 - a) mean has, over all C channels, the living channels' mean and variance. The norm is
shown T(x), and its weight is divided by s. With all channels alive T is the identity, bit for bit. An RMS norm
takes no mean: T(x) = a x.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune.coupling import CouplingMap, Norm
from hyperprune.generators import Generated, detach
from hyperprune.latents import LatentBank, Reference, select


class LivingNorm(nn.Module):
    """Forward pre-hook of one norm layer: shows it a tensor with the statistics of the living channels."""

    def __init__(self, bank: LatentBank, norm: Norm) -> None:
        super().__init__()
        self.selection = select(bank, norm.units)
        self.axis, self.groups, self.centred, self.spatial = norm.axis, norm.groups, norm.centred, norm.spatial

    def mask(self) -> Tensor:
        """Return 1 for living channels and 0 for others, shape ``[channels]``."""
        return (self.selection() != 0).detach().float()

    def scale(self) -> Tensor:
        """Return s = sqrt(C / n), shape ``[]``."""
        mask = self.mask()
        return (mask.numel() / mask.sum().double()).sqrt()

    def forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        mask = self._along(x, self.mask())
        share = mask * self.scale().to(x.dtype)
        shown = share * x
        if self.centred:
            shown = shown + (1 - share) * self._mean(x, mask)
        return (shown, *args[1:])

    def _along(self, x: Tensor, vector: Tensor) -> Tensor:
        view = [-1 if axis == self.axis else 1 for axis in range(x.ndim)]
        return vector.to(x.dtype).view(view)

    def _mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the living channels' mean, of each group of them, and over space too for a group norm."""
        split = (x * mask).unflatten(self.axis, (self.groups, -1))
        space = range(self.axis + 2, split.ndim) if self.spatial else ()
        total = split.sum(dim=[self.axis + 1, *space], keepdim=True)
        count = mask.sum() / self.groups * prod(split.shape[axis] for axis in space)
        return (total / count).expand(split.shape).flatten(self.axis, self.axis + 1)


class NormWeight(Generated):
    """Parametrization of a norm's weight: divided by s while searching, itself at export."""

    def __init__(self, living: LivingNorm) -> None:
        super().__init__()
        self._living = Reference(living)

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self._living.target.scale().to(weight.dtype)

    def plain(self, *originals: Tensor) -> Tensor:
        """Return the weight as it is: a slim layer has only living channels."""
        return originals[0]


def attach_norms(model: nn.Module, bank: LatentBank, coupling: CouplingMap) -> nn.ModuleList:
    """Let every norm that reads prunable channels count the living ones only, in place; return the hooks."""
    hooks = nn.ModuleList()
    for norm in coupling.norms:
        module, living = model.get_submodule(norm.module), LivingNorm(bank, norm)
        module.register_forward_pre_hook(living, prepend=True)
        made = NormWeight(living)
        made.order = tuple(module._parameters)
        parametrize.register_parametrization(module, "weight", made, unsafe=True)
        hooks.append(living)
    return hooks.to(bank.latents.device)


def detach_norms(model: nn.Module) -> None:
    """Make every norm a plain layer again, in place; the user's own hooks stay."""
    detach(model)
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, LivingNorm)]:
            del module._forward_pre_hooks[key]
