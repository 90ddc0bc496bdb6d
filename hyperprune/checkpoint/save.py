"""``save_pruned``: a slim network becomes one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.nn.utils import parametrize

from hyperprune.checkpoint import fields
from hyperprune.checkpoint.document import Document
from hyperprune.checkpoint.sizes import repaired_sizes
from hyperprune.checkpoint.storage import write_slim
from hyperprune.checkpoint.weights import derived_buffers, tensors_by_name, ties_among, without_aliases
from hyperprune.checks import require_plain
from hyperprune.plan import WidthPlan, plans_of


def save_pruned(slim: nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Save a slim network to a safetensors file, and return its path.

    The file holds the weights and how to carve a dense network of the same class down to them. There is no pickle
    in it, and any safetensors reader can show its tensors. Buffers with ``persistent=False`` are not kept, as in a
    ``state_dict``: the class makes them anew. A dense network, or one pruned several times, can be saved as well.

    Args:
        slim: what ``export_pruned`` returned, fine-tuned or not; also a network that holds it as a part.
        path: the file; it is written whole or not at all.
        metadata: anything worth keeping, strings by name; ``read_document(path).metadata`` returns it.

    Raises:
        ModelError: the network is hyperized still, or wrapped.
        CheckpointError: its state holds something else than tensors, or ``metadata`` something else than strings.
        FileError: the file cannot be written; what stood there before is intact.

    Example:
        >>> import torch
        >>> from hyperprune import Budget, load_pruned, prune
        >>> folder = getfixture("tmp_path")
        >>> dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> path = save_pruned(prune(dense, torch.randn(1, 4), Budget(macs=0.5)), folder / "slim.safetensors")
        >>> load_pruned(dense, path)[0].out_features
        4
    """
    require_plain(slim, "save_pruned")
    tensors = tensors_by_name(slim)
    ties = ties_among(tensors)
    derived = {name: str(buffer.dtype) for name, buffer in derived_buffers(slim).items()}
    notes = fields.texts({} if metadata is None else metadata, "metadata")
    plans = tuple(_plans(slim))
    document = Document(class_of(slim), plans, repaired_sizes(slim, plans), ties, derived, notes)
    return write_slim(path, document, without_aliases(tensors, ties))


def class_of(model: nn.Module) -> str:
    """Return the module and the name of a network's class.

    Example:
        >>> class_of(nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    kind = parametrize.type_before_parametrizations(model)
    return f"{kind.__module__}.{kind.__qualname__}"


def _plans(model: nn.Module) -> Iterator[WidthPlan]:
    """List the plans of a network and of its parts, in the network's own names, those of the parts first."""
    paths = [path for path, part in model.named_modules() if plans_of(part)]
    for path in sorted(paths, key=lambda path: -len(path)):
        for plan in plans_of(model.get_submodule(path)):
            yield _within(path, plan)


def _within(path: str, plan: WidthPlan) -> WidthPlan:
    """Return the plan of a part in the names of the whole."""
    if not path:
        return plan
    return WidthPlan(
        tuple(replace(cut, tensor=f"{path}.{cut.tensor}") for cut in plan.slices),
        tuple(replace(size, module=f"{path}.{size.module}".rstrip(".")) for size in plan.resizes),
        tuple(replace(rescale, tensor=f"{path}.{rescale.tensor}") for rescale in plan.rescales),
        tuple(replace(closing, module=f"{path}.{closing.module}") for closing in plan.closings),
        tuple(replace(spared, module=f"{path}.{spared.module}".rstrip(".")) for spared in plan.spared),
    )
