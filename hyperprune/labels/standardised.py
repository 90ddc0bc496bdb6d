"""Weights that forward() standardises row by row before use (timm's ``StdConv2d``, ``ScaledStdConv2d``).

They are found by shape: a batch norm without running statistics over a weight, reshaped to one row per output
channel, and reshaped back. Such a weight is still that weight: its axes keep their labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch.fx

from hyperprune.trace import owner, plain_name

RESHAPES = ("reshape", "view", "reshape_as", "view_as")


def row_views(graph: torch.fx.Graph, parameters: Iterable[str]) -> dict[torch.fx.Node, torch.fx.Node]:
    """Return the reshapes around each standardisation of a weight, each with the node whose value it passes on."""
    found: dict[torch.fx.Node, torch.fx.Node] = {}
    names = set(parameters)
    for node in graph.nodes:
        if node.op == "call_function" and plain_name(node) == "batch_norm":
            found |= _around(node, names)
    return found


def reads_what_enters(node: torch.fx.Node) -> bool:
    """Say whether a layer's call reads what entered the layer, with zeros around it at most, and nobody else does."""
    layer, source = owner(node), cast(torch.fx.Node, node.args[0])
    while owner(source) == layer and source.op == "call_function":
        if not _pads_with_zeros(source):
            return False
        source = cast(torch.fx.Node, source.args[0])
    return len([user for user in source.users if owner(user) == layer]) == 1


def _pads_with_zeros(node: torch.fx.Node) -> bool:
    mode = tuple(value for value in node.args[2:] if value != "constant")
    return plain_name(node) in ("pad", "constant_pad_nd") and not any(mode)


def _around(norm: torch.fx.Node, parameters: set[str]) -> dict[torch.fx.Node, torch.fx.Node]:
    rows, *others = norm.args
    if not isinstance(rows, torch.fx.Node) or plain_name(rows) not in RESHAPES or others[2:5] != [None, None, True]:
        return {}
    weight = cast(torch.fx.Node, rows.args[0])
    if weight.name not in parameters or _shape(rows)[:2] != (1, _shape(weight)[0]):
        return {}
    back = list(norm.users)
    if any(plain_name(user) not in RESHAPES or _shape(user) != _shape(weight) for user in back):
        return {}
    if set(weight.users) - {rows, *back}:
        return {}
    return {rows: weight, **dict.fromkeys(back, norm)}


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
