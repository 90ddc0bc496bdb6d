"""A second opinion on a coupling map, by numbers alone: it shares no code with the analysis that made the map.

The map says which channels live or die together, and where they are read. If that is so, then with some units gated
to zero, whatever makes them may make anything: the outputs stay as they are, and so does every channel that any layer
reads and that the map does not count among the dead ones. A tie that the map missed, a channel that lies elsewhere,
or a reader that it did not see lets the noise through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hyperprune import HyperModel
from hyperprune.coupling import STAYS, Site
from hyperprune.verify import run_eval, tensors_of

TOLERANCE = 1e-5
"""Largest change, relative to the tensor's largest value, that counts as rounding."""


@dataclass
class Opinion:
    """What the numbers say.

    Attributes:
        change: the largest relative change of any output.
        leaks: layers that read a changed channel which is not among the dead ones, with how many channels.
        asked: dead channels at the inputs of layers, counted once per layer and round.
        felt: how many of them did change: where the map says that a dead unit lies, its noise arrives.
        units: how many units were silenced in at least one round.
    """

    change: float = 0.0
    leaks: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    felt: int = 0
    units: int = 0

    @property
    def agrees(self) -> bool:
        """Nothing changed that the map says is independent."""
        return self.change <= TOLERANCE and not self.leaks


def second_opinion(hyper: HyperModel, rounds: int | None = None, seed: int = 0) -> Opinion:
    """Silence half of every group, put noise on what makes it, and look at what changes; then the other half.

    In each round the halves are others: in as many rounds as the largest group's size has binary digits, any two
    units of a group are told apart. Leaves the model with all units alive and its tensors as they were.

    Args:
        hyper: a model hyperized with the lean generator, in float32 or float64.
        rounds: how many pairs of halves; so many that all units are told apart if not given.
    """
    rng = torch.Generator().manual_seed(seed)
    digits = [(group.size - 1).bit_length() for group in hyper.coupling.groups]
    places = [torch.randperm(group.size, generator=rng) for group in hyper.coupling.groups]
    opinion, silenced = Opinion(), torch.zeros(hyper.coupling.units, dtype=torch.bool)
    for at in range(max(digits) if rounds is None else rounds):
        half = torch.cat([(place >> at % many) & 1 == 1 for place, many in zip(places, digits, strict=True)])
        for dead in (half, ~half):
            silenced |= dead
            hyper.bank.keep_(~dead)
            _look(hyper, dead.numpy(), rng, opinion)
    hyper.bank.keep_(torch.ones_like(silenced))
    opinion.units = int(silenced.sum())
    return opinion


def _look(hyper: HyperModel, dead: np.ndarray, rng: torch.Generator, opinion: Opinion) -> None:
    readers = _readers(hyper)
    quiet, read_before = _run(hyper, list(readers))
    with _noise(hyper, dead, rng):
        noisy, read_after = _run(hyper, list(readers))
    opinion.change = max(
        [opinion.change, *(float(_changes(a, b, ()).max()) for a, b in zip(quiet, noisy, strict=True))]
    )
    for layer, (axis, units) in readers.items():
        gone = (units != STAYS) & dead[units]
        for a, b in zip(read_before[layer], read_after[layer], strict=True):
            changed = (_changes(a, b, (axis % a.ndim,)) > TOLERANCE).numpy()
            opinion.asked += int(gone.sum())
            opinion.felt += int((changed & gone).sum())
            if leaked := int((changed & ~gone).sum()):
                opinion.leaks[layer] = max(leaked, opinion.leaks.get(layer, 0))


def _changes(a: Tensor, b: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Return the largest change along all but the kept axes, relative to the largest value of all."""
    if not a.is_floating_point() or not a.numel():
        return torch.zeros([a.shape[axis] for axis in kept])
    gone = [axis for axis in range(a.ndim) if axis not in kept]
    change = (a - b).abs().nan_to_num(torch.inf) / a.abs().max().clamp_min(1e-12)
    return change.amax(dim=gone) if gone else change


def _run(hyper: HyperModel, layers: list[str]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Return the outputs, and for each layer what it read at each of its calls."""
    read: dict[str, list[Tensor]] = defaultdict(list)
    hooks = [
        hyper.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: read[name].append(args[0].detach().clone()), prepend=True
        )  # before the hooks of standardised layers, which silence dead inputs themselves
        for name in layers
    ]
    try:
        return [x.detach().clone() for x in tensors_of(run_eval(hyper.model, hyper.inputs))], read
    finally:
        for hook in hooks:
            hook.remove()


def _readers(hyper: HyperModel) -> dict[str, tuple[int, np.ndarray]]:
    """Return layers whose input channels can be told apart: the axis where they lie, and the unit of each."""
    found = {}
    modules = dict(hyper.model.named_modules())
    for site in hyper.coupling.sites:
        layer, _, name = site.tensor.rpartition(".")
        axis = _input_axis(modules.get(layer), site) if name == "weight" else None
        if axis is not None:
            found[layer] = (axis, np.array(site.units))
    return found


def _input_axis(module: nn.Module | None, site: Site) -> int | None:
    if isinstance(module, nn.Linear):
        return -1 if site.role == "reads" else None
    if not isinstance(module, _ConvNd):
        return None
    depthwise = module.groups == module.in_channels == module.out_channels and site.role == "writes"
    plain = module.groups == 1 and site.role == "reads" and site.axis == (not isinstance(module, _ConvTransposeNd))
    return 1 - len(module.kernel_size) - 2 if depthwise or plain else None


@contextmanager
def _noise(hyper: HyperModel, dead: np.ndarray, rng: torch.Generator) -> Iterator[None]:
    """Disturb what makes dead units, and what lies along them; put everything back afterwards."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for site in hyper.coupling.sites:
        units = np.array(site.units)
        gone = np.flatnonzero((units != STAYS) & dead[units])
        if site.role != "reads" and len(gone):
            tensor = _stored(hyper.model, site.tensor)
            kept.setdefault(site.tensor, (tensor, tensor.clone()))
            _disturb_(tensor, site.axis, torch.from_numpy(gone), site.tensor.endswith("running_var"), rng)
    try:
        yield
    finally:
        for tensor, original in kept.values():
            tensor.copy_(original)


def _stored(model: nn.Module, name: str) -> Tensor:
    """Return the storage behind a tensor of the plain model: what its weight is generated from."""
    path, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(path)
    generated = getattr(module, "parametrizations", {})
    return (generated[leaf].original if leaf in generated else getattr(module, leaf)).detach()


def _disturb_(tensor: Tensor, axis: int, places: Tensor, positive: bool, rng: torch.Generator) -> None:
    part = tensor.index_select(axis, places)
    noise = torch.randn(part.shape, generator=rng).to(part)
    spread = float(tensor.float().std(correction=0)) or 0.5
    disturbed = part * (0.5 + noise.abs()) if positive else part + spread * noise
    tensor.index_copy_(axis, places, disturbed.to(tensor.dtype))
