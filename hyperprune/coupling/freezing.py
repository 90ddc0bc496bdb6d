"""What stays whatever the ties say: what the user keeps, tensors that modules share, what exports were inexact with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hyperprune.labels import Ledger
from hyperprune.labels.ledger import Freeze
from hyperprune.labels.reasons import (
    COMPUTED,
    EDITED,
    INEXACT,
    KEPT,
    PARAMETRIZED,
    SEVERAL_AXES,
    SIZE_IN_FORWARD,
    TIED,
    TOO_LARGE,
)
from hyperprune.plan import layer_of
from hyperprune.trace import NOWHERE, Origin

Held = tuple[str, int, tuple[int, ...]]


def freeze_(
    ledger: Ledger,
    model: nn.Module,
    closed: Iterable[str],
    kept: frozenset[str],
    held: Iterable[Held],
    edited: Mapping[str, Iterable[str]],
) -> None:
    """Write into the ledger what stays; the first reason that a channel is given is the one that is told.

    Args:
        closed: modules whose channels all stay.
        kept: modules whose output channels the user keeps.
        held: positions along an axis of a tensor whose channels stay.
        edited: parameters that forward() itself writes to while the network trains, with what it mixes into them.
    """
    _freeze_shared(ledger, model)
    _freeze_parametrized(ledger, model)
    _freeze_closed(ledger, closed)
    _freeze_held(ledger, held)
    _freeze_edited(ledger, edited)
    _freeze_kept(ledger, kept)
    _freeze_mixed_use(ledger)


def _freeze_shared(ledger: Ledger, model: nn.Module) -> None:
    """Tensors that two modules share stay whole: slicing one would have to slice the other."""
    for name, other in shared_tensors(model).items():
        _hold(ledger, name, f"{TIED} (also {other})")


def shared_tensors(model: nn.Module) -> dict[str, str]:
    """Return the names of tensors that two different modules hold, each with another of its names."""
    seen: dict[int, tuple[str, nn.Module]] = {}
    shared: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                name = f"{path}.{key}" if path else key
                other, home = seen.setdefault(id(tensor), (name, module))
                if home is not module:
                    shared[name], shared[other] = other, name
    return shared


def _freeze_parametrized(ledger: Ledger, model: nn.Module) -> None:
    """A weight that the user's own parametrization makes stays whole, but for weight norm's that a rule followed.

    Of those no row may be gated: a row of zeros has no length to be divided by.
    """
    followed = {layer_of(tensor) for tensor in ledger.normed}
    paths = {
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if is_parametrized(module) and (path not in followed or len(module.parametrizations) > 1)
    }
    rows = [product.channels for product in ledger.products if product.weight.name in ledger.normed]
    ledger.freezes += [Freeze(channels, PARAMETRIZED, NOWHERE) for channels in rows]
    if not paths:
        return
    for at, freeze in enumerate(ledger.freezes):
        if freeze.reason == COMPUTED and freeze.origin.module in paths:
            ledger.freezes[at] = replace(freeze, reason=PARAMETRIZED)
    for path in paths:
        _hold_module(ledger, path, PARAMETRIZED)


def _freeze_closed(ledger: Ledger, closed: Iterable[str]) -> None:
    for path in sorted(closed):
        _hold_module(ledger, path, SIZE_IN_FORWARD)


def _hold_module(ledger: Ledger, path: str, reason: str) -> None:
    for tensor in ledger.tensors:
        if tensor.startswith(f"{path}." if path else ""):
            _hold(ledger, tensor, reason, Origin("", path, ""))


def _freeze_held(ledger: Ledger, held: Iterable[Held]) -> None:
    for tensor, axis, positions in sorted(held):
        if (tensor, axis) in ledger.axes:
            labels = ledger.axes[tensor, axis][list(positions)]
            ledger.freezes.append(Freeze(labels, INEXACT, Origin("", tensor.rpartition(".")[0], "")))


def _freeze_edited(ledger: Ledger, edited: Mapping[str, Iterable[str]]) -> None:
    """A generated weight would not take what forward() writes; two tensors that it mixes must keep one shape."""
    products = (tensor for call in ledger.products for tensor in (call.weight, call.bias) if tensor is not None)
    generated = {name for name, _ in ledger.reads} | {tensor.name for tensor in products}
    for name, others in edited.items():
        for held in (name, *others) if others or name in generated else ():
            _hold(ledger, held, EDITED)


def _hold(ledger: Ledger, tensor: str, reason: str, origin: Origin = NOWHERE) -> None:
    """Freeze every label that a tensor has, along its axes and of its elements."""
    labels = [vector for (name, _), vector in ledger.axes.items() if name == tensor]
    if tensor in ledger.elements:
        labels.append(ledger.elements[tensor].reshape(-1))
    ledger.freezes += [Freeze(vector, reason, origin) for vector in labels]


def _freeze_kept(ledger: Ledger, kept: frozenset[str]) -> None:
    for tensor, axis in sorted(ledger.writes):
        path = layer_of(tensor)
        if path in kept:
            ledger.freezes.append(Freeze(ledger.axes[tensor, axis], KEPT, Origin("", path, "")))


def _freeze_mixed_use(ledger: Ledger) -> None:
    """A tensor used both as a weight and element by element has two sets of labels: neither may go."""
    weights = {name for name, _ in ledger.axes}
    for name in sorted(weights & set(ledger.elements)):
        _hold(ledger, name, SEVERAL_AXES)
    for name in sorted(weights & set(ledger.unlabelled)):
        _hold(ledger, name, TOO_LARGE)
