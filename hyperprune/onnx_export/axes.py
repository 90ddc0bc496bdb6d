"""Which axes of the inputs may take any size, and inputs of other sizes to try that with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import Tensor, nn

from hyperprune.batches import batch_of, has_batch, with_batch
from hyperprune.errors import InputsError
from hyperprune.trace import ExampleInputs

Axes = dict[int, str]

SIZES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
_ENLARGED = {3: (1, 1, 3), 4: (1, 1, 3, 2), 5: (1, 1, 2, 3, 2)}  # whatever divided the sizes still does


def in_order(inputs: ExampleInputs, network: nn.Module) -> ExampleInputs:
    """Return the inputs with keyword arguments in the order of ``forward``'s signature, as the graph will have them."""
    names = list(inspect.signature(network.forward).parameters)
    place = {name: at for at, name in enumerate(names)}
    ordered = sorted(inputs.kwargs, key=lambda name: place.get(name, len(names)))
    return ExampleInputs(inputs.args, {name: inputs.kwargs[name] for name in ordered})


def free_axes(inputs: ExampleInputs, batch: bool, size: bool) -> list[Axes]:
    """Return, for each tensor, names of the axes that may take any size.

    Raises:
        InputsError: there is no such axis.

    Example:
        >>> import torch
        >>> free_axes(ExampleInputs.of(torch.zeros(1, 3, 8, 8)), batch=True, size=True)
        [{0: 'batch', 2: 'height', 3: 'width'}]
    """
    given = batch_of(inputs) if batch else 0
    free: list[Axes] = []
    for tensor in inputs.tensors():
        sizes = dict(enumerate(SIZES.get(tensor.ndim, ()), start=2)) if size else {}
        free.append(({0: "batch"} if batch and has_batch(tensor, given) else {}) | sizes)
    if size and not any(set(axes) - {0} for axes in free):
        raise InputsError("dynamic_size frees the axes from 2 on, but no input has three to five axes.")
    return free


def trials(inputs: ExampleInputs, batch: bool, size: bool) -> Iterator[ExampleInputs]:
    """Yield the inputs to compare on: those given, another batch, another image size."""
    yield inputs
    if batch:
        yield with_batch(inputs, 3 if batch_of(inputs) == 5 else 5)
    if size:
        yield inputs.map(_enlarged)


def widened(inputs: ExampleInputs) -> ExampleInputs:
    """Return at least two rows: torch.export takes a batch of one for a constant."""
    return with_batch(inputs, max(2, batch_of(inputs)))


def _enlarged(tensor: Tensor) -> Tensor:
    return tensor.repeat(_ENLARGED[tensor.ndim]) if tensor.ndim in _ENLARGED else tensor
