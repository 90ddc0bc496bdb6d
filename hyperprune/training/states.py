"""Training states on disk: any tree of dicts, lists, plain values and tensors, as safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from hyperprune.errors import TrainingError
from hyperprune.files import write_whole

TREE = "tree"


def save_state(path: Path, tree: Any) -> None:
    """Write a tree whole or not at all.

    Example:
        >>> import torch
        >>> path = getfixture("tmp_path") / "state.safetensors"
        >>> save_state(path, {"step": 3, "rates": [0.1], 0: torch.ones(2)})
        >>> load_state(path)
        {'step': 3, 'rates': [0.1], 0: tensor([1., 1.])}
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(tree, tensors))
    write_whole(path, save(tensors, {TREE: text}))


def load_state(path: Path) -> Any:
    """Read what ``save_state`` wrote.

    Raises:
        TrainingError: the file is damaged or foreign.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _unpacked(json.loads((file.metadata() or {})[TREE]), file)
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
        raise TrainingError(
            f"the state in {path} cannot be read ({error}). Delete it to repeat this phase of the run from its start."
        ) from error


def _packed(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, _packed(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [_packed(value, tensors) for value in tree]}
    return tree


def _unpacked(tree: Any, file: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {key: _unpacked(value, file) for key, value in content}
    values = [_unpacked(value, file) for value in content]
    return tuple(values) if kind == "tuple" else values
