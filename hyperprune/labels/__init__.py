"""Labels: names of channels that flow with the values of a traced graph.

``flow`` reads the graph into a ``Ledger`` of ties and freezes; ``rule`` adds the meaning of an operation.
"""

from hyperprune.labels.call import Call
from hyperprune.labels.flow import flow, operator_name
from hyperprune.labels.ledger import Attention, Ledger, NormKind, SizedCall, TensorRef
from hyperprune.labels.lookahead import convolutions_in_wide_groups, norms_in_groups
from hyperprune.labels.registry import registered, rule, unregister

__all__ = [
    "Attention",
    "Call",
    "Ledger",
    "NormKind",
    "SizedCall",
    "TensorRef",
    "convolutions_in_wide_groups",
    "flow",
    "norms_in_groups",
    "operator_name",
    "registered",
    "rule",
    "unregister",
]
