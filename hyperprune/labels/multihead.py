"""torch's own multi-head attention: its inner width must equal the width of the stream it reads and writes.

So position j of query, key, value and of the output projection's input goes with channel j of the stream, and the
rules for attention tie what lies inside one head: whole heads go, each with as many channels of the stream.
"""

from __future__ import annotations

from hyperprune.labels.call import Call
from hyperprune.labels.ledger import Ledger, Tie
from hyperprune.labels.reasons import SAME_WIDTH
from hyperprune.trace import Origin, Trace, origin, owner, owner_class

MULTIHEAD = "MultiheadAttention"


def is_packed_projection(call: Call) -> bool:
    """Say whether a call of torch's attention takes the joint projection apart into query, key and value."""
    return owner_class(call.node) == MULTIHEAD and call.operator == "aten::unflatten"


def couple_widths(ledger: Ledger, traces: tuple[Trace, ...]) -> None:
    """Tie the inner width of every ``nn.MultiheadAttention`` to its stream, position by position."""
    for path, where in _multiheads(traces).items():
        axes = {key: ledger.axes.get((f"{path}.{key[0]}", key[1])) for key in _INNER}
        streams = [labels for labels in axes.values() if labels is not None]
        for labels in streams:
            for part in labels.reshape(-1, len(streams[0])):
                ledger.ties.append(Tie(streams[0], part, where, SAME_WIDTH))


_INNER = (
    ("out_proj.weight", 0),
    ("out_proj.weight", 1),
    ("in_proj_weight", 1),
    ("in_proj_weight", 0),
    ("q_proj_weight", 1),
    ("q_proj_weight", 0),
    ("k_proj_weight", 0),
    ("v_proj_weight", 0),
)


def _multiheads(traces: tuple[Trace, ...]) -> dict[str, Origin]:
    """Return the path of every such module, with one of its calls."""
    found: dict[str, Origin] = {}
    for trace in traces:
        for node in trace.graph.nodes:
            if owner_class(node) == MULTIHEAD:
                found.setdefault(owner(node), origin(node))
    return found
