"""Where a call comes from: the module that made it, and the line of the user's source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from traceback import format_tb
from types import TracebackType
from typing import Any

import torch.fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_LIBRARY = ("/torch/nn/", "/torch/_", "/torch/functional")


@dataclass(frozen=True)
class Origin:
    """Where a call comes from: the module that made it, and the line of source."""

    op: str
    module: str
    source: str

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        return f"{self.op}{where}" + (f" ({self.source})" if self.source else "")


NOWHERE = Origin("", "", "")


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
