"""Let labels flow through a traced graph, call by call, writing ties and freezes into a ledger."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.fx
from torch import Tensor

from hyperprune.labels import rules as _rules  # noqa: F401  (importing the rules registers them)
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import Attention, Freeze, Ledger, Standardised, TensorRef, UseCall
from hyperprune.labels.lookahead import masks_weights
from hyperprune.labels.multihead import couple_widths
from hyperprune.labels.reasons import CONSTANT, INPUT, OUTPUT, SIZE_IN_FORWARD
from hyperprune.labels.registry import Rule, find
from hyperprune.labels.standardised import row_views
from hyperprune.trace import Origin, Trace, origin

LAST_RESORT = 3
LARGEST_BUFFER = 2**22


def flow(traces: tuple[Trace, ...], choices: Mapping[str, int] | None = None, attention: Attention = "heads") -> Ledger:
    """Read every trace of one model into one ledger.

    Args:
        traces: graphs of the same model (eval mode, perhaps train mode too); they share parameter names.
            MACs are those of the first trace, in eval mode: heads that run in train mode only are no part of what a
            forward pass costs.
        choices: node name -> which reading of an ambiguous call to take (see ``Call.choose``).
        attention: whether attention loses whole heads, or the same channels inside every head.
    """
    ledger = Ledger()
    counted: list[tuple[dict[str, int], list[UseCall]]] = []
    for trace in traces:
        _Flow(trace, ledger, choices or {}, attention).run()
        counted.append((dict(ledger.positions), list(ledger.uses)))
    ledger.positions, ledger.uses = counted[0]
    couple_widths(ledger, traces)
    return ledger


def operator_name(target: Any) -> str:
    """Return ``"aten::relu"`` for an operator of torch, the plain name for a Python function."""
    schema = getattr(target, "_schema", None)
    return schema.name if schema is not None else f"python::{getattr(target, '__name__', target)}"


def _apply(rule: Rule, call: Call) -> Any:
    """Apply a rule; where it fails, freeze what the call touches and say so, as for an operation without a rule."""
    try:
        return rule(call)
    except Exception as error:  # a rule may be the user's own
        return call.give_up(f"the rule for {call.operator} failed ({type(error).__name__}: {error})")


class _Flow:
    def __init__(self, trace: Trace, ledger: Ledger, choices: Mapping[str, int], attention: Attention) -> None:
        self._trace = trace
        self._ledger = ledger
        self._choices = choices
        self._attention = attention
        self._values: dict[torch.fx.Node, Any] = {}
        self._names = {**trace.parameters, **trace.buffers}
        self._rows = row_views(trace.graph, trace.parameters)

    def run(self) -> None:
        for node in self._trace.graph.nodes:
            self._values[node] = self._visit(node)

    def _visit(self, node: torch.fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "output":
            return self._output(node)
        if node.target is operator.getitem:
            source, at = self._values[cast(torch.fx.Node, node.args[0])], cast(int, node.args[1])
            return source[at] if isinstance(source, (list, tuple)) else source
        if node in self._rows:
            return self._as_rows(self._values[self._rows[node]])
        return self._call(node)

    def _as_rows(self, weight: Any) -> Any:
        """A weight on its way to be standardised, and back, is still that weight."""
        return Standardised(weight.name, weight.shape, True) if isinstance(weight, TensorRef) else weight

    def _placeholder(self, node: torch.fx.Node) -> Any:
        value = node.meta.get("val")
        if node.name in self._names and isinstance(value, Tensor) and not self._is_table(node, value):
            return TensorRef(self._names[node.name], tuple(value.shape), node.name in self._trace.parameters)
        reason = CONSTANT if node.name in self._names or node.name.startswith("c_") else INPUT
        return self._fixed(node, reason)

    def _is_table(self, node: torch.fx.Node, value: Tensor) -> bool:
        """Say whether a buffer is a table of positions or a mask, not something with channels."""
        if node.name not in self._trace.buffers or masks_weights(node):
            return False
        return not value.is_floating_point() or value.numel() > LARGEST_BUFFER

    def _output(self, node: torch.fx.Node) -> None:
        where = Origin("output", "", "")
        for value in torch.utils._pytree.tree_leaves([self._values.get(n) for n in node.all_input_nodes]):
            if isinstance(value, TensorRef):
                value = self._ledger.element(value)
            if isinstance(value, Tensor):
                self._ledger.freezes.append(Freeze(value.reshape(-1), OUTPUT, where))

    def _call(self, node: torch.fx.Node) -> Any:
        name = operator_name(node.target)
        choice = self._choices.get(node.name, 0)
        call = Call(node, name, self._arguments(node), self._ledger, choice, self._values, self._attention)
        if choice >= LAST_RESORT:
            return call.give_up(SIZE_IN_FORWARD)
        rule = find(name)
        if rule is not None:
            return _apply(rule, call)
        if call.tensors():
            return call.give_up(f"no rule for {name}")
        return self._fixed(node, CONSTANT)

    def _fixed(self, node: torch.fx.Node, reason: str) -> Any:
        where = origin(node)

        def fix(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return None
            label = self._ledger.pinned(reason, where)
            if reason == CONSTANT:
                self._ledger.constants.add(int(label))
            if reason == INPUT:
                self._ledger.inputs.add(int(label))
            return label.expand(value.shape)

        return torch.utils._pytree.tree_map(fix, node.meta.get("val"))

    def _arguments(self, node: torch.fx.Node) -> dict[str, Any]:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self._values[n])
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {**{str(at): value for at, value in enumerate(args)}, **kwargs}
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        return {**defaults, **given, **kwargs}
