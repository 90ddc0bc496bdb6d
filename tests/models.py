"""Small networks that the tests share, and the few questions that are asked of every network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from string import ascii_letters
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperprune import Budget, HyperModel, Search, hyperize
from hyperprune.coupling import STAYS, CouplingMap, build
from hyperprune.labels import flow
from hyperprune.plan import layer_of
from hyperprune.trace import ExampleInputs, trace


class Net(nn.Module):
    """Layers (and parameters, and plain attributes) under the given names, and a function as the forward pass."""

    def __init__(self, parts: Mapping[str, Any], run: Callable[..., Any]) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.run(self, *args, **kwargs)


class Block(nn.Module):
    """A residual block of two convolutions, its second one back on the shortcut's channels."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    """Stem, two blocks on one stream, a classifier."""

    def __init__(self, width: int = 6, inner: int = 8, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block1, self.block2 = Block(width, inner), Block(width, inner)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block2(self.block1(torch.relu(self.bn(self.stem(x)))))
        return self.fc(self.drop(y.mean((2, 3))))


class SqueezeExcite(nn.Module):
    """Scales each channel by a number computed from all of them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def residual(**options: Any) -> nn.Module:
    return randomise_norms_(ResNet(**options))


def sequential() -> nn.Module:
    """Convolution, batch norm, flatten and linear, each once."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 4, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Inverted bottleneck: pointwise, depthwise, squeeze-and-excite, pointwise."""
    return randomise_norms_(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Hardswish(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            SqueezeExcite(12, 4),
            nn.Conv2d(12, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    )


def grouped() -> nn.Module:
    """A ResNeXt-like path (4 groups of 4 channels) joined to a plain one."""
    parts = {
        "a": nn.Conv2d(3, 16, 3, padding=1),
        "g": nn.Conv2d(16, 16, 3, padding=1, groups=4),
        "b": nn.Conv2d(3, 10, 1),
        "out": nn.Conv2d(26, 4, 1),
        "fc": nn.Linear(4, 3),
    }
    return Net(parts, _grouped)


def _grouped(net: Any, x: Tensor) -> Tensor:
    joined = torch.cat([torch.relu(net.g(torch.relu(net.a(x)))), torch.relu(net.b(x))], dim=1)
    return net.fc(torch.relu(net.out(joined)).mean((2, 3)))


def transposed() -> nn.Module:
    """A small autoencoder: strided convolutions down, transposed ones up."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.PReLU(6),
        nn.ConvTranspose2d(6, 8, 2, stride=2), nn.LeakyReLU(0.1), nn.ConvTranspose2d(8, 3, 2, stride=2),
    )  # fmt: skip


def one_dimensional() -> nn.Module:
    """Convolutions over time."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


IMAGE = (2, 3, 8, 8)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequential": (sequential, IMAGE),
    "residual": (residual, IMAGE),
    "mobile": (mobile, IMAGE),
    "grouped": (grouped, IMAGE),
    "transposed": (transposed, IMAGE),
    "one_dimensional": (one_dimensional, (2, 3, 16)),
}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """Return a small model by name, and example inputs for it."""
    make, shape = SMALL[name]
    return make(), torch.randn(shape)


def randomise_norms_(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights as after training, so that a mix-up of channels shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return model


def couple(model: nn.Module, *inputs: Tensor) -> CouplingMap:
    """Trace, label and solve, without the rehearsal."""
    copied = copy.deepcopy(model)
    return build(flow(trace(copied, ExampleInputs.of(inputs))), copied)


def layout(coupling: CouplingMap, order: tuple[str, ...] = ()) -> dict[str, str]:
    """Spell the channels that each layer makes: one letter per unit, a dot for a channel that stays.

    ``{"a": "xxyy.", "b": "xy"}``: the first two channels of ``a`` live or die with the first of ``b``, the last
    of ``a`` stays. Letters are handed out in ``order``. Parameters of the network itself are spelled too.
    """
    made = {_layer(site.tensor): site.units for site in coupling.sites if _is_made(site)}
    for stays in coupling.frozen:
        made.setdefault(stays.layer, (STAYS,) * sum(f.channels for f in coupling.frozen if f.layer == stays.layer))
    letters: dict[int, str] = {STAYS: "."}
    spelled = {}
    for name in [*(name for name in order if name in made), *(name for name in made if name not in order)]:
        for unit in made[name]:
            letters.setdefault(unit, ascii_letters[len(letters) - 1])
        spelled[name] = "".join(letters[unit] for unit in made[name])
    return spelled


def _layer(tensor: str) -> str:
    return layer_of(tensor) or tensor


def _is_made(site: Any) -> bool:
    return site.role == "writes" or "." not in site.tensor


def random_half(hyper: HyperModel, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """Return a random mask over units that leaves every group as many as it needs, mostly one."""
    keep = torch.rand(hyper.coupling.units, generator=rng) < share
    for group in hyper.coupling.groups:
        first = int(torch.randint(group.size, (), generator=rng))
        keep[[group.start + (first + at) % group.size for at in range(group.least)]] = True
    return keep


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """Return the largest difference, relative to the largest value of the reference."""
    a, b = reference.detach(), candidate.detach()
    return float((a - b).abs().max() / a.abs().max())


def zeroed(hyper: HyperModel, keep: Tensor) -> nn.Module:
    """Return the dense network with the reading weights of all units outside ``keep`` set to zero, by hand."""
    from hyperprune.hyper import plain_copy

    plain = plain_copy(hyper)
    for site in hyper.coupling.sites:
        if site.role == "reads":
            gone = [at for at, unit in enumerate(site.units) if unit != STAYS and not keep[unit]]
            weight = plain.get_parameter(site.tensor)
            with torch.no_grad():
                weight.index_fill_(site.axis, torch.tensor(gone, dtype=torch.long), 0.0)
    return plain


def dead_units(model: nn.Module, hyper: HyperModel) -> Tensor:
    """Return the units that the plain model's own backward did not reach: all gradients of their slices are zero.

    A ReLU that never fires does that. ``model`` has just had the backward that ``hyper`` had.
    """
    felt = torch.zeros(hyper.coupling.units)
    for site in hyper.coupling.sites:
        if site.role == "reads":
            weight = model.get_parameter(site.tensor)
            assert weight.grad is not None
            sizes = (weight.grad * weight).detach().abs().transpose(0, site.axis).flatten(1).amax(1)
            for unit, size in zip(site.units, sizes.tolist(), strict=True):
                if unit != STAYS:
                    felt[unit] = max(float(felt[unit]), size)
    return felt == 0


def count(keep: np.ndarray | Tensor, coupling: CouplingMap) -> np.ndarray:
    """Return how many units of each group a mask keeps."""
    return np.array([int(keep[group.units].sum()) for group in coupling.groups])


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that nothing may change: tensors, grads, modes, hooks, classes."""
    return {
        "tensors": {k: v.clone() for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "grads": {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Fail if two snapshots differ in anything, down to the last bit."""
    for part in ("tensors", "grads"):
        assert list(before[part]) == list(after[part])
        for name, tensor in before[part].items():
            other = after[part][name]
            assert (tensor is None and other is None) or torch.equal(tensor, other), f"{name} was changed ({part})"
    for part in ("modes", "classes", "hooks", "trained"):
        assert before[part] == after[part], f"{part} were changed"


def train(hyper: HyperModel, search: Search, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    """Take the user's steps: any loss that every latent matters to."""
    for _ in range(steps):
        optimizer.zero_grad()
        hyper(x).square().mean().backward()
        optimizer.step()
        search.step()


def searched(model: nn.Module, x: Tensor, budget: Budget, steps: int = 6, **options: Any) -> HyperModel:
    """Hyperize and search with SGD."""
    hyper = hyperize(model, x)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    train(hyper, Search(hyper, optimizer, budget, steps, **options), optimizer, x, steps)
    return hyper
