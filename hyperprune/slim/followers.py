"""Attributes that repeat the sizes of layers for code outside ``forward``: a new classifier, merged branches.

timm builds a new classifier by ``num_features``, and merges the branches of a block by its ``in_chs`` and ``groups``.
What code may read while the network runs is left alone: that is a size in a call, or part of a condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType

from torch import nn

from hyperprune.codes import codes_of, is_torchs
from hyperprune.plan import Spared
from hyperprune.slim.sizes import CHANNELS, GEOMETRY

OF_LAYERS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels")
OUTSIDE = re.compile(
    r"^__init__$|^__repr__$|extra_repr|reset|init_|reparam|fuse|deploy|merge|kernel|classifier|prune|matcher|load"
    r"|^_?(set|build|create|make)_"
)
"""Names of methods that no forward pass calls: they build layers, merge, cut or load them, or show them."""

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
    own = vars(module)
    told = OF_LAYERS.__contains__ if is_torchs(type(module)) else _speaks_of_channels
    yield from ((name, value) for name, value in own.items() if type(value) is int and told(name))
    shape = own.get("normalized_shape")
    if isinstance(shape, (tuple, list)) and len(shape) == 1:
        yield "normalized_shape", shape[0]


def _speaks_of_channels(name: str) -> bool:
    return not name.startswith("_") and bool(CHANNELS.search(name.lower())) and not GEOMETRY.search(name.lower())


def follow_(model: nn.Module, before: Sizes, spared: Iterable[Spared] = ()) -> None:
    """Let the attributes of modules follow the layers inside that held the same number, in place.

    The nearest layers decide; where these became different numbers, the attribute stays as it is.

    Args:
        before: ``sizes_in`` of the model before its layers changed.
        spared: attributes that are to keep their numbers.

    Example:
        >>> model = nn.Module()
        >>> model.num_features, model.fc = 8, nn.Linear(8, 2)
        >>> before = sizes_in(model)
        >>> model.fc.in_features = 5
        >>> follow_(model, before)
        >>> model.num_features
        5
    """
    read = names_read(model)
    now = {module: dict(numbers) for module, numbers in sizes_in(model).items()}
    firm = {(item.module, item.attribute) for item in spared}
    for path, module in reversed(list(model.named_modules())):
        for name, value in before.get(module, {}).items():
            if value > 1 and vars(module).get(name) == value and name not in read and (path, name) not in firm:
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
    return len(sides) == 1 or ("" in sides and "heads" not in sides)


def _side(name: str) -> str:
    if counted := re.search(r"group|heads|nhead", name.lower()):
        return "groups" if counted[0] == "group" else "heads"
    return next((SIDES[part] for part in re.split("_", name.lower()) if part in SIDES), "")


def names_read(model: nn.Module) -> set[str]:
    """Return the names that code of a model's classes may read while it runs; torch's own classes are left out.

    All methods count, for another module may call them, but for those that build, merge or show; so do the functions
    of the user's that they call, and names in quotes (``getattr(self, "width")``).

    Example:
        >>> class Half(nn.Module):
        ...     def forward(self, x):
        ...         return self.part(x)
        ...
        ...     def part(self, x):
        ...         return x[: self.width // 2]
        >>> sorted(names_read(Half()))
        ['part', 'width']
    """
    return {name for code in codes_of(model, OUTSIDE) for name in _names(code)}


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from (value for value in code.co_consts if isinstance(value, str))
