"""``export_onnx``: a network as one ONNX file that has been checked, run in ONNX Runtime and compared."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperprune.arguments import is_positive
from hyperprune.checks import require_plain
from hyperprune.copies import copied
from hyperprune.errors import InputsError, ModelError, OnnxError, ProofError
from hyperprune.files import draft_of
from hyperprune.onnx_export.axes import free_axes, in_order, trials, widened
from hyperprune.onnx_export.graph import OPSET, onnx_graph
from hyperprune.onnx_export.notes import notes_on
from hyperprune.onnx_export.proof import OnnxProof, OnnxRun, Shape, written
from hyperprune.onnx_export.session import OnnxSession, onnx_library
from hyperprune.trace import ExampleInputs, drop_caches_
from hyperprune.verify import compare, run_eval

LARGEST_FILE = 2**31 - 2**24  # protobuf's limit of 2 GB, less room for the graph


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int = OPSET,
    tolerance: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxProof:
    """Write a network, as it computes in eval mode, as one ONNX file.

    Before the file takes its place, onnx's checker has accepted it and ONNX Runtime has run it on the CPU: on the
    example inputs, at another batch size, and at another image size if that is free. On any failure nothing is
    written, and what stood at ``path`` stays. The model and the global random state are not touched.

    Args:
        model: what ``export_pruned`` returned, or any plain network, on any device.
        example_inputs: as for ``hyperize``. Tensors whose axis 0 is as long as the first tensor's share the batch.
        path: the file; folders are made.
        dynamic_batch: let the batch take any size. A network that fixes its batch is refused, never fixed silently.
        dynamic_size: let the axes from 2 on (height and width of an image) take any size too.
        opset: version of ONNX's operators, 18 or newer.
        tolerance: bound on the relative error; by default 1e-4 for float32.
        metadata: notes of your own for the file's ``metadata_props``, where hyperprune writes its version, MACs,
            parameters, widths, and a digest of the width plans.

    Returns:
        What was written, and how far ONNX Runtime was from PyTorch.

    Raises:
        ModelError: a hyperized or wrapped network, or no module at all.
        InputsError: the inputs are of the wrong type, the network fails on them, or there is no axis to free.
        OnnxError: the network cannot be exported, an axis cannot be free, the file would be above 2 GB, or ONNX
            Runtime computes something else.
        FileError: the file cannot be written.
        MissingLibraryError: onnx, onnxruntime or onnxscript is not installed.

    Example:
        >>> slim = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> proof = export_onnx(slim, torch.randn(1, 4), getfixture("tmp_path") / "slim.onnx")
        >>> proof.inputs, proof.outputs
        ({'input': ('batch', 4)}, {'output': ('batch', 3)})
        >>> proof.relative_error < 1e-4
        True
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        onnx_library(library)
    require_plain(model, "export_onnx")
    _check_tensors([*chain(model.parameters(), model.buffers())])
    _check_opset(opset)
    if tolerance is not None and not is_positive(tolerance):
        raise OnnxError(f"tolerance must be a number above 0, such as 1e-4, not {tolerance!r}.")
    network = _copy_on_cpu(model)
    inputs = in_order(ExampleInputs.of(example_inputs).map(lambda tensor: tensor.detach().cpu()), network)
    axes = free_axes(inputs, dynamic_batch, dynamic_size)
    with draft_of(path) as draft:  # from here on, so that a bad path is no surprise at the end
        expected = [(trial, _reference(network, trial)) for trial in trials(inputs, dynamic_batch, dynamic_size)]
        notes = notes_on(network, inputs, metadata or {})
        program = onnx_graph(network, widened(inputs) if dynamic_batch else inputs, axes, expected[0][1], opset)
        program.model.metadata_props.update(notes)
        _write(program, draft)
        session = OnnxSession(draft)
        runs = tuple(_run(session, trial, reference, tolerance) for trial, reference in expected)
        size = draft.stat().st_size
    graph = program.model.graph
    return OnnxProof(Path(path), size, opset, _shapes(graph.inputs), _shapes(graph.outputs), runs, notes)


def _check_tensors(tensors: list[torch.Tensor]) -> None:
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors):
        raise ModelError("ONNX Runtime has no bfloat16 on the CPU, so nothing could be compared. Pass model.float().")
    if (size := sum(tensor.nbytes for tensor in tensors)) > LARGEST_FILE:
        raise OnnxError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB at most. Pass model.half(), or call "
            "torch.onnx.export(..., dynamo=True, external_data=True), which writes the weights beside the file."
        )


def _check_opset(opset: int) -> None:
    newest = onnx_library("onnx").defs.onnx_opset_version()
    if type(opset) is not int or not OPSET <= opset <= newest:
        raise OnnxError(f"opset {opset!r} cannot be written; {OPSET} to {newest} can, and {OPSET} is read most widely.")


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    try:
        network = copied(model).cpu()
    except Exception as error:  # whatever the user's class raises
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); a copy is what is exported."
        ) from error
    drop_caches_(network)
    return network.requires_grad_(False)


def _reference(network: nn.Module, inputs: ExampleInputs) -> Any:
    try:
        return run_eval(network, inputs)
    except Exception as error:  # whatever the user's forward raises
        shapes = written(_shapes_of(inputs))
        raise InputsError(
            f"{type(network).__name__} fails on inputs of {shapes}: {type(error).__name__}: {error}\n"
            "Pass inputs of the network's own type. If its batch or image size must stay as it is, say "
            "dynamic_batch=False or dynamic_size=False."
        ) from error


def _write(program: Any, draft: Path) -> None:
    try:
        program.save(draft, external_data=False)
        onnx_library("onnx").checker.check_model(draft, full_check=True)
    except OSError:
        raise  # a full disk: the draft's own matter
    except Exception as error:  # protobuf and onnx raise many types
        raise OnnxError(f"the graph makes no valid ONNX file: {type(error).__name__}: {error}") from error


def _run(session: OnnxSession, inputs: ExampleInputs, reference: Any, tolerance: float | None) -> OnnxRun:
    try:
        proof = compare(reference, session.outputs(inputs.tensors()), tolerance)
    except ProofError as error:
        raise OnnxError(f"ONNX Runtime's outputs do not look like PyTorch's: {error}") from error
    if not proof.holds:
        raise OnnxError(
            f"ONNX Runtime computes something else on inputs of {written(_shapes_of(inputs))}: {proof}. Nothing was "
            "written. If this is rounding, pass a larger tolerance; else the exporter translates some operation "
            "wrongly."
        )
    return OnnxRun(_shapes_of(inputs), proof)


def _shapes_of(inputs: ExampleInputs) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in inputs.tensors())


def _shapes(values: Any) -> dict[str, Shape]:
    """Return the shapes of a graph's values by name; an axis of any size is its name."""
    return {
        value.name: tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
        for value in values
    }
