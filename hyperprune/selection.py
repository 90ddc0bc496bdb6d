"""Which layers a user means: by name, glob, type, predicate, or the layer itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hyperprune.errors import ModelError

Pattern = str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]


def select_layers(model: nn.Module, patterns: Iterable[Pattern] | None, what: str) -> frozenset[str]:
    """Return the paths of all modules that match a pattern, or lie inside one that does.

    Args:
        patterns: a module's name or a glob (``"layer4.*.conv2"``), a module of the model, a module class, or a
            function of name and module; one of them or several, or None.
        what: the argument's name, for the error.

    Raises:
        ModelError: a pattern is of another type, or matches nothing (a typing error, most likely), or nothing that
            makes channels.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> sorted(select_layers(model, [nn.Linear], "keep"))
        ['0', '2']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen: set[str] = set()
    lone = isinstance(patterns, (str, type)) or callable(patterns)
    for pattern in [patterns] if lone else patterns or ():
        hits = [path for path, module in modules.items() if path and _matches(pattern, path, module, what)]
        if not hits:
            raise ModelError(f"{what}: nothing matches {_shown(pattern)}.{_nearest(pattern, modules)}")
        _require_weights(pattern, [modules[hit] for hit in hits], hits[0], what)
        chosen.update(path for path in modules if any(path == hit or path.startswith(f"{hit}.") for hit in hits))
    return frozenset(chosen)


def _matches(pattern: Any, path: str, module: nn.Module, what: str) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(path, pattern)
    if isinstance(pattern, nn.Module):
        return module is pattern
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if callable(pattern):
        return bool(pattern(path, module))
    raise ModelError(f"{what}: a name, a glob, a module class or a function is needed, not {pattern!r}.")


def _require_weights(pattern: object, hits: list[nn.Module], first: str, what: str) -> None:
    tensors = (tensor for module in hits for tensor in (*module.parameters(), *module.buffers()))
    if all(tensor.ndim < 2 for tensor in tensors):
        raise ModelError(
            f"{what}: {_shown(pattern)} matches only layers that make no channels, such as {first!r} "
            f"({type(hits[0]).__name__}). Name the convolution or linear layer before them: the channels are its own."
        )


def _shown(pattern: object) -> str:
    return f"this {type(pattern).__name__}" if isinstance(pattern, nn.Module) else repr(pattern)


def _nearest(pattern: object, modules: Iterable[str]) -> str:
    near = difflib.get_close_matches(pattern, list(modules), n=3) if isinstance(pattern, str) else []
    return f" Did you mean {', '.join(near)}?" if near else " print(model) lists the names."
