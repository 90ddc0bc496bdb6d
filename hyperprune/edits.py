"""Parameters that forward() itself writes to while the network trains: weights clipped in every step, say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperprune.copies import copied
from hyperprune.trace import ExampleInputs, is_of_libraries, random_state_kept

RUNS = 3  # the first may set what is set once; of two more, a step in two falls on one


def edited(model: nn.Module, inputs: ExampleInputs) -> dict[str, frozenset[str]]:
    """Return the parameters that forward() writes to in train mode, each with those that it mixes into them.

    A copy runs a few times, unless all layers come from libraries that do no such thing. What a layer sets from its
    first data alone (activation norm) does not count.

    Example:
        >>> class Clipped(nn.Linear):
        ...     def forward(self, x):
        ...         if self.training:
        ...             self.weight.data.clamp_(-0.01, 0.01)
        ...         return super().forward(x)
        >>> edited(nn.Sequential(Clipped(2, 2), nn.Linear(2, 2)), ExampleInputs.of(torch.ones(4, 2)))
        {'0.weight': frozenset()}
    """
    if is_of_libraries(model):
        return {}
    found: dict[str, frozenset[str]] = {}
    for attempt in (inputs, inputs.doubled()):
        copy = copied(model).train()
        with random_state_kept(model, seed=0), torch.enable_grad():
            runs = [_run(copy, attempt) for _ in range(RUNS)]
        for name, others in chain.from_iterable(writes.items() for writes, _ in runs[1:]):
            found[name] = found.get(name, frozenset()) | others
        if all(whole for _, whole in runs):
            break
    return found


def _run(model: nn.Module, inputs: ExampleInputs) -> tuple[dict[str, frozenset[str]], bool]:
    """Run once; return the parameters that were written to or replaced, and whether the run came to its end."""
    whole = False
    before = dict(model.named_parameters())
    places = {name: parameter.data_ptr() for name, parameter in before.items()}
    with _Writes(before) as writes, suppress(Exception):  # whatever the user's forward raises in train mode
        inputs.copied().call(model)
        whole = True
    for name, parameter in model.named_parameters():
        if name in before and (parameter is not before[name] or parameter.data_ptr() != places[name]):
            writes.note(name, [parameter])
    return {name: frozenset(others - {name}) for name, others in writes.found.items()}, whole


class _Writes(TorchDispatchMode):
    """Notes which parameters calls write to, through ``.data`` and views as well, and what they mix into them.

    A parameter is mixed in if it has been worked into a tensor of its own shape: ``0.9 * slow + 0.1 * fast``.

    Attributes:
        found: their names, each with the names of what is mixed in.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, set[str]] = defaultdict(set)
        self._names = {_storage(parameter): name for name, parameter in parameters.items()}
        self._worked: dict[int, set[str]] = {}
        self._alive: list[Tensor] = []  # or another tensor could get the place of one that is noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **(kwargs or {})}
        changed = _tensors([given.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write])
        sources = _tensors(given)
        for tensor in changed:
            if name := self._names.get(_storage(tensor)):
                self.note(name, sources)
        self._work(sources, _tensors(result))
        return result

    def note(self, name: str, sources: list[Tensor]) -> None:
        """Note that a parameter now has what these tensors held."""
        self.found[name] |= {origin for tensor in sources for origin in self._origins(tensor)}

    def _origins(self, tensor: Tensor) -> set[str]:
        place = _storage(tensor)
        return {self._names[place]} if place in self._names else self._worked.get(place, set())

    def _work(self, sources: list[Tensor], results: list[Tensor]) -> None:
        for result in results:
            alike = [source for source in sources if source.shape == result.shape]
            origins = {origin for source in alike for origin in self._origins(source)}
            if origins and _storage(result) not in self._names:
                self._worked.setdefault(_storage(result), set()).update(origins)
                self._alive.append(result)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
