"""A recorder of every piece of memory that a forward pass takes: when, how much, and until when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Storage:
    """One piece of memory that a call took. Views share it; a call that works in place takes none.

    Attributes:
        bytes: its size.
        born: which call took it, counted from 0.
        died: the first call that ran after it had been given back.
    """

    bytes: int
    born: int
    died: int


def record(run: Callable[[], Any], given: Iterable[Tensor]) -> list[Storage]:
    """Run something and return the memory that its calls took, in order.

    Calls are those that reach torch's dispatcher. What a kernel takes and gives back inside is its own affair.

    Args:
        run: a forward pass.
        given: tensors that were there before: weights, buffers, inputs.

    Example:
        >>> x = torch.zeros(10)
        >>> record(lambda: x.exp().sin(), [x])
        [Storage(bytes=40, born=0, died=2), Storage(bytes=40, born=1, died=2)]
    """
    recorder = _Recorder(given)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), recorder:
        output = run()
    recorder.finish()
    del output
    return recorder.storages()


class _Recorder(TorchDispatchMode):
    """Looks before every call which storages are gone, and after it which are new."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = {ref.cdata: ref for ref in map(_ref, given)}
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}
        self._found: list[tuple[int, int]] = []
        self._died: dict[int, int] = {}
        self._calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._bury()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        self._calls += 1
        return result

    def finish(self) -> None:
        """Look once more, while the outputs are still there."""
        self._bury()

    def storages(self) -> list[Storage]:
        """Return what was found."""
        return [Storage(size, born, self._died.get(at, self._calls)) for at, (size, born) in enumerate(self._found)]

    def _bury(self) -> None:
        for key in [key for key, (ref, _) in self._living.items() if ref.expired()]:
            self._died[self._living.pop(key)[1]] = self._calls

    def _note(self, tensor: Tensor) -> None:
        ref = _ref(tensor)
        if ref.cdata not in self._given and ref.cdata not in self._living:
            self._living[ref.cdata] = (ref, len(self._found))
            self._found.append((tensor.untyped_storage().nbytes(), self._calls))


def _ref(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
