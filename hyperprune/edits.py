"""Parameters that forward() itself writes to while the network trains: weights clipped after every step, say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperprune.copies import copied
from hyperprune.trace import ExampleInputs, random_state_kept


def edited(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    """Return the names of the parameters that forward() writes to in train mode, each time it runs.

    A copy runs, and once more if it wrote: what a layer sets from its first data alone (activation norm) does not
    count. Nothing runs where no code but torch's own asks for the mode.

    Example:
        >>> class Clipped(nn.Linear):
        ...     def forward(self, x):
        ...         if self.training:
        ...             self.weight.data.clamp_(-0.01, 0.01)
        ...         return super().forward(x)
        >>> sorted(edited(nn.Sequential(Clipped(2, 2), nn.Linear(2, 2)), ExampleInputs.of(torch.ones(4, 2))))
        ['0.weight']
    """
    if not any(_asks_for_mode(type(module)) for module in model.modules()):
        return frozenset()
    doubled = inputs.map(lambda t: torch.cat([t, t]) if t.ndim else t)
    for attempt in (inputs, doubled):  # batch norm may insist on two examples
        try:
            return _edited(copied(model).train(), attempt)
        except Exception:  # whatever the user's forward raises on few examples in train mode
            continue
    return frozenset()


def _edited(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    with random_state_kept(model), torch.no_grad():
        return _written(model, inputs) and _written(model, inputs)


def _written(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    """Run once, and return the names of the parameters that were written to or replaced."""
    before = dict(model.named_parameters())
    places = {name: parameter.data_ptr() for name, parameter in before.items()}
    with _Writes(before) as writes:
        inputs.copied().call(model)
    after = dict(model.named_parameters())
    moved = {name for name in before if after.get(name) is not before[name] or after[name].data_ptr() != places[name]}
    return frozenset(writes.found | moved)


class _Writes(TorchDispatchMode):
    """Notes which parameters calls write to, through ``.data`` and views as well.

    Attributes:
        found: their names.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()
        self._names = {_storage(parameter): name for name, parameter in parameters.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        if schema.is_mutable:
            given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **(kwargs or {})}
            written = [given.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write]
            places = {_storage(tensor) for tensor in tree_leaves(written) if isinstance(tensor, Tensor)}
            self.found |= {name for place, name in self._names.items() if place in places}
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _asks_for_mode(kind: type[nn.Module]) -> bool:
    own = (base for base in kind.__mro__ if not base.__module__.startswith("torch."))
    return any("training" in names for base in own for names in _names_read(base))


def _names_read(kind: type) -> Iterator[tuple[str, ...]]:
    codes = [value.__code__ for value in vars(kind).values() if isinstance(value, FunctionType)]
    while codes:
        code = codes.pop()
        yield code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
