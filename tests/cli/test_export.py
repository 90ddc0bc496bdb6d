"""``hyperprune export``: from a checkpoint to files that were checked."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from hyperprune import Budget, cli, prune, save_pruned
from tests.models import sequential

MODEL = "tests.models:sequential"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "slim.safetensors"
    save_pruned(prune(sequential(), torch.randn(1, 3, 8, 8), Budget(macs=0.5)), path)
    return path


def command(checkpoint: Path, *more: str) -> list[str]:
    return ["export", str(checkpoint), "--model", MODEL, "--input", "3x8x8", *more]


def test_a_checkpoint_becomes_an_onnx_file_and_a_program(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--onnx", str(tmp_path / "slim.onnx"), "--pt2", str(tmp_path / "slim.pt2")]
    assert cli.main(command(checkpoint, *files, "--note", "author=me=you")) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "onnx.checker" in text
    assert "5 x 3 x 8 x 8" in text
    assert "loaded again and run: relative error" in text
    notes = {note.key: note.value for note in onnx.load(tmp_path / "slim.onnx").metadata_props}
    assert notes["author"] == "me=you"
    assert "hyperprune.widths" in notes
    found = torch.export.load(tmp_path / "slim.pt2").module()(torch.zeros(3, 3, 8, 8))
    assert found.shape == (3, 3)


def test_json_says_what_was_checked(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--onnx", str(tmp_path / "slim.onnx"), "--batch", "2", "--fixed-batch", "--json"]
    assert cli.main(command(checkpoint, *out)) == cli.EXIT_OK
    data = json.loads(capsys.readouterr().out)["onnx"]
    assert data["inputs"] == {"input": [2, 3, 8, 8]}
    assert data["relative_error"] <= 1e-4
    assert [run["shapes"] for run in data["runs"]] == [[[2, 3, 8, 8]]]


def test_a_model_by_name_is_exported_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "tests.models:mobile", "--input", "3x8x8", "--onnx", str(tmp_path / "dense.onnx")]
    assert cli.main(words) == cli.EXIT_OK
    assert "hyperprune.widths" not in capsys.readouterr().out
    assert (tmp_path / "dense.onnx").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "tests.models:sequential"],
        ["export", "slim.safetensors", "--onnx", "slim.onnx"],
        ["export", "tests.models:sequential", "--model", "tests.models:sequential", "--onnx", "slim.onnx"],
        ["export", "tests.models:sequential", "--onnx", "slim.onnx", "--note", "nothing"],
    ],
    ids=["no file to write", "no model for the checkpoint", "a model twice", "a note without ="],
)
def test_wrong_usage_leaves_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == cli.EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


def test_a_network_that_the_input_does_not_fit_leaves_with_1_and_no_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(checkpoint), "--model", MODEL, "--input", "3x9x32", "--onnx", str(tmp_path / "slim.onnx")]
    assert cli.main(words) == cli.EXIT_FAILED
    assert "fails on inputs of 1 x 3 x 9 x 32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
