"""The tensors of a network as a file keeps them: each once, by name, with the names that share it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hyperprune.errors import CheckpointError

Ties = tuple[tuple[str, ...], ...]


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return what ``model.state_dict()`` holds: the model's own tensors, not copies.

    Raises:
        CheckpointError: an entry is not a tensor.
    """
    found = dict(model.state_dict(keep_vars=True))
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the state of {type(model).__name__} holds {name!r}, a {type(value).__name__}. Without pickle only "
                "tensors are kept: let get_extra_state() return a tensor."
            )
    return found


def derived_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are no part of ``state_dict`` (``persistent=False``), by name."""
    kept = model.state_dict(keep_vars=True)
    return {name: value for name, value in model.named_buffers(remove_duplicate=False) if name not in kept}


def ties_among(tensors: Mapping[str, Tensor]) -> Ties:
    """Return the groups of names behind which one and the same piece of memory lies.

    Example:
        >>> weight = torch.zeros(2)
        >>> ties_among({"a": weight, "b": torch.zeros(2), "c": weight})
        (('a', 'c'),)
    """
    places: dict[object, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel():
            places[_place(tensor)].append(name)
    return tuple(tuple(names) for names in places.values() if len(names) > 1)


def without_aliases(tensors: Mapping[str, Tensor], ties: Ties) -> dict[str, Tensor]:
    """Return the tensors without those that another name holds already, each contiguous."""
    aliases = {name for names in ties for name in names[1:]}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items() if name not in aliases}


def with_aliases(tensors: Mapping[str, Tensor], ties: Ties) -> dict[str, Tensor]:
    """Return the tensors under all of their names: the opposite of ``without_aliases``.

    Raises:
        CheckpointError: the names do not fit the tensors.
    """
    found = dict(tensors)
    for first, *others in ties:
        for name in others:
            if first not in tensors or name in found:
                raise CheckpointError(f"it says that {first!r} and {name!r} share a tensor, which does not fit.")
            found[name] = tensors[first]
    return found


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(json.dumps(text).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _place(tensor: Tensor) -> object:
    start = tensor.untyped_storage().data_ptr()
    return tensor.device, start, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
