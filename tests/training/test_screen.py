"""What is shown while a run goes on."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from hyperprune import HyperpruneError
from hyperprune.training import Screen


def shown(terminal: bool, quiet: bool = False) -> str:
    written = io.StringIO()
    screen = Screen(Console(file=written, force_terminal=terminal, width=100, _environ={"TERM": "xterm"}), quiet)
    screen.note("a note")
    screen.warn("careful")
    with screen.bar("search", 0, 4, 2) as bar:
        for step, loss in enumerate((4.0, 2.0, 1.0, 0.5), start=1):
            bar.advance(step, torch.tensor(loss), "MACs 80%")
    return written.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    text = shown(terminal=True)
    assert "━" in text
    assert "4/4" in text


def test_a_file_gets_notes_and_a_line_after_each_epoch() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[:2] == ["a note", "warning: careful"]
    assert [line.split(",")[0] for line in lines[2:]] == ["search: epoch 1", "search: epoch 2"]
    assert "mean loss 3.000  MACs 80%" in lines[2]
    assert "mean loss 0.750" in lines[3]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_leaves_the_warning(terminal: bool) -> None:
    text = shown(terminal, quiet=True)
    assert "careful" in text
    assert "note" not in text
    assert "search" not in text


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_ends_the_run(loss: float) -> None:
    screen = Screen(Console(file=io.StringIO()))
    with screen.bar("dense", 0, 10, 10) as bar, pytest.raises(HyperpruneError, match="Lower --lr"):
        bar.advance(10, torch.tensor(loss))
