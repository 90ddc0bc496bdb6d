"""``hyperprune report``: from a name and a checkpoint to tables, JSON and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperprune import Budget, cli, prune, report, save_pruned
from hyperprune.verify import Proof
from tests.models import residual


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command's words for a checkpoint that was really pruned and saved."""
    path = tmp_path / "slim.safetensors"
    save_pruned(prune(residual(), torch.zeros(1, 3, 16, 16), Budget(macs=0.5)), path)
    return ["report", "tests.models:residual", str(path), "--input", "3x16x16"]


def test_tables_are_plain_when_piped_and_say_that_no_proof_was_given(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert text.startswith("The slim tests.models:residual needs ")
    assert "block2.conv2" in text
    assert "Proof: Not given" in text
    assert "\x1b" not in text


def test_json_and_the_page_come_together(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "report.html"
    assert cli.main([*words, "--json", "--html", str(page)]) == cli.EXIT_OK
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert 0.4 * data["macs"]["dense"] < data["macs"]["slim"] <= 0.5 * data["macs"]["dense"]
    assert page.read_text().startswith("<!doctype html>")
    assert captured.err == f"wrote {page}\n"


def test_a_missing_checkpoint_and_a_page_that_is_a_folder_are_errors(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "tests.models:residual", str(tmp_path / "none.safetensors")]) == cli.EXIT_FAILED
    assert "none.safetensors" in capsys.readouterr().err
    assert cli.main([*words, "--html", str(tmp_path)]) == cli.EXIT_FAILED
    assert "is a folder" in capsys.readouterr().err


def test_an_input_that_the_model_does_not_take_is_an_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words[:-1], "1x16x16"]) == cli.EXIT_FAILED
    assert "fails on the example inputs" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_an_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "tests.models:sequential", *words[2:]]) == cli.EXIT_FAILED
    assert capsys.readouterr().err.startswith("hyperprune: ")


def test_a_run_s_folder_and_a_saved_report_show_what_the_run_knew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, x = residual(), torch.zeros(1, 3, 16, 16)
    found = report(dense, prune(dense, x, Budget(macs=0.5)), x, proof=Proof(3e-7, 1e-4, 1), name="digits")
    run, alone, bench = tmp_path / "run", tmp_path / "alone.json", tmp_path / "bench.json"
    run.mkdir()
    (run / "report.json").write_text(json.dumps({"format": "hyperprune.run", "pruning": found.to_json()}))
    alone.write_text(found.dumps())
    times = {"median_ms": 3.0, "spread_ms": [2.9, 3.4]}
    bench.write_text(json.dumps({"rows": [{"runtime": "ONNX Runtime", "batch": 8, "dense": times, "slim": times}]}))
    assert cli.main(["report", str(run)]) == cli.main(["report", str(alone)]) == cli.EXIT_OK
    assert capsys.readouterr().out == f"{found}\n{found}\n"
    assert cli.main(["report", str(run), "--latency", str(bench), "--json"]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out)["latency"][0]["runtime"] == "ONNX Runtime"


@pytest.mark.parametrize(("name", "content"), [("none", None), ("text.json", "{"), ("other.json", "{}")])
def test_what_is_no_run_is_an_error_that_says_what_to_name(
    name: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert cli.main(["report", str(path)]) == cli.EXIT_FAILED
    message = capsys.readouterr().err
    assert message.startswith("hyperprune: ")
    assert "Traceback" not in message


def test_a_network_by_name_without_its_checkpoint_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "timm/resnet18"]) == cli.EXIT_FAILED
    assert "name the checkpoint" in capsys.readouterr().err
