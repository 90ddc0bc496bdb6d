"""``hyperprune prune`` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote as quoted

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hyperprune import cli, load_pruned
from hyperprune.metering import record
from hyperprune.training import TrainingSettings
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
        "prune timm/resnet18 --data sklearn/digits --floors conv1=8 --divisor 8 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs half --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 2.5 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --epochs 0 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --search-fraction 1.5 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --amp fp8 --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --input 224 x --out run",
        "prune timm/resnet18 --data sklearn/digits --macs 0.5 --input 224 --out run",
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


@pytest.mark.parametrize(
    ("budget", "messages"),
    [
        ("--macs 0.5 --floors block*.conv=4", ["Did you mean block", "for: --macs 0.5 --floors 'block*.conv=4'. See"]),
        ("--activations 0.5 --ceilings no=4", ["matches 'no'", "for: --activations 0.5 --ceilings no=4. See"]),
        ("--activations 10000000", ["activation_bytes=10,000,000 is above the dense network's 6,656"]),
        ("--activations 1 --floor 2", ["activation_bytes=1 cannot be reached", "for: --activations 1 --floor 2. See"]),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_in_the_words_it_was_asked_for(
    budget: str, messages: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*DIGITS[:2], *SMALL.replace("--macs 0.5", budget).split(), "--out", str(tmp_path / "run")]
    assert cli.main(words) == cli.EXIT_FAILED
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith("hyperprune: ")
    for message in (*messages, f"See the layers with: hyperprune inspect {DIGITS[1]}"):
        assert message in refusal
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*DIGITS, "--epochs", "3", "--epochs-dense", "1", "--seed", "4"]
    command = [sys.executable, "-m", "hyperprune", *long, "--out", str(tmp_path / "broken")]
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
    assert "begun with --macs 0.5, not --macs 0.3. Leave" in capsys.readouterr().err
    for words, told in (
        ("--latency 20ms", "begun with --macs 0.5, not --latency 20ms. Leave"),
        ("--macs 0.5 --floors stem=3", "begun with --macs 0.5, not --macs 0.5 --floors stem=3. Leave"),
        ("--seed 3", "begun with seed 0, not seed 3. Leave"),
    ):
        assert cli.main(["prune", "--resume", *words.split(), "--out", str(tmp_path / "run")]) == cli.EXIT_FAILED
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--epochs 5", "epochs 20, not epochs 5."),
        ("--seed 0", "seed 7, not seed 0."),
        ("--optimizer sgd", "optimizer adamw, not optimizer sgd."),
        ("--divisor 1", "--macs 0.3 --divisor 8 --floors stem=4, not --divisor 1."),
        ("--floors stem=8", "--macs 0.3 --divisor 8 --floors stem=4, not --floors stem=8."),
        ("--epochs 20 --seed 0", "seed 7, not seed 0."),
    ],
)
def test_a_setting_that_is_given_is_minded_though_it_is_the_default(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = {"macs": 0.3, "epochs": 20, "divisor": 8, "seed": 7, "optimizer": "adamw", "floors": {"stem": 4}}
    TrainingSettings("tests.training.factories:digits", "sklearn/digits", **begun).write(tmp_path)  # type: ignore
    assert cli.main(["prune", "--resume", "--out", str(tmp_path), *words.split()]) == cli.EXIT_FAILED
    assert f"was begun with {told} Leave the settings out" in capsys.readouterr().err


def test_activations_and_floors_are_met_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    budget = "--activations 0.6 --floors block*.conv1=6 --ceilings stem=4"
    words = [*DIGITS[:2], *SMALL.replace("--macs 0.5", budget).split(), "--epochs", "1", "--epochs-dense", "1"]
    assert cli.main([*words, "--out", str(out), "--json"]) == cli.EXIT_OK
    content = json.loads(capsys.readouterr().out)
    slim = load_pruned(factories.digits(), out / "slim.safetensors").eval()
    dense_peak, slim_peak = (peak(network, torch.zeros(1, 3, 8, 8)) for network in (factories.digits().eval(), slim))
    assert 0.5 * dense_peak < slim_peak <= 0.6 * dense_peak
    assert content["budget"] == {"activation_bytes": {"asked": 0.6, "dense": dense_peak, "slim": slim_peak}}
    widths = {layer["name"]: layer["width"]["slim"] for layer in content["pruning"]["layers"]}
    assert widths["block1.conv1"] >= 6
    assert widths["block2.conv1"] >= 6
    assert widths["stem"] <= 4
    settings = json.loads((out / "settings.json").read_text())
    assert settings["floors"] == {"block*.conv1": 6}
    assert settings["ceilings"] == {"stem": 4}

    assert cli.main(["prune", "--resume", *budget.split(), "--out", str(out)]) == cli.EXIT_OK
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "activations, at most" in line)
    assert f"{dense_peak / 1e3:.1f} kB" in row
    assert f"{slim_peak / 1e3:.1f} kB ({slim_peak / dense_peak:.1%})" in row
    again = ["prune", "--resume", "--floors", "block*.conv1=5", "--out", str(out)]
    assert cli.main(again) == cli.EXIT_FAILED
    assert f"begun with {budget.replace('block*.conv1=6', quoted('block*.conv1=6'))}, not" in capsys.readouterr().err


def peak(network: nn.Module, x: Tensor) -> int:
    """Return the most bytes of activations alive at one time, one call after another."""
    storages = record(lambda: network(x), [*network.parameters(), *network.buffers(), x])
    calls = range(max(storage.died for storage in storages) + 1)
    return max(sum(s.bytes for s in storages if s.born <= call < s.died) for call in calls)


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(["prune", "--help"]) == cli.EXIT_OK
    text = capsys.readouterr().out
    for words in (
        "hyperprune prune timm/resnet18",
        "--floors 'layer4.*=64'",
        "train/CLASS",
        "--resume --out run",
        "Ctrl-C",
        "slim.safetensors",
    ):
        assert words in text
    assert "(default: None)" not in text
