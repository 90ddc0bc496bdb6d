"""Tables that modules hold as plain attributes (positions in sines and cosines) become buffers where that helps."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterable, Iterator
from types import CodeType

from torch import Tensor, nn

from hyperprune.codes import codes_of, constructors_of, nested_in

INIT = re.compile("^__init__$")
NOTHING = "(?!)"
BY_NAME = {"setattr", "__dict__", "vars"}
SETTING = {"setattr", "update"}
MADE_UP = {
    "BUILD_STRING",
    "FORMAT_VALUE",
    "FORMAT_SIMPLE",
    "FORMAT_WITH_SPEC",
    "BINARY_OP",
    "BINARY_ADD",
    "BINARY_MODULO",
}


def tables_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that modules hold as plain attributes, by name: set by a constructor, and by nothing else.

    What other code may set, or reads other than as an attribute, is no table but a cache: by ``setattr``, ``vars`` or
    ``__dict__`` that is what it names in quotes, what holds a part of a name that it makes up, or anything.

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
        if _may_be_buffer(module, name)
    ]
    if not found:
        return {}
    constructors = constructors_of(model)
    inside = [inner for code in constructors for inner in nested_in(code) if inner not in constructors]
    others = [*codes_of(model, INIT), *inside]
    tables = {name for code in constructors for name in _stored(code)} - {n for code in others for n in _stored(code)}
    by_name = [_names_meant_by(code) for code in others if BY_NAME & set(code.co_names)]
    return {
        f"{path}.{name}" if path else name: value
        for path, name, value in found
        if name in tables and not any(meant.fullmatch(name) for meant in by_name)
    }


def attributes_of(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those names that are plain attributes which could be buffers, whoever sets them."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parts = [(name, modules.get(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in dict.fromkeys(names)]
    return [name for name, module, own in parts if module is not None and _may_be_buffer(module, own)]


def to_buffers_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Make buffers of plain attributes, in place, and return the model: what is sliced must be one.

    They are no part of ``state_dict``, as the attributes were none.
    """
    for module, own in dict.fromkeys(_place(model, name) for name in names):
        module.register_buffer(own, vars(module).pop(own), persistent=False)
    return model


def to_attributes_(model: nn.Module, names: Iterable[str], but: Iterable[str]) -> None:
    """Make buffers plain attributes again, in place: those take no other type by ``half()``, and may be anything.

    Args:
        but: what stays a buffer; a module may be known by several names.
    """
    firm = {_place(model, name) for name in but}
    for module, own in {_place(model, name) for name in names} - firm:
        value = getattr(module, own)
        delattr(module, own)
        vars(module)[own] = value


def in_float64_(model: nn.Module) -> None:
    """Bring a copy to float64, in place; plain attributes too, which ``double()`` leaves as they are."""
    for module in model.double().modules():
        own = vars(module)
        own.update({name: own[name].double() for name in own if _may_be_buffer(module, name)})


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _may_be_buffer(module: nn.Module, name: str) -> bool:
    value = vars(module).get(name)
    if hasattr(type(module), name):  # it would hide a buffer
        return False
    return type(value) is Tensor and value.is_floating_point() and value.ndim > 0 and not value.requires_grad


def _stored(code: CodeType) -> Iterator[str]:
    """Yield the names of the attributes that some code sets, of any object."""
    return (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")


def _names_meant_by(code: CodeType) -> re.Pattern[str]:
    """Return what matches the names that code in quotes may mean: these, any that hold a part of them, or all."""
    constants = [word for value in code.co_consts for word in (value if isinstance(value, tuple) else (value,))]
    words = [word for word in constants if isinstance(word, str) and re.fullmatch(r"\w+", word)]
    steps = {each.opname for each in dis.get_instructions(code)}
    if not words:
        return re.compile(".*" if SETTING & set(code.co_names) or "STORE_SUBSCR" in steps else NOTHING)
    around = ".*" if MADE_UP & steps else ""
    return re.compile(f"{around}({'|'.join(words)}){around}")
