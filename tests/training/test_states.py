"""States of training on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperprune import HyperpruneError
from hyperprune.training.states import load_state, save_state


def test_an_optimiser_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    sum((w**2).sum() for w in weights).backward()
    optimizer.step()
    save_state(tmp_path / "s.safetensors", optimizer.state_dict())
    back = load_state(tmp_path / "s.safetensors")
    assert back["param_groups"] == optimizer.state_dict()["param_groups"]
    for at, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(back["state"][at][name], value) for name, value in values.items())


def test_trees_keep_their_types_and_shared_memory_is_no_obstacle(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tree: dict[Any, Any] = {0: (1, 2.5, None), "a": [True, "text", {}], "t": shared, "u": shared.T, "none": []}
    save_state(tmp_path / "s.safetensors", tree)
    back = load_state(tmp_path / "s.safetensors")
    assert torch.equal(back.pop("t"), shared)
    assert torch.equal(back.pop("u"), shared.T)
    assert back == {0: (1, 2.5, None), "a": [True, "text", {}], "none": []}
    assert isinstance(back[0], tuple)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None], ids=["empty", "foreign", "cut"])
def test_a_damaged_state_is_an_error_that_says_what_to_do(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, {"t": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(HyperpruneError, match="Delete it"):
        load_state(path)


def test_weights_without_a_tree_are_foreign(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"t": torch.zeros(2)}, tmp_path / "s.safetensors")
    with pytest.raises(HyperpruneError, match="cannot be read"):
        load_state(tmp_path / "s.safetensors")
