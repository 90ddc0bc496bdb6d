"""From a network to an ONNX graph: ``torch.export``, then torch's translation to ONNX's operators."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from hyperprune.errors import OnnxError
from hyperprune.onnx_export.axes import Axes
from hyperprune.trace import ExampleInputs, drop_caches_, plain_outputs, random_state_kept, without_dataclasses
from hyperprune.verify import eval_mode, full_precision

OPSET = 18  # torch's translations are written in it, so nothing is converted; ONNX Runtime reads it since 1.14
_SOURCES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def onnx_graph(network: nn.Module, inputs: ExampleInputs, axes: list[Axes], example_output: Any, opset: int) -> Any:
    """Return the network in eval mode as torch's ``ONNXProgram``, not written yet.

    Raises:
        OnnxError: it cannot be exported, or not with these axes free.
    """
    with _quiet(), random_state_kept(network):
        program = _traced(network, inputs, axes)
        translated = _translated(program, axes, output_names(without_dataclasses(example_output)), opset)
    if (found := translated.model.opset_imports.get("")) != opset:
        raise OnnxError(f"opset {opset} was asked for, but torch.onnx wrote {found}. Ask for opset={OPSET}.")
    _name_apart_(translated.model.graph)
    _forget_sources_(translated.model)
    return translated


def output_names(output: Any) -> list[str]:
    """Name the tensors of an output by where they stand in it.

    Example:
        >>> output_names({"out": torch.zeros(1), "aux": [torch.zeros(1), torch.zeros(1)]})
        ['out', 'aux_0', 'aux_1']
    """
    leaves = pytree.tree_flatten_with_path(output)[0]
    named = [_name(path) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    found: list[str] = []
    for name in named:
        free = name if name and not name[0].isdigit() else f"output_{name}".rstrip("_")
        while free in found:
            free += "_out"
        found.append(free)
    return found


def _name(path: tuple[Any, ...]) -> str:
    keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))) for key in path)
    return "_".join(str(key) for key in keys)


def _traced(network: nn.Module, inputs: ExampleInputs, axes: list[Axes]) -> ExportedProgram:
    drop_caches_(network)
    with eval_mode(network), full_precision(), plain_outputs(network):
        try:
            return _program(network, inputs, axes)
        except Exception as error:  # torch.export raises many types
            raise OnnxError(_refusal(network, inputs, axes, error)) from error


def _program(network: nn.Module, inputs: ExampleInputs, axes: list[Axes]) -> ExportedProgram:
    free = ShapesCollection()
    for tensor, names in zip(inputs.tensors(), axes, strict=True):
        if names:
            free[tensor] = dict.fromkeys(names, Dim.DYNAMIC)
    args, kwargs = inputs.args, dict(inputs.kwargs)
    shapes = free.dynamic_shapes(network, args, kwargs) if any(axes) else None
    return torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=False)


def _refusal(network: nn.Module, inputs: ExampleInputs, axes: list[Axes], error: Exception) -> str:
    """Say whether the network cannot be exported at all, or only not with these axes free."""
    name, reason = type(network).__name__, str(error).strip().split("\n\n")[0]
    free = sorted({axis for names in axes for axis in names.values()})
    if not free or not _exports_with_fixed_axes(network, inputs, len(axes)):
        return f"torch.export cannot export {name}: {reason}"
    remedy = "dynamic_batch=False" if free == ["batch"] else "dynamic_size=False (and dynamic_batch=False, if need be)"
    return (
        f"{name} can be exported with fixed sizes only: something in its forward() fixes one of: {', '.join(free)}. "
        f"Say {remedy} and pass example inputs of the size to be used. torch.export says: {reason}"
    )


def _exports_with_fixed_axes(network: nn.Module, inputs: ExampleInputs, tensors: int) -> bool:
    try:
        _program(network, inputs.map(torch.clone), [{}] * tensors)  # the export before left marks on the tensors
    except Exception:
        return False
    return True


def _translated(program: ExportedProgram, axes: list[Axes], names: list[str], opset: int) -> Any:
    try:
        return torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            output_names=names,
            dynamic_shapes=tuple(axes) if any(axes) else None,  # only names here: the program has its shapes
        )
    except Exception as error:  # torch.onnx raises many types
        reason = next((str(e) for e in (error.__cause__, error) if e), "").strip().split("\n\n")[0]
        raise OnnxError(f"torch.onnx cannot translate the network to ONNX: {reason}") from error


def _name_apart_(graph: Any) -> None:
    """Let no output bear the name of a parameter, an input, or another value."""
    made = [value.name for node in graph.all_nodes() for value in node.outputs]
    taken = Counter([*made, *graph.initializers, *(value.name for value in graph.inputs)])
    for output in graph.outputs:
        while taken[output.name] > 1:
            taken[output.name] -= 1
            output.name += "_out"
            taken[output.name] += 1


def _forget_sources_(model: Any) -> None:
    """Drop the lines of source that torch notes on every node: they hold paths of the user's machine."""
    for node in model.graph.all_nodes():
        for key in _SOURCES:
            node.metadata_props.pop(key, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and log lines of torch.onnx and onnxscript off the screen; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
