"""Attributes that repeat the sizes of layers for code outside ``forward``: a new classifier, merged branches.

timm builds a new classifier by ``num_features``, and merges the branches of a block by its ``in_chs`` and ``groups``.
What some ``forward`` reads is left alone: that is a size in a call, or part of a condition, and not for this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from hyperprune.slim.sizes import CHANNELS, GEOMETRY

OF_LAYERS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels")
SIDES = {"in": "in", "inp": "in", "inplanes": "in", "input": "in", "out": "out", "oup": "out", "output": "out"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Sizes = Mapping[nn.Module, Mapping[str, int]]


def sizes_in(model: nn.Module) -> Sizes:
    """Return the numbers that modules hold under names of channels, by module and attribute.

    Example:
        >>> sizes = sizes_in(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
        >>> list(sizes.values())
        [{}, {'in_features': 2, 'out_features': 3}, {'normalized_shape': 3}]
    """
    return {module: dict(_numbers(module)) for module in model.modules()}


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    own = () if type(module).__module__.startswith("torch.") else filter(_speaks_of_channels, vars(module))
    for name in dict.fromkeys((*own, *OF_LAYERS)):
        value = getattr(module, name, None)
        if type(value) is int:
            yield name, value
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, (tuple, list)) and len(shape) == 1:
        yield "normalized_shape", shape[0]


@lru_cache(maxsize=4096)
def _speaks_of_channels(name: str) -> bool:
    return not name.startswith("_") and bool(CHANNELS.search(name.lower())) and not GEOMETRY.search(name.lower())


def follow_(model: nn.Module, before: Sizes) -> None:
    """Let the attributes of modules follow the layers inside that held the same number, in place.

    The nearest layers decide; where these became different numbers, the attribute stays as it is.

    Args:
        before: ``sizes_in`` of the model before its layers changed.

    Example:
        >>> model = nn.Module()
        >>> model.num_features, model.fc = 8, nn.Linear(8, 2)
        >>> before = sizes_in(model)
        >>> model.fc.in_features = 5
        >>> follow_(model, before)
        >>> model.num_features
        5
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    read = {name for kind in kinds for name in names_read(kind)}
    now = {module: dict(numbers) for module, numbers in sizes_in(model).items()}
    for module in reversed(list(model.modules())):
        for name, value in before.get(module, {}).items():
            if value > 1 and vars(module).get(name) == value and name not in read:
                now[module][name] = vars(module)[name] = _of_nearest(module, name, value, before, now)


def _of_nearest(module: nn.Module, name: str, value: int, before: Sizes, now: Sizes) -> int:
    level = list(_parts(module))
    while level:
        found = {
            now[part][other]
            for part in level
            for other, number in before.get(part, {}).items()
            if number == value and _may_be_same(name, other)
        }
        if found:
            return found.pop() if len(found) == 1 else value
        level = [inner for part in level for inner in _parts(part)]
    return value


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules inside, those of containers in their place."""
    for part in module.children():
        yield from _parts(part) if isinstance(part, CONTAINERS) else (part,)


def _may_be_same(name: str, other: str) -> bool:
    """Say whether names may stand for one number: what enters is not what leaves, nor how many groups there are.

    Example:
        >>> _may_be_same("in_chs", "in_channels"), _may_be_same("in_chs", "out_channels"), _may_be_same("dim", "groups")
        (True, False, True)
    """
    sides = {_side(name), _side(other)}
    return len(sides) == 1 or "" in sides


def _side(name: str) -> str:
    if "group" in name.lower():
        return "groups"
    return next((SIDES[part] for part in re.split("_", name.lower()) if part in SIDES), "")


@lru_cache(maxsize=1024)
def names_read(kind: type[Any]) -> frozenset[str]:
    """Return the names that a class's ``forward`` reads, and all functions that it may call; none of torch's own.

    Example:
        >>> class Half(nn.Module):
        ...     def forward(self, x):
        ...         return self.part(x)
        ...
        ...     def part(self, x):
        ...         return x[: self.width // 2]
        >>> sorted(names_read(Half))
        ['part', 'width']
    """
    seen: dict[str, None] = {}
    queue = [code for code in map(_code, _definitions(kind, "forward")) if code is not None]
    while queue:
        code, found = queue.pop(), []
        for name in code.co_names:
            if name not in seen:
                seen[name] = None
                found += _definitions(kind, name)
        queue += [inner for inner in (*map(_code, found), *code.co_consts) if isinstance(inner, CodeType)]
    return frozenset(seen)


def _definitions(kind: type[Any], name: str) -> list[Any]:
    own = [base for base in kind.__mro__ if not base.__module__.startswith("torch.")]
    return [vars(base)[name] for base in own if name in vars(base)]


def _code(value: Any) -> CodeType | None:
    value = getattr(value, "fget", getattr(value, "__func__", value))
    value = getattr(value, "__wrapped__", value)
    return value.__code__ if isinstance(value, FunctionType) else None
