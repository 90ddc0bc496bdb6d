"""``hyperprune bench``: dense against slim on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperprune import Budget, cli, prune, save_pruned
from tests.models import sequential

COMMON = ["--input", "3x8x8", "--runs", "2", "--threads", "1"]


def test_a_checkpoint_is_timed_beside_its_dense_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "slim.safetensors"
    save_pruned(prune(sequential(), torch.randn(1, 3, 8, 8), Budget(macs=0.5)), path)
    words = ["bench", "tests.models:sequential", str(path), "--batch", "2", "--backends", "eager", "onnx", "--json"]
    assert cli.main([*words, *COMMON]) == cli.EXIT_OK
    data = json.loads(capsys.readouterr().out)
    assert [(row["backend"], row["batch"]) for row in data["rows"]] == [("eager", 2), ("onnx", 2)]
    assert data["rows"][0]["slim"]["peak_bytes"] < data["rows"][0]["dense"]["peak_bytes"]


def test_without_a_checkpoint_the_network_is_cut_on_the_spot(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "tests.models:mobile", "--macs", "0.5", "--batch", "2", "--backends", "eager", *COMMON]
    assert cli.main(words) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "PyTorch eager" in text
    assert "faster" in text


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["slim.safetensors", "--macs", "0.5"],
        ["--macs", "0.5", "--backends", "tpu"],
        ["--macs", "0.5", "--runs", "0"],
    ],
    ids=["no slim network", "two slim networks", "unknown runtime", "no run"],
)
def test_wrong_usage_leaves_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "tests.models:sequential", *words])
    assert stop.value.code == cli.EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_leaves_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "tests.models:sequential", "--macs", "0.5", "--device", "cuda", *COMMON]
    assert cli.main(words) == cli.EXIT_FAILED
    assert "no CUDA device" in capsys.readouterr().err
