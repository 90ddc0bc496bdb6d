"""The command line: what it understands, what it prints and with which status it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyperprune import cli
from hyperprune.demo import run
from hyperprune.errors import HyperpruneError


def leave_status(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code


@pytest.fixture
def settings_seen(monkeypatch: pytest.MonkeyPatch) -> list[run.DemoSettings]:
    """Settings the command would have run the demo with."""
    seen: list[run.DemoSettings] = []
    monkeypatch.setattr(run, "run_demo", seen.append)
    return seen


def test_version_names_the_package_and_leaves_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_status(["--version"]) == cli.EXIT_OK
    assert capsys.readouterr().out.startswith("hyperprune ")


def test_help_shows_examples_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_status(["--help"]) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "hyperprune demo --compare" in text
    assert "exit status" in text


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(
        action.choices
        for action in cli.build_parser()._actions
        if action.nargs == "A..."  # argparse's mark of a group of commands
    )
    assert set(commands) == {"demo", "prune", "inspect", "export", "bench", "report"}
    for name in commands:
        assert leave_status([name, "--help"]) == cli.EXIT_OK
        assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["unknown"], ["demo", "--macs", "half"], ["demo", "--epochs", "0"], ["demo", "--epochs", "two"]],
    ids=" ".join,
)
def test_wrong_usage_leaves_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_status(arguments) == cli.EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


def test_demo_counts_its_options_in_epochs(settings_seen: list[run.DemoSettings]) -> None:
    words = "demo --out here --epochs 2 --search-epochs 3 --finetune-epochs 4 --macs 0.3 --seed 7 --compare"
    assert cli.main(words.split()) == cli.EXIT_OK
    (settings,) = settings_seen
    assert (settings.dense_steps, settings.search_steps, settings.finetune_steps) == (40, 60, 80)
    assert (settings.out, settings.macs, settings.seed, settings.compare) == (Path("here"), 0.3, 7, True)


def test_demo_defaults_on_the_command_line_are_those_of_the_settings(
    settings_seen: list[run.DemoSettings],
) -> None:
    assert cli.main(["demo"]) == cli.EXIT_OK
    assert settings_seen == [run.DemoSettings()]


def test_an_impossible_budget_leaves_with_1_and_one_message_before_any_training(
    settings_seen: list[run.DemoSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--macs", "1.5"]) == cli.EXIT_FAILED
    captured = capsys.readouterr()
    assert captured.err.startswith("hyperprune: ")
    assert "1.5" in captured.err
    assert "Traceback" not in captured.err
    assert settings_seen == []


@pytest.mark.parametrize(
    ("raised", "status"),
    [(HyperpruneError("no way"), cli.EXIT_FAILED), (KeyboardInterrupt(), cli.EXIT_INTERRUPTED)],
    ids=["refusal", "interruption"],
)
def test_each_kind_of_failure_has_its_status(
    raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: run.DemoSettings) -> None:
        raise raised

    monkeypatch.setattr(run, "run_demo", fail)
    assert cli.main(["demo"]) == status
    assert capsys.readouterr().err.strip().startswith("hyperprune: ")


def test_a_bug_is_not_dressed_up_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: run.DemoSettings) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "run_demo", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_help_needs_neither_matplotlib_nor_scikit_learn_nor_torch_pruning() -> None:
    script = (
        "import sys; from hyperprune.cli import build_parser; build_parser().format_help();"
        "print(sorted({'matplotlib', 'sklearn', 'torch_pruning', 'fvcore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
