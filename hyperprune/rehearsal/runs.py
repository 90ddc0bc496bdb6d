"""How a rehearsal runs networks: gated or plain, in eval mode with statistics taken on the way, or in train mode."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hyperprune.copies import copied
from hyperprune.coupling import CouplingMap
from hyperprune.generators import Lean, attach, withdraw_
from hyperprune.latents import LatentBank
from hyperprune.norms import attach_norms, detach_norms
from hyperprune.trace import ExampleInputs, drop_caches_, random_state_kept
from hyperprune.verify import run_eval, tensors_of

FEWEST = 8  # values per channel from which statistics are worth taking; a single one would normalise to nothing
ENOUGH = 1024  # values per channel from which more add nothing: statistics need not be those of every pixel


@contextmanager
def gated(model: nn.Module, coupling: CouplingMap, alive: Tensor) -> Iterator[None]:
    """Let a plain model compute with the other units' gates at zero while the block runs."""
    bank = LatentBank(coupling.groups).to(next(model.parameters()).device)
    bank.keep_(alive)
    attach(model, bank, coupling, Lean(), seed=0)
    attach_norms(model, bank, coupling)
    yield
    withdraw_(model)
    detach_norms(model)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back the buffers that forward() replaces by others: a slim model must make these anew by itself."""
    before = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        yield
    finally:
        for module, name, buffer in before:
            module._buffers[name] = buffer


def shapes_in_training(network: nn.Module, inputs: ExampleInputs, seed: int = 0) -> list[tuple[int, ...]] | Exception:
    """Run a network of which nothing else is wanted; return the shapes of its outputs, or why it failed."""
    drop_caches_(network)
    try:
        with random_state_kept(network, seed), torch.enable_grad():
            return [tuple(tensor.shape) for tensor in tensors_of(inputs.copied().call(network.train()))]
    except Exception as error:  # whatever the user's forward raises in train mode
        return error


def takes(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Say whether a model runs on inputs."""
    try:
        run_eval(copied(model), inputs)
    except Exception:  # whatever the user's forward raises
        return False
    return True


def calibrated_run(model: nn.Module, inputs: ExampleInputs) -> Any:
    """Run a model in eval mode while its batch norms take the statistics of what they are given."""
    with calibrated(model) as calls:
        expected = run_eval(model, inputs)
    if max(calls.values(), default=0) > 1:  # the first call of a reused norm had other statistics than the last
        expected = run_eval(model, inputs)
    return expected


def light_copy(model: nn.Module, coupling: CouplingMap) -> nn.Module:
    """Copy a model, but share with it the weights that the rehearsal only reads."""
    parameters = {name for name, _ in model.named_parameters()}
    weights = [model.get_parameter(name) for name in coupling.weights & parameters]
    return copied(model, shared=[weight for weight in weights if not _all_zero(weight)])


def _all_zero(weight: Tensor) -> bool:
    """Say whether a weight is zero everywhere; its first slice nearly always shows that it is not."""
    return weight.numel() > 0 and not bool(weight[0].any()) and not bool(weight.any())


@torch.no_grad()
def enliven_(model: nn.Module, coupling: CouplingMap) -> None:
    """Draw new values, in place, for tensors that would make a comparison blind.

    A layer scale of 1e-6 or a batch norm that starts at zero hides a whole branch: a wrong export would go
    unnoticed. Scales become U(0.5, 1.5), weights and biases that are all zero become random; the global random state is
    left alone.
    """
    rng = torch.Generator().manual_seed(0)
    state = model.state_dict(keep_vars=True)
    for tensor in coupling.tensors:
        value = state.get(tensor.name)
        if value is None or not value.is_floating_point():
            continue
        if tensor.name not in coupling.weights and not tensor.name.endswith("bias"):
            value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
        elif value.ndim and _all_zero(value):
            value.copy_(torch.randn(value.shape, generator=rng) / math.sqrt(value[0].numel()))


@contextmanager
def calibrated(model: nn.Module) -> Iterator[Mapping[nn.Module, int]]:
    """While the block runs, batch norms in eval mode first take the statistics of what they are given.

    A freshly built network in eval mode may lose its signal over many layers; this keeps it alive. Means are set
    off by up to a standard deviation: over a single image they would leave nothing for a global average. Yields how
    often each norm was called.
    """
    calls: Counter[nn.Module] = Counter()

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1
        _take_statistics(module, args)

    hooks = [m.register_forward_pre_hook(take) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _take_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    x = _thinned(args[0])
    if x.numel() // x.shape[1] < FEWEST:
        return
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if isinstance(module.running_var, Tensor) and isinstance(module.running_mean, Tensor):
        mean = x.mean(dim=axes)
        variance = (x - mean.view(-1, *[1] * (x.ndim - 2))).square().mean(dim=axes)  # var_mean takes ten times as long
        offset = torch.linspace(-1, 1, len(mean), dtype=mean.dtype, device=mean.device)
        module.running_mean.copy_(mean + offset * variance.sqrt())
        module.running_var.copy_(variance.clamp_min(1e-3))


def _thinned(x: Tensor) -> Tensor:
    """Leave out rows of a large image (or steps of a long signal), shape ``[batch, channels, rows, ...]``."""
    rows = x.shape[2] if x.ndim > 2 else 1
    return x[:, :, :: max(1, min(rows, x.numel() // x.shape[1] // ENOUGH))] if rows > 1 else x
