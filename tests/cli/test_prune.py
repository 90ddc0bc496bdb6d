"""``hyperprune prune`` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperprune import cli, load_pruned
from tests.training import factories

SMALL = "--data sklearn/digits --macs 0.5 --input 3x8x8 --batch-size 256"
DIGITS = ["prune", "tests.training.factories:digits", *SMALL.split()]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums come out the same, to the last bit
QUICK = [*DIGITS, "--epochs", "1", "--epochs-dense", "1"]


def usage_error(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    made = torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("val", 4)):
        for name, shade in (("dark", 40), ("light", 200)):
            (folder / part / name).mkdir(parents=True)
            for at in range(count):
                noise = torch.randint(0, 40, (20, 24, 3), generator=made, dtype=torch.uint8) + shade
                Image.fromarray(noise.numpy()).save(folder / part / name / f"{at}.png")
    return folder


def test_a_folder_of_images_becomes_a_slim_network(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"prune tests.training.factories:two_outputs --data {photos} --params 0.6 --divisor 2 --input 3x12x12"
    out = tmp_path / "run"
    options = f"--epochs 4 --epochs-dense 4 --batch-size 6 --lr 0.05 --out {out} --device cpu --workers 1 --json"
    assert cli.main([*words.split(), *options.split()]) == cli.EXIT_OK
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content["images"] == {"train": 24, "test": 8}
    assert content["classes"] == ["dark", "light"]
    assert content["accuracy"]["slim"] >= 0.75, "dark and light are easy to tell"
    params = content["pruning"]["params"]
    assert params["slim"] <= 0.6 * params["dense"]
    slim = load_pruned(factories.two_outputs(), out / "slim.safetensors")
    assert sum(p.numel() for p in slim.parameters()) == params["slim"]
    assert all(layer["width"]["slim"] % 2 == 0 for layer in content["pruning"]["layers"])
    assert "24 images" in printed.err


def test_the_table_goes_to_stdout_and_the_story_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, "--out", str(tmp_path / "run")]) == cli.EXIT_OK
    printed = capsys.readouterr()
    assert "test accuracy" in printed.out
    assert "load_pruned(" in printed.out
    assert "epoch" not in printed.out
    assert "search: epoch 1" in printed.err or "fine-tuning: epoch 1" in printed.err
    assert "\x1b" not in printed.out + printed.err, "no bar and no colours where there is no terminal"
    assert cli.main(["prune", "--resume", "--out", str(tmp_path / "run"), "--json"]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out)["format"] == "hyperprune.run"


def test_quiet_prints_nothing_but_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, "--out", str(tmp_path / "run"), "--quiet"]) == cli.EXIT_OK
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("warning: the dense network is not trained")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        "prune",
        "prune timm/resnet18 --out run",
        "prune timm/resnet18 --data sklearn/digits --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5",
        "prune timm/resnet18 --data sklearn/digits --macs half --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --epochs 0 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --search-fraction 1.5 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --amp fp8 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --input 224 x --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --lr 0 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --pretrained --weights w.safetensors --out run",
    ],
)
def test_wrong_usage_leaves_with_2(
    words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert usage_error(words.split()) == cli.EXIT_USAGE
    assert "usage:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prune timm/resnet18 --data no/where --macs 0.5 --out run", "is no folder"),
        ("prune timm/resnet81 --data sklearn/digits --macs 0.5 --out run", "Did you mean"),
        ("prune timm/resnet18 --data sklearn/digits --macs 2.5 --out run", "2.5"),
        ("prune --resume --out run", "no run to go on with"),
    ],
)
def test_what_cannot_work_leaves_with_1_and_one_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == cli.EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith("hyperprune: ")
    assert message in error
    assert "Traceback" not in error


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*DIGITS, "--epochs", "3", "--epochs-dense", "1", "--seed", "4"]
    command = [sys.executable, "-m", "hyperprune.cli", *long, "--out", str(tmp_path / "broken")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("search: epoch 1"):
            process.send_signal(signal.SIGINT)
            break
    rest, started = process.stderr.read(), time.monotonic()
    assert process.wait(timeout=60) == cli.EXIT_INTERRUPTED
    assert time.monotonic() - started < 30
    assert process.stdout is not None
    assert process.stdout.read() == ""
    assert "stopping after this step" in rest
    assert f"hyperprune prune --resume --out {tmp_path / 'broken'}" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "broken" / "report.json").exists()

    assert cli.main(["prune", "--resume", "--out", str(tmp_path / "broken"), "--json"]) == cli.EXIT_OK
    resumed = json.loads(capsys.readouterr().out)
    assert cli.main([*long, "--out", str(tmp_path / "whole"), "--json"]) == cli.EXIT_OK
    whole = json.loads(capsys.readouterr().out)
    assert resumed["accuracy"] == whole["accuracy"]
    slim = [load_pruned(factories.digits(), tmp_path / name / "slim.safetensors") for name in ("broken", "whole")]
    assert all(torch.equal(value, slim[1].state_dict()[key]) for key, value in slim[0].state_dict().items())


def test_another_setting_than_the_run_was_begun_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*QUICK, "--out", str(tmp_path / "run"), "--quiet"]) == cli.EXIT_OK
    assert cli.main([*QUICK, "--out", str(tmp_path / "run"), "--resume", "--quiet"]) == cli.EXIT_OK
    capsys.readouterr()
    assert cli.main(["prune", "--resume", "--macs", "0.3", "--out", str(tmp_path / "run")]) == cli.EXIT_FAILED
    assert "begun with macs 0.5, not 0.3" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(["prune", "--help"]) == cli.EXIT_OK
    text = capsys.readouterr().out
    for words in ("hyperprune prune timm/resnet18", "train/CLASS", "--resume --out run", "Ctrl-C", "slim.safetensors"):
        assert words in text
    assert "(default: None)" not in text
