"""Norms over channels that count the living channels only, while the network is still at full width.

A layer norm reads all channels together, so a removed channel would still shift the mean and the variance of the
others. With m the mask of the living, n of C channels alive, s = sqrt(C / n) and mean taken over the living,
T(x) = s (m x + (1 - m) mean) has, over all C channels, s times the living channels' mean, and their variance. The norm
is shown T(x), and its weight (or its output, where it has none) is divided by s: also of a norm that divides by the
root of the variance without taking the mean off. With all channels alive T is the identity, bit for bit. An RMS norm
takes no mean: T(x) = s m x. Where the variance has Bessel's correction, s = sqrt((C - 1) / (n - 1)). A unit norm
(``F.normalize``) takes the length as it is: T(x) = m x, nothing is divided.

A response norm (ConvNeXt V2's) compares each channel's norm over space with the mean of all of them. It is shown m x,
so that the mean comes out n / C times as large, and its weight is multiplied by n / C. The small number that keeps the
division finite then counts C / n times; where it matters, the proof at export says so.

Where none lives, while a rule presses on, n counts as 1: the norm is shown zeros.

A layer that standardises the rows of its own weight is shown T(weight): the living entries come out s times too
large, which a division of the layer's input by s undoes.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune.coupling import CouplingMap, Norm
from hyperprune.generators import Generated, detach
from hyperprune.latents import LatentBank, Reference, select


def living_count(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how many channels live, at least 1, shape ``[]``; half precision could not count them."""
    return mask.sum(dtype=dtype).clamp_min(1)


def scale(mask: Tensor, correction: int = 0) -> Tensor:
    """Return s = sqrt(C / n), shape ``[]``, or that of one less each."""
    finest = torch.float32 if mask.device.type == "mps" else torch.float64
    count = living_count(mask, finest).clamp_min(1 + correction)
    return ((mask.numel() - correction) / (count - correction)).sqrt()


class Living(nn.Module):
    """A forward pre-hook that knows which of some channels live.

    Args:
        units: for each channel its unit, ``STAYS`` where it stays.
        axis: where the channels lie in what the hook is asked about, counted from the end if negative.
    """

    def __init__(self, bank: LatentBank, units: tuple[int, ...], axis: int) -> None:
        super().__init__()
        self.selection = select(bank, units)
        self.axis = axis

    def mask(self) -> Tensor:
        """Return 1 for living channels and 0 for others, shape ``[channels]``."""
        return (self.selection() != 0).detach().float()

    def forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        at = next((at for at, value in enumerate(args) if isinstance(value, Tensor)), None)
        if at is not None:
            return (*args[:at], self._shown(args[at]), *args[at + 1 :]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: self._shown(kwargs[name])}

    def _shown(self, x: Tensor) -> Tensor:
        """Take nested tensors apart: torch's own encoder makes one of sequences with padding."""
        if x.is_nested:
            return torch.nested.as_nested_tensor([self.shown(part) for part in x.unbind()])
        return self.shown(x)

    def shown(self, x: Tensor) -> Tensor:
        """Return what the layer is shown in place of its input."""
        raise NotImplementedError

    def too_large(self) -> Tensor:
        """Return how many times too large the layer's result would be under its own weight, shape ``[]``."""
        return scale(self.mask())

    def along(self, x: Tensor, vector: Tensor) -> Tensor:
        """Lay a vector of one number per channel along the axis of ``x``."""
        view = [-1 if axis == self.axis % x.ndim else 1 for axis in range(x.ndim)]
        return vector.to(x.dtype).view(view)


