"""``save_program``: a network as a ``.pt2`` file, which plain torch loads without hyperprune or the user's class."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from hyperprune.batches import batch_of, has_batch, with_batch
from hyperprune.checks import require_plain
from hyperprune.errors import InputsError, ProofError, TraceError
from hyperprune.files import draft_of
from hyperprune.trace import ExampleInputs, drop_caches_, plain_outputs
from hyperprune.verify import Proof, compare, eval_mode, full_precision, run_eval


def save_program(slim: nn.Module, example_inputs: Any, path: str | Path, *, dynamic_batch: bool = True) -> Proof:
    """Save what a network computes in eval mode, weights included, by ``torch.export.save``.

    ``torch.export.load(path).module()(x)`` runs it wherever torch is installed. Before the file takes its place it
    has been loaded again and run beside the network, with a dynamic batch at two batch sizes.

    Outputs in a dataclass come out as a dict. The format is torch's own: torch may unpickle parts of such a file, so
    load only those of people you trust.

    Args:
        slim: what ``export_pruned`` returned, or any plain network.
        example_inputs: as for ``hyperize``.
        path: a file that ends in ``.pt2``; it is written whole or not at all.
        dynamic_batch: let the first axis of the inputs take any size; else it is fixed to that of the example.

    Raises:
        ModelError: the network is hyperized still.
        InputsError: the inputs are of the wrong type, the network fails on them, they have no batch, or ``path`` has
            another suffix.
        TraceError: the network cannot be exported, for instance not with a batch of any size.
        ProofError: the file computes something else.
        FileError: the file cannot be written; what stood there before is intact.

    Example:
        >>> path, x = getfixture("tmp_path") / "slim.pt2", torch.randn(2, 4)
        >>> slim = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> save_program(slim, x, path).holds
        True
        >>> torch.equal(torch.export.load(path).module()(x), slim(x))
        True
    """
    _check(slim, path)
    inputs = ExampleInputs.of(example_inputs)
    batches = [inputs, with_batch(inputs, 2 * batch_of(inputs))] if dynamic_batch else [inputs]  # 1 is a constant
    references = [(batch, _run(slim, batch)) for batch in batches]
    program = _export(slim, batches[-1], dynamic_batch)
    content = io.BytesIO()  # on a full disk torch's own file writer ends the process
    torch.export.save(program, content)
    with draft_of(path) as draft:
        draft.write_bytes(content.getbuffer())
        proofs = [_prove(draft, batch, expected) for batch, expected in references]
    return max(proofs, key=lambda proof: proof.relative_error)


def _check(slim: object, path: str | Path) -> None:
    require_plain(slim, "save_program")
    if Path(path).suffix != ".pt2":
        raise InputsError(f"{path}: torch wants the suffix .pt2, such as {Path(path).with_suffix('.pt2')}.")


def _run(slim: nn.Module, inputs: ExampleInputs) -> Any:
    try:
        return run_eval(slim, inputs)
    except Exception as error:  # whatever the user's forward raises
        shapes = [f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in inputs.tensors()]
        raise InputsError(f"{type(slim).__name__} fails on inputs {shapes}: {type(error).__name__}: {error}") from error


def _export(slim: nn.Module, inputs: ExampleInputs, dynamic_batch: bool) -> ExportedProgram:
    drop_caches_(slim)
    try:
        with eval_mode(slim), full_precision(), plain_outputs(slim), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = _shapes(slim, inputs) if dynamic_batch else None
            return torch.export.export(slim, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many types
        hint = " If its batch must stay as it is, say dynamic_batch=False." if dynamic_batch else ""
        raise TraceError(f"torch.export cannot export {type(slim).__name__}: {error}{hint}") from error
    finally:
        drop_caches_(slim)


def _shapes(slim: nn.Module, inputs: ExampleInputs) -> Any:
    free, batch = ShapesCollection(), batch_of(inputs)
    for tensor in inputs.tensors():
        if has_batch(tensor, batch):
            free[tensor] = {0: Dim.DYNAMIC}
    return free.dynamic_shapes(slim, inputs.args, dict(inputs.kwargs))


@torch.no_grad()
def _prove(draft: Path, inputs: ExampleInputs, expected: Any) -> Proof:
    try:
        with full_precision():
            proof = compare(expected, inputs.copied().call(torch.export.load(draft).module()))
    except Exception as error:  # whatever torch raises while it loads or runs the file
        raise ProofError(f"the exported program does not run: {type(error).__name__}: {error}") from error
    if not proof.holds:
        raise ProofError(f"the exported program computes something else: {proof}. Nothing was saved.")
    return proof
