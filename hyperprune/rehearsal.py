"""When a rehearsed export fails: which calls hold sizes that could not be repaired, and what to try next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from torch import nn

from hyperprune.coupling import STAYS, CouplingMap
from hyperprune.errors import ModelError
from hyperprune.verify import Proof


@dataclass(frozen=True)
class Choices:
    """Which reading of each ambiguous call to take: 0 is the likeliest, the last one freezes its channels."""

    taken: Mapping[str, int] = field(default_factory=dict)

    def after(self, fault: Iterable[str]) -> Choices:
        """Return the choices with the next reading for the calls at fault.

        Example:
            >>> Choices({"view": 1}).after(["view", "chunk"]).taken
            {'view': 2, 'chunk': 1}
        """
        return Choices({**self.taken, **{node: self.taken.get(node, 0) + 1 for node in fault}})


def blame(coupling: CouplingMap, slim: nn.Module, fault: Exception | Proof) -> tuple[str, ...]:
    """Return the calls whose sizes may explain why a slim model failed or computed something else.

    An exception points to the modules it passed through; a wrong result to every call that holds a size.

    Raises:
        ModelError: no call holds a size that follows the channels, so the failure has another cause.
    """
    suspects = {size.node: size.module for size in coupling.sizes if set(size.units) != {STAYS}}
    standard = {name for name, module in slim.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    suspects = {node: module for node, module in suspects.items() if module not in standard}
    if isinstance(fault, Exception):
        for path in _modules_on_stack(slim, fault.__traceback__):
            if kin := [node for node, module in suspects.items() if module == path]:
                return tuple(_alike(slim, suspects, kin[0]))
    if suspects:
        return tuple(suspects)
    raise ModelError(
        f"a rehearsed export of {type(slim).__name__} went wrong ({fault}), and no size written into forward() "
        "explains it. Please report the model; a layer probably changes its weights while running."
    ) from (fault if isinstance(fault, Exception) else None)


def _alike(slim: nn.Module, suspects: Mapping[str, str], node: str) -> list[str]:
    """Return the suspects in modules of the same class: a fault in one block is a fault in all of them."""
    modules = dict(slim.named_modules())
    kind = type(modules[suspects[node]])
    return [other for other, path in suspects.items() if type(modules[path]) is kind]


def _modules_on_stack(slim: nn.Module, traceback: TracebackType | None) -> list[str]:
    """Return paths of the modules whose code was running, innermost first."""
    paths = {id(module): path for path, module in slim.named_modules()}
    found: list[str] = []
    while traceback is not None:
        owner = id(traceback.tb_frame.f_locals.get("self"))
        if owner in paths:
            found.append(paths[owner])
        traceback = traceback.tb_next
    return found[::-1]
