"""A run from the dense to the slim network; stopped anywhere, it goes on to the same result."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from hyperprune import HyperpruneError, load_pruned
from hyperprune.training import Machine, Screen, TrainingSettings, run_prune, summary
from hyperprune.training.learner import Learner
from hyperprune.training.settings import rate_at
from tests.training import factories
from tests.training.test_settings import LATER

STEPS = 5  # of 256 images in an epoch
DENSE_END = 4  # the dense network's last step
HERE = "tests.training.factories"
SMALL = {
    "model": f"{HERE}:digits", "data": "sklearn/digits", "macs": 0.5,
    "epochs": 2, "epochs_dense": 1, "search_fraction": 0.5, "batch_size": 256, "input_size": (3, 8, 8),
}  # fmt: skip
FILES = {"dense.safetensors", "searched.safetensors", "slim.safetensors", "settings.json", "report.json"}


def settings(**options: Any) -> TrainingSettings:
    return TrainingSettings(**{**SMALL, **options})


def run(out: Path, *, resume: bool = False, quiet: bool = False, machine: Machine | None = None, **options: Any) -> Any:
    """Run; return what came out and what was said."""
    said = io.StringIO()
    screen = Screen(Console(file=said, width=200), quiet)
    return run_prune(settings(**options), out, screen, machine or Machine("cpu"), resume=resume), said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("whole") / "run"
    content, said = run(out)
    return out, content, said


def test_a_run_leaves_a_slim_network_within_the_budget(whole: tuple[Path, dict[str, Any], str]) -> None:
    out, content, _ = whole
    assert {path.name for path in out.iterdir()} == FILES
    macs, params = content["pruning"]["macs"], content["pruning"]["params"]
    assert 0.4 * macs["dense"] < macs["slim"] <= 0.5 * macs["dense"]
    slim = load_pruned(factories.digits(), out / "slim.safetensors")
    assert sum(p.numel() for p in slim.parameters()) == params["slim"] < params["dense"]
    assert json.loads((out / "report.json").read_text()) == content
    assert content["budget"] == {"macs": {"asked": 0.5, **macs}}
    assert 0 < content["accuracy"]["slim"] <= 1
    assert content["pruning"]["history"][-1]["step"] == STEPS


def test_a_run_says_what_it_does_and_shows_no_bar_where_there_is_no_terminal(
    whole: tuple[Path, dict[str, Any], str],
) -> None:
    _, content, said = whole
    assert "1297 images to train on, 500 to test with, 10 classes" in said
    assert "warning: the dense network is not trained on these classes yet" in said
    assert "dense: epoch 1" in said
    assert "proved equal" in said
    assert "\x1b" not in said
    assert "━" not in said
    table = Console(file=(shown := io.StringIO()), width=120)
    table.print(summary(content))
    assert "test accuracy" in shown.getvalue()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let Ctrl-C come while this step is taken."""
    learn = Learner.learn

    def learn_and_press(self: Learner, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        if self.at == step:
            signal.raise_signal(signal.SIGINT)
        return learn(self, images, labels, rate)

    monkeypatch.setattr(Learner, "learn", learn_and_press)


@pytest.mark.parametrize("step", [2, DENSE_END, 7, 9, 12, 14], ids=lambda at: f"step {at}")
def test_a_run_that_is_stopped_goes_on_to_the_same_network(
    step: int, whole: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every phase: within an epoch, and at the last step of a phase."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()
    assert signal.getsignal(signal.SIGINT) is before
    torch.manual_seed(99)  # another process starts from another random state
    content, said = run(tmp_path / "run", resume=True)
    assert ("going on after step" in said) == (step != DENSE_END), "at the end of the dense phase its file is there"
    assert content["accuracy"] == whole[1]["accuracy"]
    for name in ("dense", "searched", "slim"):
        one, other = (
            load_pruned(factories.digits(), out / f"{name}.safetensors") for out in (tmp_path / "run", whole[0])
        )
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items()), name


def test_a_run_that_was_killed_goes_on_from_the_last_state(
    whole: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Learner.learn

    def learn_or_die(self: Learner, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        if self.at == 8:
            raise SystemExit("killed")
        return learn(self, images, labels, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn_or_die)
        with pytest.raises(SystemExit):
            run(tmp_path / "run", machine=Machine("cpu", save_every=2))
    content, said = run(tmp_path / "run", resume=True)
    assert "search: going on after step 3 of 5" in said
    assert content["accuracy"] == whole[1]["accuracy"]


def test_a_run_of_an_older_version_goes_on(
    whole: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings know nothing of activations, latency, floors, ceilings and depth."""
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "settings.json").read_text())
    old = {name: value for name, value in written.items() if name not in LATER}
    assert len(old) == len(written) - len(LATER)
    (tmp_path / "run" / "settings.json").write_text(json.dumps(old))
    screen = Screen(Console(file=io.StringIO()), quiet=True)
    begun = TrainingSettings.read(tmp_path / "run")
    content = run_prune(begun, tmp_path / "run", screen, Machine("cpu"), resume=True)
    assert content["accuracy"] == whole[1]["accuracy"]
    assert content["settings"] == whole[1]["settings"]


def test_a_report_of_an_older_version_is_still_shown(whole: tuple[Path, dict[str, Any], str]) -> None:
    content = {name: part for name, part in whole[1].items() if name != "budget"}
    assert summary(content).row_count == summary(whole[1]).row_count


def test_activations_and_latency_have_rows_of_their_own(whole: tuple[Path, dict[str, Any], str]) -> None:
    spent = {
        "activation_bytes": {"asked": 0.5, "dense": 20_000, "slim": 9_000},
        "latency_ns": {"asked": 0.5, "dense": 5_000_000, "slim": 2_400_000},
    }
    table = Console(file=(shown := io.StringIO()), width=120)
    table.print(summary({**whole[1], "budget": spent}))
    assert "20.0 kB │ " in shown.getvalue()
    assert "9.0 kB (45.0%)" in shown.getvalue()
    assert "latency, batch 1" in shown.getvalue()
    assert "2.40 ms (48.0%)" in shown.getvalue()


def test_a_complete_run_is_only_shown_again(whole: tuple[Path, dict[str, Any], str]) -> None:
    out, content, _ = whole
    before = (out / "slim.safetensors").stat().st_mtime_ns
    assert run(out, resume=True) == (content, "")
    assert (out / "slim.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_a_run_is_not_overwritten(whole: tuple[Path, dict[str, Any], str]) -> None:
    with pytest.raises(HyperpruneError, match="holds a run already"):
        run(whole[0])


def test_trained_weights_are_not_trained_again(whole: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    weights = str(whole[0] / "dense.safetensors")
    content, said = run(tmp_path / "run", weights=weights, epochs_dense=None, epochs=1, search_fraction=1.0, amp="bf16")
    assert "dense: epoch" not in said
    assert "warning" not in said
    assert content["accuracy"]["dense"] == pytest.approx(whole[1]["accuracy"]["dense"], abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 1.5}, "outside"),
        ({"macs": 10**12}, "above the dense"),
        ({"macs": 1}, "cannot|below|least"),
        ({"activation_bytes": 1}, "activation_bytes=1 cannot be reached"),
        ({"floors": {"block9": 4}}, "floors: no prunable layer matches 'block9'"),
        ({"floors": {"stem": 6}, "ceilings": {"block1.conv2": 4}}, "leaves no width"),
        ({"model": f"{HERE}:frozen"}, "nothing in"),
        ({"amp": "fp16"}, "needs a CUDA device"),
        ({"data": "no/such/folder"}, "is no folder"),
        ({"model": "timm/resnet10"}, "no model"),
        ({"input_size": (3, 8, 9)}, "square"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_any_training(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match=message):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match="cannot be used"):
        run(tmp_path / "run", machine=Machine("nonsense"))


def test_a_network_with_two_answers_is_explained(tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match="in train mode"):
        run(tmp_path / "run", model=f"{HERE}:two_answers")
    run(tmp_path / "run", epochs=1, epochs_dense=0)  # nothing worth keeping had been written


def test_training_that_diverges_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match=r"Lower --lr|learning rate"):
        run(tmp_path / "run", lr=1e30, epochs_dense=4)


def test_quiet_leaves_the_warnings_only(tmp_path: Path) -> None:
    _, said = run(tmp_path / "run", quiet=True, epochs=1, epochs_dense=0)
    assert said.startswith("warning: ")
    assert said.count("\n") == 1
    assert "without distillation" in said


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    course = [rate_at(step, 200) for step in range(200)]
    assert course.index(max(course)) in (9, 10)
    assert max(course) == 1.0
    assert course[0] == 0.1
    assert course[-1] < 1e-3
    assert rate_at(5, 1) == 0.0
