"""Tracing: one run of the model as a graph of calls, each with the module and the line that made it."""

from hyperprune.trace.inputs import ExampleInputs
from hyperprune.trace.origins import NOWHERE, Origin, failing_lines, gathered, origin, owner, owner_class, plain_name
from hyperprune.trace.outputs import plain_outputs, without_dataclasses
from hyperprune.trace.states import drop_caches_, is_of_libraries, modes_kept, random_state_kept
from hyperprune.trace.tracing import Trace, trace

__all__ = [
    "NOWHERE",
    "ExampleInputs",
    "Origin",
    "Trace",
    "drop_caches_",
    "failing_lines",
    "gathered",
    "is_of_libraries",
    "modes_kept",
    "origin",
    "owner",
    "owner_class",
    "plain_name",
    "plain_outputs",
    "random_state_kept",
    "trace",
    "without_dataclasses",
]
