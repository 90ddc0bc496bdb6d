"""The code of a model's own classes: what its methods may read or set is known without running them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn


def codes_of(model: nn.Module, skipped: re.Pattern[str]) -> Iterator[CodeType]:
    """Yield the code of a model's methods and of the functions of the user's that they call; torch's is left out.

    All methods count, for another module may call them, and what gets, sets or deletes a property; but for those in
    whose names ``skipped`` is found.

    Example:
        >>> class Half(nn.Module):
        ...     def forward(self, x):
        ...         return x[: self.width // 2]
        >>> [code.co_names for code in codes_of(Half(), re.compile("^__init__$"))]
        [('width',)]
    """
    methods = [value for kind in _own_classes(model) for name, value in vars(kind).items() if not skipped.search(name)]
    queue = [part for value in methods for part in _parts(value)]
    queue += [vars(module)["forward"] for module in model.modules() if "forward" in vars(module)]
    seen: set[int] = set()
    while queue:
        function = _function(queue.pop())
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        nested = list(nested_in(function.__code__))
        yield from nested
        called = {name for code in nested for name in code.co_names}
        queue += [function.__globals__[name] for name in called if name in function.__globals__]
        queue += [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]


def is_torchs(value: Any) -> bool:
    """Say whether a class or function is torch's own.

    Example:
        >>> is_torchs(nn.Linear), is_torchs(re.compile)
        (True, False)
    """
    return (value.__module__ or "").partition(".")[0] in ("torch", "builtins")


def nested_in(code: CodeType) -> Iterator[CodeType]:
    """Yield some code, and that of the functions which it defines."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested_in(value)


def constructors_of(model: nn.Module) -> list[CodeType]:
    """Return the code of ``__init__`` of a model's own classes."""
    found = [_function(vars(kind).get("__init__")) for kind in _own_classes(model)]
    return [function.__code__ for function in found if function is not None]


def _own_classes(model: nn.Module) -> set[type]:
    return {base for module in model.modules() for base in type(module).__mro__ if not is_torchs(base)}


def _parts(value: Any) -> list[Any]:
    return [value.fget, value.fset, value.fdel] if isinstance(value, property) else [value]


def _function(value: Any) -> FunctionType | None:
    """Return the function behind a method; that behind a decorator lies in the closure."""
    if isinstance(value, cached_property):
        value = value.func
    elif isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    return value if isinstance(value, FunctionType) and not is_torchs(value) else None


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a function that calls itself, and was never defined
        return False
