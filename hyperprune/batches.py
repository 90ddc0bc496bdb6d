"""Example inputs at another batch size: the same rows again, each moved along, so that no two are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperprune.errors import InputsError
from hyperprune.trace import ExampleInputs


def batch_of(inputs: ExampleInputs) -> int:
    """Return the batch size: the length of axis 0 of the first tensor that has axes.

    Raises:
        InputsError: every tensor is a scalar.

    Example:
        >>> batch_of(ExampleInputs.of(torch.zeros(4, 3)))
        4
    """
    for tensor in inputs.tensors():
        if tensor.ndim:
            return len(tensor)
    raise InputsError("every example input is a scalar: there is no batch axis. Pass tensors with the batch first.")


def has_batch(tensor: Tensor, batch: int) -> bool:
    """Return whether axis 0 of a tensor is taken for the batch: it is as long as the first tensor's."""
    return tensor.ndim > 0 and len(tensor) == batch


def with_batch(inputs: ExampleInputs, batch: int) -> ExampleInputs:
    """Return the inputs with ``batch`` rows: the rows given, again and again, rolled along their last axis.

    Every value stays one that the user gave, so token numbers and masks stay valid. Tensors whose axis 0 is not the
    batch stay as they are.

    Raises:
        InputsError: as ``batch_of``; or the inputs hold no row.

    Example:
        >>> with_batch(ExampleInputs.of(torch.tensor([[1, 2, 3]])), 2).args[0]
        tensor([[1, 2, 3],
                [3, 1, 2]])
    """
    given = batch_of(inputs)
    if given == 0:
        raise InputsError("the example inputs hold no row: axis 0 has length 0. Pass at least one example.")
    return inputs.map(lambda tensor: _rows(tensor, batch) if has_batch(tensor, given) else tensor)


def _rows(tensor: Tensor, batch: int) -> Tensor:
    times = -(-batch // len(tensor))
    copies = [tensor.roll(turn, -1) if tensor.ndim > 1 else tensor for turn in range(times)]
    return torch.cat(copies)[:batch]
