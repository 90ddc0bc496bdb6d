"""Where a call comes from: the module that made it, and the line of the user's source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from traceback import format_tb
from types import TracebackType
from typing import Any

import torch.fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
MODULES_SHOWN = 3
_LIBRARY = ("/torch/nn/", "/torch/_", "/torch/functional")


@dataclass(frozen=True)
class Origin:
    """Where a call comes from: the module that made it, and the line of source."""

    op: str
    module: str
    source: str

    def __str__(self) -> str:
        return _in_words(self.op, self.source, [self.module])


NOWHERE = Origin("", "", "")


def gathered(origins: Iterable[Origin]) -> tuple[str, ...]:
    """Return a text for each operator and line of source, sorted, with the modules where it runs.

    Example:
        >>> gathered(Origin("aten.add.Tensor", f"blocks.{block}", "vit.py:7") for block in range(12))
        ("aten.add.Tensor in 'blocks.0', 'blocks.1', 'blocks.2', +9 more (vit.py:7)",)
    """
    modules: dict[tuple[str, str], dict[str, None]] = {}
    for each in origins:
        modules.setdefault((each.op, each.source), {})[each.module] = None
    return tuple(_in_words(*key, list(modules[key])) for key in sorted(modules))


def _in_words(op: str, source: str, modules: list[str]) -> str:
    named = [repr(module) for module in modules if module]
    more = [f"+{len(named) - MODULES_SHOWN} more"] if len(named) > MODULES_SHOWN else []
    where = f" in {', '.join(named[:MODULES_SHOWN] + more)}" if named else ""
    return f"{op}{where}" + (f" ({source})" if source else "")


def origin(node: torch.fx.Node) -> Origin:
    """Say which module made this call, and on which line of the user's source."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return Origin(str(node.target), _module_path(stack), _source_line(node.meta.get("stack_trace") or ""))


def owner(node: torch.fx.Node) -> str:
    """Return the path of the innermost module whose ``forward`` made this call."""
    return _module_path(list((node.meta.get("nn_module_stack") or {}).values()))


def owner_class(node: torch.fx.Node) -> str:
    """Return the class name of the innermost module whose ``forward`` made this call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]).rpartition(".")[2] if stack else ""


def plain_name(node: torch.fx.Node) -> str:
    """Return the name of a call without overload and without the mark of an in-place operation."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")


def failing_lines(traceback: TracebackType | None) -> tuple[str, ...]:
    """Return the lines of the user's source in a traceback, innermost first, written as ``Origin.source`` is."""
    return tuple(_source_line(frame) for frame in reversed(format_tb(traceback)))


def _module_path(stack: list[Any]) -> str:
    return re.sub(r"@\d+$", "", str(stack[-1][0])) if stack else ""


def users_line(stack_trace: str) -> str:
    """Return the innermost line of the user's source in a stack trace as text, "" if there is none."""
    frames = _FRAME.finditer(stack_trace)
    return _innermost([frame for frame in frames if not any(part in frame["file"] for part in _LIBRARY)])


def _source_line(stack_trace: str) -> str:
    """Return the innermost line of the user's source, else of a library's."""
    return users_line(stack_trace) or _innermost([*_FRAME.finditer(stack_trace)])


def _innermost(frames: list[re.Match[str]]) -> str:
    return "".join(f"{frame['file'].rsplit('/', 1)[-1]}:{frame['line']}" for frame in frames[-1:])
