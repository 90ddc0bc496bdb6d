"""Recurrent layers: they lose inputs; their units stay."""

from __future__ import annotations

from math import prod
from typing import Any

from torch.utils import _pytree as pytree

from hyperprune.labels.call import Call
from hyperprune.labels.ledger import TensorRef
from hyperprune.labels.reasons import COMPUTED, RECURRENT
from hyperprune.labels.registry import rule


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def layers(call: Call) -> Any:
    """The first layer reads channels, in both directions; what all layers make are units."""
    weights, directions = call.arg("params"), 1 + call.arg("bidirectional", False)
    each = len(weights) // (call.arg("num_layers") * directions)
    return _runs(call, weights[: directions * each : each], [w for w in weights if len(w.shape) == 2])


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Any:
    """One step: as a layer over time."""
    return _runs(call, [call.arg("w_ih")], [call.arg("w_ih"), call.arg("w_hh")])


def _runs(call: Call, reading: list[Any], weights: list[Any]) -> Any:
    if not all(isinstance(weight, TensorRef) for weight in weights):
        return call.give_up(COMPUTED)
    x = call.labels(call.arg("input"))
    channels, positions = call.channels(x, -1), prod(x.shape[:-1])
    for weight in reading:
        call.applied(weight, positions)
        call.tie(call.reads(weight, 1), channels)
    call.costs(positions * sum(prod(weight.shape) for weight in weights if weight not in reading))
    for state in pytree.tree_leaves(call.arg("hx")):
        call.freeze(call.labels(state), RECURRENT)
    return pytree.tree_map(lambda made: call.pinned(RECURRENT, tuple(made.shape)), call.node.meta["val"])
