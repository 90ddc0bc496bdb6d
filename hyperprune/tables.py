"""Tables that modules hold as plain attributes (positions in sines and cosines) become buffers where that helps."""

from __future__ import annotations

import dis
import re
from collections.abc import Collection, Iterator
from types import CodeType

from torch import Tensor, nn

from hyperprune.codes import codes_of, constructors_of, nested_in

INIT = re.compile("^__init__$")
BY_NAME = {"setattr", "__dict__", "vars"}


def tables_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that modules hold as plain attributes, by name: set by a constructor, and by nothing else.

    What other code may set is no table but a cache: names in quotes, or parts of them, may be set by ``setattr``.

    Example:
        >>> import torch
        >>> class Scaled(nn.Linear):
        ...     def __init__(self):
        ...         super().__init__(2, 2)
        ...         self.scale = torch.ones(2)
        >>> tables_of(Scaled())
        {'scale': tensor([1., 1.])}
    """
    found = [
        (path, name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if _is_table(value) and not hasattr(type(module), name)
    ]
    if not found:
        return {}
    constructors = constructors_of(model)
    inside = [inner for code in constructors for inner in nested_in(code) if inner not in constructors]
    others = [*codes_of(model, INIT), *inside]
    caches = {name for code in others for name in _stored(code)}
    parts = {part for code in others if BY_NAME & set(code.co_names) for part in _words(code) or [""]}
    tables = {name for code in constructors for name in _stored(code)} - caches
    return {
        f"{path}.{name}" if path else name: value
        for path, name, value in found
        if name in tables and not any(part in name for part in parts)
    }


def to_buffers_(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Make buffers of plain attributes, in place, and return the model: what is sliced must be one.

    They are no part of ``state_dict``, as the attributes were none.
    """
    for name in names:
        module, attribute = _place(model, name)
        module.register_buffer(attribute, vars(module).pop(attribute), persistent=False)
    return model


def to_attributes_(model: nn.Module, names: Collection[str]) -> None:
    """Make buffers plain attributes again, in place: those take no other type by ``half()``, and may be anything."""
    for name in names:
        module, attribute = _place(model, name)
        value = getattr(module, attribute)
        delattr(module, attribute)
        vars(module)[attribute] = value


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _is_table(value: object) -> bool:
    return type(value) is Tensor and value.is_floating_point() and value.ndim > 0 and not value.requires_grad


def _stored(code: CodeType) -> Iterator[str]:
    """Yield the names of the attributes that some code sets, of any object."""
    return (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")


def _words(code: CodeType) -> list[str]:
    """Return the words in quotes, those of keywords too, that some code holds."""
    constants = [word for value in code.co_consts for word in (value if isinstance(value, tuple) else (value,))]
    return [word for word in constants if isinstance(word, str) and re.fullmatch(r"\w+", word)]