class LivingNorm(Living):
    """Forward pre-hook of one norm layer: shows it a tensor with the statistics of the living channels."""

    def __init__(self, bank: LatentBank, norm: Norm) -> None:
        super().__init__(bank, norm.units, norm.axis)
        self.groups, self.centred, self.spatial = norm.groups, norm.kind == "layer", norm.spatial
        self.correction = norm.correction

    def shown(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape with the statistics of the living channels."""
        alive = self.mask()
        mask = self.along(x, alive)
        filled = mask * x + (1 - mask) * self._mean(x, mask) if self.centred else mask * x
        return scale(alive, self.correction).to(x.dtype) * filled

    def too_large(self) -> Tensor:
        """Return s."""
        return scale(self.mask(), self.correction)

    def _mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the living channels' mean, of each group of them, and over space too for a group norm."""
        axis = self.axis % x.ndim
        split = (x * mask).unflatten(axis, (self.groups, -1))
        space = range(axis + 2, split.ndim) if self.spatial else ()
        wide = torch.promote_types(x.dtype, torch.float32)
        total = split.sum(dim=[axis + 1, *space], keepdim=True, dtype=wide)
        count = living_count(mask, wide) / self.groups * prod([split.shape[at] for at in space])
        return (total / count).to(x.dtype).expand(split.shape).flatten(axis, axis + 1)


class LivingAlone(Living):
    """Forward pre-hook of a unit norm or a response norm: shows it the living channels, the others as zero."""

    def shown(self, x: Tensor) -> Tensor:
        """Return the living channels, the others as zero."""
        return x * self.along(x, self.mask())

    def too_large(self) -> Tensor:
        """Return s squared, C / n: of a response norm; what a unit norm makes has the right size."""
        return scale(self.mask()).square()


class NormWeight(Generated):
    """Parametrization of a norm's weight: divided by what the result is too large while searching, itself at export.

    Where the layer multiplies by c + weight, that sum is divided.
    """

    def __init__(self, living: Living, offset: float = 0.0) -> None:
        super().__init__()
        self._living = Reference(living)
        self._offset = offset

    def generate(self, *originals: Tensor) -> Tensor:
        (weight,) = originals
        too_large = self._living.target.too_large().to(weight.dtype)
        return weight / too_large + self._offset * (1 / too_large - 1) if self._offset else weight / too_large

    def plain(self, *originals: Tensor) -> Tensor:
        """Return the weight as it is: a slim layer has only living channels."""
        return originals[0]


class SmallerOutput(nn.Module):
    """Forward hook of a norm without a weight: its result, divided by what it is too large while searching.

    A layer that hands out something else than a tensor hands it out as it is: the rehearsal tells that it is not exact.
    """

    def __init__(self, living: Living) -> None:
        super().__init__()
        self._living = Reference(living)

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        return output / self._living.target.too_large().to(output.dtype)


class LivingInput(Living):
    """Forward pre-hook of a layer that standardises its weight: the input over s, and zero where a channel is dead."""

    def shown(self, x: Tensor) -> Tensor:
        """Return the living channels divided by s, the others as zero."""
        alive = self.mask()
        return x * (self.along(x, alive) / scale(alive).to(x.dtype))


class StandardisedRows(Generated):
    """Parametrization behind a generator's: each row of the weight with the statistics of its living entries."""

    def __init__(self, living: Living) -> None:
        super().__init__()
        self._living = Reference(living)

    def generate(self, *originals: Tensor) -> Tensor:
        (weight,) = originals
        inputs = self._living.target
        alive = inputs.mask()
        mask = inputs.along(weight, alive)
        share = mask * scale(alive).to(weight.dtype)
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = (weight * mask).sum(dim=list(range(1, weight.ndim)), keepdim=True, dtype=wide)
        mean = total / (living_count(mask, wide) * prod(weight.shape[2:]))
        return share * weight + (1 - share) * mean.to(weight.dtype)


def attach_norms(model: nn.Module, bank: LatentBank, coupling: CouplingMap) -> nn.ModuleList:
    """Let every norm that reads prunable channels count the living ones only, in place; return the hooks."""
    hooks = nn.ModuleList()
    for norm in coupling.norms:
        statistics, module = _living(bank, norm), model.get_submodule(norm.module)
        _show(module, statistics)
        if norm.kind != "unit":  # what that makes has the right size
            _divide(module, norm, statistics)
        hooks.append(statistics)
    for site in coupling.sites:
        if site.tensor in coupling.standardised and site.role == "reads":
            module, name = model.get_submodule(site.module), site.tensor.rpartition(".")[2]
            inputs = LivingInput(bank, site.units, site.axis)
            _show(module, inputs)
            _generate(module, name, StandardisedRows(inputs))
            hooks.append(inputs)
    return hooks.to(bank.latents.device)


def _living(bank: LatentBank, norm: Norm) -> Living:
    if norm.kind in ("unit", "response"):
        return LivingAlone(bank, norm.units, norm.axis)
    return LivingNorm(bank, norm)


def _show(module: nn.Module, living: Living) -> None:
    module.register_forward_pre_hook(living, prepend=True, with_kwargs=True)


def _divide(module: nn.Module, norm: Norm, statistics: Living) -> None:
    """Divide a norm's weight, or its result if it has none, by what that is too large."""
    if name := norm.weight.rpartition(".")[2]:
        _generate(module, name, NormWeight(statistics, norm.offset))
    else:
        module.register_forward_hook(SmallerOutput(statistics), prepend=True)


def _generate(module: nn.Module, name: str, made: Generated) -> None:
    made.order = tuple(module._parameters)
    parametrize.register_parametrization(module, name, made, unsafe=True)


def detach_norms(model: nn.Module) -> None:
    """Make every norm a plain layer again, in place; the user's own hooks stay."""
    detach(model)
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, Living)]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, SmallerOutput)]:
            del module._forward_hooks[key]
