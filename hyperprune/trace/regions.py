"""Autocast and no_grad regions: torch.export keeps each as a graph of its own; here they join the graph they lie in."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch.fx
from torch.fx import Graph, GraphModule, Node

REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")


def join_regions_(graph: Graph) -> Graph:
    """Replace each call of a region by the calls inside it, in place, and return the graph.

    Example:
        >>> class Scaled(torch.nn.Module):
        ...     def forward(self, x):
        ...         with torch.no_grad():
        ...             scale = x.abs()
        ...         return x * scale
        >>> graph = torch.export.export(Scaled(), (torch.ones(2),), strict=False).graph
        >>> [node.name for node in join_regions_(graph).nodes if node.op == "call_function"]
        ['abs_2', 'mul']
    """
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") in REGIONS:
            _join_(graph, node)
    return graph


def _join_(graph: Graph, call: Node) -> None:
    at = next(i for i, argument in enumerate(call.args) if _is_region(argument))
    region = cast(Node, call.args[at])
    inner = join_regions_(_graph_of(graph, region))
    results = _copy_before(graph, call, inner, list(call.args[at + 1 :]))
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[cast(int, user.args[1])])
        graph.erase_node(user)
    graph.erase_node(call)
    if not region.users:
        graph.erase_node(region)


def _is_region(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def _graph_of(graph: Graph, region: Node) -> Graph:
    holder = graph.owning_module
    found: Any = operator.attrgetter(str(region.target))(holder)
    assert isinstance(found, GraphModule)
    return found.graph


def _copy_before(graph: Graph, call: Node, inner: Graph, arguments: list[Any]) -> list[Any]:
    """Copy the nodes of a region in front of its call; return what the region returns, in terms of the copies."""
    copies: dict[Node, Any] = {}
    given = iter(arguments)
    look_up: Callable[[Node], Any] = copies.__getitem__
    with graph.inserting_before(call):
        for node in inner.nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op != "output":
                copies[node] = graph.node_copy(node, look_up)
    (returned,) = inner.output_node().args
    return list(cast("tuple[Any, ...]", torch.fx.node.map_arg(returned, look_up)))
