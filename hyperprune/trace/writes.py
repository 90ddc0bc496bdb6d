"""Writes into a part of a tensor (``out[:, :, 1:] = y``): in the graph each becomes a call that makes a new tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.fx
from torch.fx import Graph, Node

_SLICE, _COPY = torch.ops.aten.slice.Tensor, torch.ops.aten.copy_.default
_SCATTER = torch.ops.aten.slice_scatter.default


def settle_writes_(graph: Graph) -> Graph:
    """Replace each copy into slices of a tensor by calls that return it with the copy in it, and return the graph.

    Left alone are writes into what shares its memory with something that is looked at later.

    Example:
        >>> class Shifted(torch.nn.Module):
        ...     def forward(self, x):
        ...         out = torch.zeros_like(x)
        ...         out[:, 1:] = x[:, :-1]
        ...         return out
        >>> graph = torch.export.export(Shifted(), (torch.ones(2, 3),), strict=False).graph
        >>> [node.name for node in settle_writes_(graph).nodes if node.op == "call_function"]
        ['zeros_like', 'slice_1', 'slice_scatter_default']
    """
    for node in list(graph.nodes):
        if node.target is _COPY and isinstance(node.args[1], Node):
            slices = list(_slices(node))
            if slices and _is_seen_by_no_other(slices[-1].args[0], node):
                _settle_(graph, node, slices)
    return graph


def _slices(write: Node) -> Iterator[Node]:
    """Yield the slices through which a call writes, innermost first."""
    at: Any = write.args[0]
    while at.target is _SLICE and len(at.users) == 1:
        yield at
        at = at.args[0]


def _is_seen_by_no_other(base: Any, write: Node) -> bool:
    """Say whether a tensor has its own memory, and nothing that shares it is used behind the write."""
    if base.op != "call_function" or _shares_memory(base):
        return False
    queue = [user for user in base.users if _shares_memory(user) and user < write]
    for view in queue:
        if any(user > write for user in view.users):
            return False
        queue += [user for user in view.users if user is not write and _shares_memory(user)]
    return True


def _shares_memory(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(returned.alias_info is not None for returned in schema.returns)


def _settle_(graph: Graph, write: Node, slices: list[Node]) -> None:
    made: Any = write.args[1]
    with graph.inserting_before(write):
        for part in slices:
            whole: Any = part.args[0]
            made = graph.call_function(_SCATTER, (whole, made, *part.args[1:]), dict(part.kwargs))
            made.meta = {**write.meta, "val": whole.meta["val"]}
    base: Any = slices[-1].args[0]
    base.replace_all_uses_with(made, delete_user_cb=lambda user: user > write)
    graph.erase_node(write)
    for part in slices:
        if not part.users:
            graph.erase_node(part)
