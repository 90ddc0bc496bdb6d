"""Whole numbers that forward() takes from tensors of constants, for a trace in which tensors hold no numbers.

``x.permute(*torch.arange(x.ndim - 1, -1, -1))`` reads an order of axes from a tensor that no input reaches. While a
model is exported such a tensor is as empty as all others; here a twin with its numbers is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

MOST = 4096  # elements of a twin: orders of axes and lists of sizes are short
MAKING = ("zeros", "ones", "full", "arange")
FACTORIES = (torch.arange, torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.eye)
READINGS = ("tolist", "item", "__int__", "__index__", "__bool__", "__len__")
DRAWS = ("rand", "bernoulli", "multinomial", "normal", "exponential", "poisson")
SHAPING = {
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "roll", "narrow", "select"),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "repeat", "tile", "split", "chunk"),
    *(*MAKING, "new_zeros", "new_ones", "new_full", "sum", "mean", "var", "std"),
}
"""Functions that take axes and sizes as numbers, and numbers out of tensors as well."""


def constants_known() -> TorchFunctionMode:
    """Let code that runs inside, under torch's tracing, read the numbers of tensors made of constants alone.

    Example:
        >>> class Turned(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.permute(*torch.arange(x.ndim - 1, -1, -1))
        >>> with constants_known():
        ...     graph = torch.export.export(Turned(), (torch.ones(2, 3),), strict=False).graph
        >>> [node.args[1] for node in graph.nodes if node.name == "permute"]
        [[1, 0]]
    """
    return _Twins()


class _Twins(TorchFunctionMode):
    """Keeps a real tensor beside each traced one that only constants made."""

    def __init__(self) -> None:
        super().__init__()
        self._twins = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name.startswith(DRAWS) or not all(tensor in self._twins for tensor in tensors):
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
                self._forget(*args[:1])  # it takes numbers that nobody knows
            return func(*self._numbered(name, args), **kwargs)
        if not tensors and func not in FACTORIES:
            return func(*args, **kwargs)
        twin = self._on_twins(func, args, kwargs)
        return twin if name in READINGS else self._paired(func(*self._numbered(name, args), **kwargs), twin)

    def _on_twins(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with _disable_current_modes():  # torch has no public name for computing with real numbers amid a trace
            args, kwargs = tree_map_only(Tensor, self._twins.__getitem__, (args, kwargs))
            return func(*args, **kwargs)

    def _paired(self, made: Any, twin: Any) -> Any:
        for one, other in zip(tree_leaves(made), tree_leaves(twin), strict=True):
            if isinstance(one, Tensor) and not other.is_floating_point() and other.numel() <= MOST:
                self._twins[one] = other
        return made

    def _forget(self, tensor: Any = None) -> None:
        if isinstance(tensor, Tensor):
            self._twins.pop(tensor, None)

    def _numbered(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what a function is given, with numbers in place of known tensors that stand for axes and sizes."""
        if name not in SHAPING:
            return args
        at = 0 if name in MAKING else 1  # the first one is what gets a shape
        return (*args[:at], *tree_map_only(Tensor, self._number, args[at:]))

    def _number(self, tensor: Tensor) -> Any:
        twin = self._twins.get(tensor)
        return tensor if twin is None or twin.ndim else twin.item()
