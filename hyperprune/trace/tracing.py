"""One run of the model as a torch.fx graph of ATen calls, with every tensor's name and every call's origin.

The graph is analysed and never executed: the user's own class keeps running. ``torch.export`` (non-strict)
follows the path the example inputs take, so Python control flow is no obstacle.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from traceback import extract_tb

import torch
import torch.fx
from torch import nn

from hyperprune.copies import copied
from hyperprune.errors import InputsError, TraceError
from hyperprune.trace.constants import constants_known
from hyperprune.trace.inputs import ExampleInputs
from hyperprune.trace.origins import plain_name, users_line
from hyperprune.trace.outputs import plain_outputs
from hyperprune.trace.settling import settled
from hyperprune.trace.states import drop_caches_, is_of_libraries, random_state_kept

_BRANCHES = (
    "The forward pass probably branches on the values of its input. Pass example inputs that take the branch you "
    "train, or hyperize the submodule (the backbone) that has no such branch."
)
_CAUSAL = (
    "torch's own transformer looks at the mask to find out whether it is causal. Say so in forward(): tgt_is_causal= "
    "beside tgt_mask=, is_causal= beside an encoder's mask=."
)
_UNKNOWN = (
    "Let forward() return tensors, or lists, dicts and dataclasses of them. Hugging Face's models make a cache: say "
    "model.config.use_cache = False, or use_cache=False among the example inputs."
)
_ASSIGNED = (
    "This version of torch.export lets no forward() keep tensors as attributes (self.feature = x). Newer ones do: "
    "upgrade torch (2.15 does), or return such tensors instead."
)
_MARKS = {"not a known type": _UNKNOWN, "assigned during export": _ASSIGNED}


@dataclass(frozen=True)
class Trace:
    """A graph and what its placeholders are called in the model.

    Attributes:
        graph: ATen calls in the order in which they ran; shapes are in ``node.meta["val"]``.
        parameters: placeholder name -> parameter name in the model.
        buffers: placeholder name -> buffer name in the model.
        training: whether the model was in train mode.
    """

    graph: torch.fx.Graph
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    training: bool

    def used(self) -> set[str]:
        """Return the names of the parameters and buffers that some call reads."""
        names = {**self.parameters, **self.buffers}
        return {
            names[node.name]
            for node in self.graph.nodes
            if node.op == "placeholder" and node.name in names and node.users
        }


def trace(model: nn.Module, inputs: ExampleInputs) -> tuple[Trace, ...]:
    """Trace ``model`` in eval mode, and in train mode too where that reaches layers that eval does not.

    The auxiliary heads of GoogLeNet and Inception run only in train mode, and so do averages kept in buffers; a slim
    model must still fit them. What is followed are copies, and code of the user's only after one run with real numbers:
    tensors without data, which torch.export sends through forward(), would stay in the caches that it keeps. The copies
    share the parameters of ``model``, so a forward pass that edits its own edits these.

    Raises:
        InputsError: the model itself fails on these inputs.
        TraceError: the model runs but cannot be exported; the message holds the line that stopped it.
    """
    with random_state_kept(model), _quiet():
        traces = [_followed(model, inputs, training=False)]
        unused = _with_channels(model) - traces[0].used()
        if unused:
            traces += _train_trace(model, inputs, unused)
    return tuple(traces)


def _with_channels(model: nn.Module) -> set[str]:
    """Return the names of the parameters, and of the buffers that may have channels: a counter has none."""
    buffers = {name for name, buffer in model.named_buffers() if buffer.ndim and buffer.is_floating_point()}
    return buffers | {name for name, _ in model.named_parameters()}


def _train_trace(model: nn.Module, inputs: ExampleInputs, unused: set[str]) -> list[Trace]:
    """Trace train mode if that reaches an unused tensor."""
    for attempt in (inputs, inputs.doubled()):
        try:
            found = _followed(model, attempt, training=True)
        except (TraceError, InputsError):
            continue
        return [found] if found.used() & unused else []
    return []


def _followed(model: nn.Module, inputs: ExampleInputs, *, training: bool) -> Trace:
    """Return the trace of a copy: what torch.export leaves in it goes with it.

    Raises:
        InputsError: the model fails on these inputs.
        TraceError: it runs, but cannot be exported.
    """
    try:
        found = _export(_copy(model, training) if is_of_libraries(model) else _warmed(model, inputs, training), inputs)
    except TraceError:
        return _with_constants(model, inputs, training)
    if any(plain_name(node) == "item" for node in found.graph.nodes):
        with suppress(TraceError):
            return _with_constants(model, inputs, training)
    return found


def _with_constants(model: nn.Module, inputs: ExampleInputs, training: bool) -> Trace:
    """Return the trace of a copy that knows what its constants are, after a run: the inputs may be to blame."""
    copy = _warmed(model, inputs, training)
    with constants_known():
        return _export(copy, inputs)


def _copy(model: nn.Module, training: bool) -> nn.Module:
    return copied(model, shared=model.parameters()).train(training)


def _warmed(model: nn.Module, inputs: ExampleInputs, training: bool) -> nn.Module:
    """Return a copy after a run with real numbers.

    Raises:
        InputsError: the model fails on these inputs.
    """
    copy = _copy(model, training)
    try:
        with torch.no_grad():
            inputs.copied().call(copy)
    except Exception as error:  # whatever the user's forward raises
        raise inputs.refused(model, error) from error
    drop_caches_(copy)
    return copy


def _export(model: nn.Module, inputs: ExampleInputs) -> Trace:
    try:
        program = _program(model, inputs)
    except Exception as error:  # torch.export raises many types; the model itself has run
        raise TraceError(_cannot_export(model, error)) from error
    signature = program.graph_signature
    parameters, buffers = dict(signature.inputs_to_parameters), dict(signature.inputs_to_buffers)
    return Trace(settled(program.graph, model), parameters, buffers, model.training)


def _program(model: nn.Module, inputs: ExampleInputs) -> torch.export.ExportedProgram:
    with plain_outputs(model), redirect_stderr(StringIO()) as said:  # torch prints the whole graph where a trace fails
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
    sys.stderr.write(said.getvalue())
    return program


def _cannot_export(model: nn.Module, error: Exception) -> str:
    text = str(error)
    line = users_line(text)
    where = f" at {line}" if line else ""
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    looks = any(frame.name == "_detect_is_causal_mask" for frame in extract_tb(error.__traceback__))
    known = (advice for mark, advice in _MARKS.items() if mark in first)
    advice = next(known, _CAUSAL if looks else _BRANCHES)
    return f"torch.export cannot trace {type(model).__name__}{where}: {first}\n{advice}"


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
