"""Small operations on label tensors.

A label tensor has the shape of the activation it describes. Along an axis on which all labels agree it has
stride 0, so that a channel map over 224 x 224 positions costs no more than one over channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def varies(labels: Tensor, axis: int) -> bool:
    """Say whether labels differ along ``axis`` (label tensors are kept compact, so the stride tells)."""
    return labels.shape[axis] > 1 and labels.stride(axis) != 0


def varying_axes(labels: Tensor) -> list[int]:
    """Return the axes along which labels differ.

    Example:
        >>> varying_axes(spread(torch.arange(3), (2, 3, 4, 4), axis=1))
        [1]
    """
    return [axis for axis in range(labels.ndim) if varies(labels, axis)]


def named_axes(dim: Any, ndim: int) -> list[int]:
    """Return the axes that a call names by one number or several, counted from the front; all where it names none.

    Example:
        >>> named_axes(-1, 3), named_axes([0, -2], 3), named_axes(None, 2)
        ([2], [0, 1], [0, 1])
    """
    if dim is None or dim == []:
        return list(range(ndim))
    return [axis % ndim for axis in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []


def thin(labels: Tensor) -> Tensor:
    """Cut every axis along which labels agree down to length 1."""
    for axis in range(labels.ndim):
        if not varies(labels, axis):
            labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return labels


def compact(labels: Tensor) -> Tensor:
    """Give every axis along which labels agree stride 0.

    Example:
        >>> compact(torch.tensor([[1, 2], [1, 2]])).stride()
        (0, 1)
    """
    shape = labels.shape
    if labels.numel() == 0:
        return labels
    slim = thin(labels)
    for axis in range(slim.ndim):
        first = slim.narrow(axis, 0, 1)
        if slim.shape[axis] > 1 and bool((slim == first).all()):
            slim = first
    return slim.contiguous().expand(shape)


def extent(labels: Tensor, axis: int) -> Tensor:
    """Return all labels at each position along an axis, ``[size, k]``.

    Example:
        >>> extent(torch.tensor([[1, 2], [3, 4]]), 1)
        tensor([[1, 3],
                [2, 4]])
    """
    rows = thin(labels).movedim(axis, 0)
    return rows.expand(labels.shape[axis], *rows.shape[1:]).reshape(labels.shape[axis], -1)


def spread(channels: Tensor, shape: tuple[int, ...] | torch.Size, axis: int) -> Tensor:
    """Lay a vector of labels along ``axis`` of ``shape``; all other axes agree."""
    axis %= len(shape)
    view = [1] * len(shape)
    view[axis] = -1
    return compact(channels.reshape(view)).expand(tuple(shape))
