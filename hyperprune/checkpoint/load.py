"""``load_pruned``: a file and a dense network of the same class become the slim network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperprune.checkpoint.document import Document
from hyperprune.checkpoint.save import class_of
from hyperprune.checkpoint.sizes import other_sizes
from hyperprune.checkpoint.storage import read_slim
from hyperprune.checkpoint.weights import (
    derived_buffers,
    digest,
    tensors_by_name,
    ties_among,
    with_aliases,
    without_aliases,
)
from hyperprune.checks import require_plain
from hyperprune.copies import copied
from hyperprune.errors import CheckpointError, ModelError
from hyperprune.loading import load_model
from hyperprune.plan import plans_of
from hyperprune.slim import carve_
from hyperprune.tables import attributes_of, to_buffers_

SHOWN = 3


def load_pruned(model: nn.Module | str, path: str | Path, *, moved_from: str | None = None) -> nn.Module:
    """Return the slim network that a file holds, built from a dense one.

    The file is read and checked to the last byte first; then a copy of ``model`` is carved and filled. No code from
    the file runs. Weights and their dtypes are the file's; the device, the mode (train or eval), ``requires_grad``,
    the memory layout, hooks and buffers with ``persistent=False`` are those of ``model``.

    Args:
        model: a dense network from the constructor that the slim one came from, with any weights; it is not
            changed. Or a name: ``"timm/resnet50"``, ``"timm/resnet50,num_classes=5"``, ``"package.module:factory"``.
        path: what ``save_pruned`` wrote.
        moved_from: the former module and name of the class, if it has been moved or renamed since.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network; the message says which.
        ModelError: ``model`` is wrapped, hyperized, or slim already.

    Example:
        >>> slim = load_pruned("timm/resnet50", "slim.safetensors")  # doctest: +SKIP
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"load_pruned takes the dense model, then the file; the second is {type(path).__name__}.")
    document, stored = read_slim(path)
    slim = load_model(model).model if isinstance(model, str) else _copied(model)
    with _named(path):
        _check_class(slim, document.model, moved_from)
        _carve_(slim, document)
        _cast_(slim, document, stored)
        _check_fit(slim, document, stored)
        _fill_(slim, document, stored)
    return slim


def _copied(model: nn.Module) -> nn.Module:
    require_plain(model, "load_pruned")
    if any(plans_of(part) for part in model.modules()):
        raise ModelError(f"this {type(model).__name__} is slim already. Pass a dense one, fresh from its constructor.")
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise ModelError(f"this {type(model).__name__} lies on the meta device. Build it with real tensors.")
    try:
        return copied(model)
    except Exception as error:  # whatever the user's class raises
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). load_pruned fills a copy."
        ) from error


def _check_class(model: nn.Module, saved: str, moved_from: str | None) -> None:
    """Compare classes; one that was a script's own (``__main__``) may be a module's now, and the other way round."""
    given = class_of(model)
    if saved in (given, moved_from):
        return
    scripted = "__main__" in (given.split(".")[0], saved.split(".")[0])
    if scripted and given.rpartition(".")[2] == saved.rpartition(".")[2]:
        return
    raise CheckpointError(
        f"the file holds a {saved[:200]}, the model given is a {given}. Build the network by the constructor it came "
        f"from; if the class was moved or renamed, say so: load_pruned(model, path, moved_from={saved[:200]!r})."
    )


def _carve_(model: nn.Module, document: Document) -> None:
    to_buffers_(model, attributes_of(model, [cut.tensor for plan in document.plans for cut in plan.slices]))
    modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
    for plan in document.plans:
        names = {name for name, _ in _named_tensors(model)}
        strangers = [cut.tensor for cut in plan.slices if cut.tensor not in names]
        named = [*(resize.module for resize in plan.resizes), *(closing.module for closing in plan.closings)]
        strangers += [path for path in (*named, *document.sizes) if path not in modules]
        if strangers:
            raise CheckpointError(f"the plan is of another architecture: the model has no {strangers[0][:200]!r}.")
        carve_(model, plan)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _cast_(model: nn.Module, document: Document, stored: Mapping[str, Tensor]) -> None:
    """Give tensors of floating point the dtypes that the file has."""
    wanted = {name: str(tensor.dtype) for name, tensor in stored.items()} | dict(document.derived)
    known = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    for name, tensor in {**tensors_by_name(model), **derived_buffers(model)}.items():
        dtype = known.get(wanted.get(name, ""), tensor.dtype)
        if tensor.dtype != dtype and tensor.is_floating_point() and dtype.is_floating_point:
            tensor.data = tensor.data.to(dtype)


def _check_fit(model: nn.Module, document: Document, stored: Mapping[str, Tensor]) -> None:
    """Make sure that the carved model has the file's tensors, the file's ties between them, and its sizes."""
    tensors = tensors_by_name(model)
    problems = _misfits(tensors, with_aliases(stored, document.tied)) + other_sizes(model, document.sizes)
    if not problems and ties_among(tensors) != document.tied:
        problems = ["the file and the model tie different tensors to each other"]
    if problems:
        shown = problems[:SHOWN] + [f"and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN)
        raise CheckpointError(
            f"the file does not fit this {type(model).__name__}:\n  " + "\n  ".join(shown) + "\nBuild the model with "
            "the arguments it was built with when it was pruned, such as num_classes (in a name: "
            "timm/resnet50,num_classes=5)."
        )


def _misfits(needed: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, too many, or of another shape or dtype."""
    both = [name for name in needed if name in given]
    lines = [
        f"{name}: the file has {_looks(given[name])}, the model needs {_looks(needed[name])}"
        for name in both
        if _looks(given[name]) != _looks(needed[name])
    ]
    lines += [f"{name}: not in the file" for name in needed if name not in given]
    return lines + [f"{name[:200]}: in the file, not in the model" for name in given if name not in needed]


def _looks(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@torch.no_grad()
def _fill_(model: nn.Module, document: Document, stored: Mapping[str, Tensor]) -> None:
    """Copy the weights in, and make sure that they have arrived as they are."""
    state = model.state_dict()  # it carries the versions of its modules, which some ask for
    state.update(with_aliases(stored, document.tied))
    model.load_state_dict(state, strict=True)
    arrived = without_aliases(tensors_by_name(model), document.tied)
    if digest("", arrived) != digest("", stored):
        raise CheckpointError(f"{type(model).__name__}.load_state_dict changed the weights it was given.")


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Let every error name the file."""
    try:
        yield
    except CheckpointError as error:
        error.args = (f"{path}: {error}",)
        raise
    except Exception as error:  # a plan may be well-formed and still make layers of the user's own fail
        raise CheckpointError(f"{path}: {error}") from error
