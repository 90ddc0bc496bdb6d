"""Deep copies of modules, of those too that keep activations of their last run as attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module, shared: Iterable[Tensor] = ()) -> Module:
    """Return a deep copy.

    ``copy.deepcopy`` refuses tensors with a gradient history; the copy has them without it. It also shares the classes
    that torch makes for parametrized layers: removing a parametrization of one would break the other. The copy has its
    own.

    Args:
        shared: tensors that the copy is to have in common with the original.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.last = layer.weight * 2
        >>> copied(layer).last.requires_grad
        False
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for tensor in _with_history(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    made = copy.deepcopy(module, memo)
    for old, new in zip(module.parameters(), made.parameters(), strict=True):
        vars(new).update(vars(old))  # attributes such as no_decay, which torch leaves behind
    for part in made.modules():
        if is_parametrized(part):
            kind = type(part)
            part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    return made


def _with_history(module: nn.Module) -> list[Tensor]:
    values = [value for part in module.modules() for value in vars(part).values()]
    kept = [value for value in values if isinstance(value, (Tensor, list, tuple, Mapping))]
    return [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor) and not leaf.is_leaf]
