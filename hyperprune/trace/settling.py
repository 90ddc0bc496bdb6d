"""What torch.export leaves in a graph that says nothing of the user's network, settled before it is read."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.fx
from torch import nn

from hyperprune.trace.origins import plain_name
from hyperprune.trace.regions import join_regions_
from hyperprune.trace.writes import settle_writes_

_STEP = re.compile(r"slice\((?P<bounds>[^)]*)\)|(?P<name>[^.]+)")
STAND_IN = 16  # for a size that depends on values: what is left of it behind a kernel of 7 is still a size
_ELEMENT_BY_ELEMENT = ("add", "sub", "mul", "div", "cat", "relu", "prelu", "gelu", "silu", "sigmoid", "tanh", "dropout")
_CONVERSIONS = (torch.ops.aten.to, torch.ops.aten.type_as, torch.ops.aten.contiguous)


def settled(graph: torch.fx.Graph, model: nn.Module) -> torch.fx.Graph:
    """Return the graph of an exported program as it is read: one graph, whose sizes are numbers."""
    _note_users_(graph)
    graph = settle_writes_(join_regions_(graph))
    _settle_paths_(graph, model)
    _settle_sizes_(graph)
    _drop_idle_(graph)
    _drop_unused_(graph)
    return graph


def _note_users_(graph: torch.fx.Graph) -> None:
    """Note all users of each value, in place: torch.export forgets those that a no_grad region takes a size from."""
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _settle_paths_(graph: torch.fx.Graph, model: nn.Module) -> None:
    """Name layers taken from a slice of a container (``self.layers[:-1]``) as the model does, in place."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if any("slice(" in str(path) for path, *_ in stack.values()):
            node.meta["nn_module_stack"] = {
                key: (_named(str(path), model), *rest) for key, (path, *rest) in stack.items()
            }


def _named(path: str, model: nn.Module) -> str:
    """Return a path without slices: those of a list number their layers anew, those of ``nn.Sequential`` do not."""
    names: list[str] = []
    whole, children = model, model._modules
    for step in _STEP.finditer(path):
        if step["bounds"]:
            bounds = (None if bound == "None" else int(bound) for bound in step["bounds"].split(", "))
            part = list(children.items())[slice(*bounds)]
            renumbered = {str(at): child for at, (_, child) in enumerate(part)}
            children = dict(part) if isinstance(whole, nn.Sequential) else renumbered
        elif (child := children[step["name"]]) is not None:
            names.append(next(name for name, other in whole._modules.items() if other is child))
            whole, children = child, child._modules
    return ".".join(names)


def _drop_idle_(graph: torch.fx.Graph) -> None:
    """Leave out casts to the type that a tensor has, in place.

    They return the tensor itself; so torch.export credits later uses of it, by other modules, to the cast.
    """
    for node in graph.nodes:
        value, source = node.meta.get("val"), node.args[0] if node.args else None
        if getattr(node.target, "overloadpacket", None) in _CONVERSIONS and isinstance(source, torch.fx.Node):
            before = source.meta["val"]
            if (value.dtype, value.device, value.stride()) == (before.dtype, before.device, before.stride()):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _drop_unused_(graph: torch.fx.Graph) -> None:
    """Leave out calls whose results nobody uses, in place: the attention weights that a layer averages over heads.

    Calls with weights stay, for what they cost; and so do additions of what they make and the like, for sizes must fit
    there (the last block of Conv-TasNet adds to a stream that nobody reads).
    """
    used = _reaching_outputs(graph)
    weighted: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node in used or node.meta.get("val") is None:
            continue
        meets = plain_name(node) in _ELEMENT_BY_ELEMENT
        if any(source.op == "placeholder" or (meets and source in weighted) for source in node.all_input_nodes):
            weighted.add(node)
    for node in reversed(graph.nodes):
        if not node.users and node not in used and node not in weighted:
            graph.erase_node(node)


def _reaching_outputs(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return the calls that an output, or what changes a tensor in place, is made of."""
    found: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        lasting = node.op != "call_function" or schema is None or schema.is_mutable
        if lasting or any(user in found for user in node.users):
            found.add(node)
    return found


def _settle_sizes_(graph: torch.fx.Graph) -> None:
    """Replace sizes that depend on values (``nonzero``, boolean masks) by one number each, in place."""
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map_only(torch.Tensor, _settled, node.meta["val"])


def _settled(value: torch.Tensor) -> torch.Tensor:
    if all(isinstance(size, int) for size in value.shape):
        return value
    return torch.empty([_number(size) for size in value.shape], dtype=value.dtype, device="meta")


def _number(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return max(1, int(expression.subs(dict.fromkeys(expression.free_symbols, STAND_IN))))
