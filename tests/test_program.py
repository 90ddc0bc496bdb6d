"""Programs for plain torch: what is saved computes what the network computes, at any batch size."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, hyperize, prune
from hyperprune import program as programs
from hyperprune.errors import FileError, InputsError, ModelError, ProofError, TraceError
from hyperprune.program import save_program
from tests.fresh import exit_code_of
from tests.models import Net, assert_same, residual, small, snapshot

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["residual", "grouped", "one_dimensional"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_computes_the_same_at_any_batch_size(name: str, batch: int, tmp_path: Path) -> None:
    model, x = small(name)
    slim = prune(model, x, Budget(macs=0.5)).train()
    before = snapshot(slim)
    assert save_program(slim, x[:batch], tmp_path / "slim.pt2").relative_error == 0
    assert_same(before, snapshot(slim))
    module = torch.export.load(tmp_path / "slim.pt2").module()
    slim.eval()
    for size in (1, 2, 7):
        inputs = torch.randn(size, *x.shape[1:])
        assert torch.equal(module(inputs), slim(inputs))


class Scaled(nn.Module):
    """Its arguments have names: torch 2.8 cannot give a free batch to what arrives as ``**kwargs``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"y": self.a(x) * scale}


def test_keyword_arguments_and_inputs_without_a_batch(tmp_path: Path) -> None:
    model = Scaled()
    inputs = {"x": torch.randn(5, 4), "scale": torch.randn(3)}
    save_program(model, inputs, tmp_path / "a.pt2")
    found = torch.export.load(tmp_path / "a.pt2").module()(x=inputs["x"][:2], scale=inputs["scale"])
    assert torch.equal(found["y"], model(**inputs)["y"][:2])


def folded(net: Any, x: Tensor) -> Tensor:
    """Fold the batch into the channels, for batches of two only."""
    return net.a(x.reshape(2, -1))


def test_a_batch_that_must_stay_needs_to_be_said(tmp_path: Path) -> None:
    model, path = Net({"a": nn.Linear(12, 3)}, folded), tmp_path / "a.pt2"
    x = torch.randn(2, 12)
    with pytest.raises((InputsError, TraceError)):
        save_program(model, x, path)
    assert not path.exists()
    save_program(model, x, path, dynamic_batch=False)
    assert torch.equal(torch.export.load(path).module()(x), model(x))


class Counted(nn.Module):
    """Runs, but torch.export cannot say which way its branch goes."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("made", "inputs", "name", "error", "message"),
    [
        (lambda: hyperize(residual(), X), X, "a.pt2", ModelError, "export_pruned"),
        (lambda: "model", X, "a.pt2", ModelError, "not str"),
        (residual, X, "a.pt", InputsError, r"a\.pt2"),
        (residual, X[:, :2], "a.pt2", InputsError, "fails on inputs"),
        (residual, X[:0], "a.pt2", InputsError, "no row"),
        (Counted, X, "a.pt2", TraceError, "dynamic_batch=False"),
        (residual, X, "folder.pt2", FileError, "is a folder"),
    ],
)
def test_what_cannot_be_saved(
    made: Callable[[], Any], inputs: Any, name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(error, match=message):
        save_program(made(), inputs, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")
    export = torch.export.export
    monkeypatch.setattr(programs.torch.export, "export", lambda model, *args, **kwargs: export(other, *args, **kwargs))
    other = nn.Linear(4, 3)
    with pytest.raises(ProofError, match="something else"):
        save_program(nn.Linear(4, 3), torch.randn(2, 4), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def save_on_a_full_disk(path: Path) -> None:
    """Save where the kernel refuses to let files grow (on a full disk torch's own writer would end the process)."""
    slim = nn.Linear(40, 30)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    with pytest.raises(FileError, match="was not written"):
        save_program(slim, torch.randn(2, 40), path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")
    assert exit_code_of(save_on_a_full_disk, path) == 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@dataclass
class Pair:
    first: Tensor
    second: Tensor


def test_a_dataclass_comes_out_as_a_dict(tmp_path: Path) -> None:
    model = Net({"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}, lambda net, x: Pair(net.b(net.a(x)), net.a(x).sum(1)))
    x = torch.randn(2, 4)
    save_program(model, x, tmp_path / "pair.pt2")
    found = torch.export.load(tmp_path / "pair.pt2").module()(x)
    assert torch.equal(found["first"], model(x).first)
    assert torch.equal(found["second"], model(x).second)
