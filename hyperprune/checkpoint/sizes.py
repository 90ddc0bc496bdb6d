"""The sizes that slimming repaired in the modules' own attributes.

Tensors do not tell them: an attention layer of three heads has the weights of one with six. So the file keeps them,
and a network that ends up with others was built with other arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hyperprune.checkpoint.fields import LARGEST
from hyperprune.plan import WidthPlan

Sizes = Mapping[str, Mapping[str, int | list[int]]]


def repaired_sizes(model: nn.Module, plans: Iterable[WidthPlan]) -> Sizes:
    """Return, by module and attribute, every number or list of numbers that holds a size some plan has set.

    Example:
        >>> from hyperprune.plan import Resize
        >>> block = nn.Module()
        >>> block.heads, block.split, block.window = 2, (2, 5), 7
        >>> repaired_sizes(block, [WidthPlan((), (Resize("", 3, 2),))])
        {'': {'heads': 2, 'split': [2, 5]}}
    """
    new: dict[str, set[int]] = {}
    for plan in plans:
        for size in plan.resizes:
            new.setdefault(size.module, set()).update(_numbers(size.new))
    held = {path: _holding(model.get_submodule(path), sizes) for path, sizes in new.items()}
    return {path: attributes for path, attributes in held.items() if attributes}


def other_sizes(model: nn.Module, sizes: Sizes) -> list[str]:
    """Return a line for each attribute whose value is not the one given."""
    lines = []
    for path, attributes in sizes.items():
        found = _plain(vars(model.get_submodule(path)))
        for name, value in attributes.items():
            if found.get(name) != value:
                where = f"{path}.{name}".lstrip(".")
                lines.append(f"{where[:200]}: it is {str(value)[:80]} in the file, {found.get(name)} in the model")
    return lines


def _holding(module: nn.Module, sizes: set[int]) -> dict[str, int | list[int]]:
    return {name: value for name, value in _plain(vars(module)).items() if sizes & set(_numbers(value))}


def _plain(attributes: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """Return the attributes that are numbers or lists of numbers, as JSON gives them back."""
    found: dict[str, int | list[int]] = {}
    for name, value in attributes.items():
        numbers = _numbers(value)
        if (
            numbers
            and not name.startswith("_")
            and all(type(number) is int and 0 <= number <= LARGEST for number in numbers)
        ):
            found[name] = value if type(value) is int else list(numbers)
    return found


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
