"""What a run of the user's code may leave behind, put back: random states, modes, caches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

_PACKAGES = ("torch.", "torchvision.", "timm.")


def drop_caches_(model: nn.Module) -> None:
    """Let modules forget what they computed from their weights in eval mode (attention biases, for instance).

    Modules that keep such caches drop them when they are put into train mode; every mode comes back.
    """
    with modes_kept(model):
        model.train()


def is_of_libraries(model: nn.Module) -> bool:
    """Say whether all layers are torch's, torchvision's or timm's, and none has a hook.

    The forward passes of these write to no parameter, and keep nothing outside of their modules.

    Example:
        >>> is_of_libraries(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        True
    """
    return all(type(part).__module__.startswith(_PACKAGES) and not _has_hooks(part) for part in model.modules())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@contextmanager
def random_state_kept(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Give the global random generators their states back afterwards: Python's, numpy's, torch's on every device.

    Args:
        seed: what they start from meanwhile, where it must not matter what the user has drawn.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                _seed(seed, devices)
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def _seed(seed: int, devices: list[int]) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every submodule its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
