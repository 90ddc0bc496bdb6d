"""``hyperprune bench``: dense against slim on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, cli, prune, save_pruned
from hyperprune.errors import LatencyError
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


def test_the_cut_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def note(dense: nn.Module, slim: nn.Module, x: Tensor, **_: object) -> None:
        found.append([*dense.state_dict().values(), *slim.state_dict().values()])
        raise LatencyError("enough")

    monkeypatch.setattr("hyperprune.latency.compare_latency", note)
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert cli.main(["bench", "tests.models:sequential", "--macs", "0.5", *COMMON]) == cli.EXIT_FAILED
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        ("--activations 0.7 --floors 3=5", Budget(activation_bytes=0.7, floors={"3": 5})),
        ("--params 0.6 --divisor 2 --floor 2", Budget(params=0.6, divisor=2, floor=2)),
        ("--latency 20ms --ceilings 0=7", Budget(latency_ms=20.0, ceilings={"0": 7})),
    ],
)
def test_every_kind_of_budget_reaches_the_cut(
    words: str, budget: Budget, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def cut(model: nn.Module, x: Tensor, budget: Budget) -> nn.Module:
        asked.append(budget)
        return prune(model, x, Budget(macs=0.5))

    monkeypatch.setattr("hyperprune.export.prune", cut)
    command = ["bench", "tests.models:sequential", *words.split(), "--batch", "1", "--backends", "eager", *COMMON]
    assert cli.main(command) == cli.EXIT_OK
    assert asked == [budget]
    assert "PyTorch eager" in capsys.readouterr().out


def test_less_memory_of_activations_is_what_the_cut_network_takes(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "bench",
        "tests.models:sequential",
        "--activations",
        "0.5",
        "--batch",
        "1",
        "--backends",
        "eager",
        "--json",
    ]
    assert cli.main([*words, *COMMON]) == cli.EXIT_OK
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["slim"]["peak_bytes"] < row["dense"]["peak_bytes"]


def test_a_budget_that_cannot_be_met_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "tests.models:sequential", "--macs", "1", "--floor", "4", *COMMON]
    assert cli.main(words) == cli.EXIT_FAILED
    said = capsys.readouterr().err
    assert "macs=1 cannot be reached" in said
    assert "Asked for: --macs 1 --floor 4. See the layers with: hyperprune inspect tests.models:sequential" in said


def test_a_budget_beside_a_checkpoint_is_named_in_the_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "tests.models:sequential", "slim.safetensors", "--floors", "conv1=8", "--latency", "5ms"])
    assert "slim.safetensors is cut already, so --latency 5ms --floors conv1=8 has" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--divisor", "8", "--floors", "conv1=8"],
        ["slim.safetensors", "--macs", "0.5"],
        ["slim.safetensors", "--divisor", "8"],
        ["--macs", "0.5", "--backends", "tpu"],
        ["--macs", "0.5", "--runs", "0"],
    ],
    ids=["no slim network", "no budget", "two slim networks", "widths of a checkpoint", "unknown runtime", "no run"],
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
