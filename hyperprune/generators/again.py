"""Weights that are made again in the backward pass, instead of being kept for it.

A convolution keeps its weight for the backward pass. A plain layer's weight is the parameter, which lives anyway; a
generated one would cost a parameter's memory once more. So a layer with a generated weight runs in a window
(``torch.autograd.graph.saved_tensors_hooks``) in which autograd keeps a note on how to make the weight instead of the
weight. Where someone else watches what is kept (activation checkpointing, offloading), theirs is the only window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Kept(NamedTuple):
    """A tensor that autograd keeps, and its version when it was kept."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Kept:
        """Note a tensor as it is now."""
        return cls(tensor, tensor._version)

    def back(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: it was changed in place; autograd says the same of what it keeps itself.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor of shape {list(self.tensor.shape)} is at version {self.tensor._version}, expected version "
                f"{self.version}. Call backward() before optimizer.step(), or leave out the in-place operation."
            )
        return self.tensor


class Note(NamedTuple):
    """How to make a view of a generated weight again: sources, what to do with them, the view's layout."""

    make: Callable[..., Tensor]
    sources: tuple[Kept, ...]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def back(self) -> Tensor:
        """Return the view, made again."""
        made = self.make(*(source.back() for source in self.sources))
        return made.as_strided(self.size, self.stride, self.offset)


class _Window(threading.local):
    """Generated weights of the layer that is running, by their storage; they live until it has run."""

    made: dict[int, tuple[Tensor, Callable[..., Tensor], tuple[Kept, ...]]] | None = None


_window = _Window()


def note(weight: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Say how a weight can be made again, bit for bit and with the same strides, and return it.

    Args:
        make: a function of ``sources``.
        sources: tensors that live as long as the layer, or are small.
    """
    if _window.made is not None and (address := _address(weight)) is not None:
        _window.made[address] = (weight, make, tuple(Kept.of(source.detach()) for source in sources))
    return weight


def _address(tensor: Tensor) -> int | None:
    """Return where a tensor's memory begins; None for those of torch.func, which have none of their own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def in_window(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's ``forward`` that keeps no generated weight for the backward pass."""

    @wraps(forward)
    def windowed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not _may_open():
            return forward(module, *args, **kwargs)
        _window.made = {}
        try:
            with saved_tensors_hooks(_pack, _unpack):
                return forward(module, *args, **kwargs)
        finally:
            _window.made = None

    return windowed


def _may_open() -> bool:
    """Say whether autograd keeps anything, and nobody else (nor a compiler) watches what it keeps."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    autograd: Any = torch._C._autograd  # torch has no public name for either question
    watched = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    allowed = getattr(autograd, "_saved_tensors_hooks_is_enabled", None)
    return watched is not None and allowed is not None and watched(True) is None and bool(allowed())


def _pack(tensor: Tensor) -> Kept | Note:
    address = _address(tensor)
    found = None if address is None or _window.made is None else _window.made.get(address)
    if found is None or found[0].dtype != tensor.dtype:
        return Kept.of(tensor)
    return Note(found[1], found[2], tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _unpack(kept: Kept | Note) -> Tensor:
    return kept.back()
