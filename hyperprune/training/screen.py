"""What the user sees while a run goes on: notes that stay, and a bar on a terminal only; all of it on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from hyperprune.errors import TrainingError

LOOK_EVERY = 10  # steps between two looks at the loss: each makes a GPU wait


class Screen:
    """Prints notes, warnings and bars; a quiet one prints warnings only."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def note(self, text: str) -> None:
        """Say something that is good to know."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say something that must not be missed."""
        self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, done: int, steps: int, per_epoch: int) -> Iterator[Bar]:
        """Show a bar while the block runs, and a line after each epoch."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        hidden = self.quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            yield Bar(self, title, progress, progress.add_task(title, total=steps, completed=done), per_epoch)


class Bar:
    """One phase of training on the screen; looks at the loss now and then."""

    def __init__(self, screen: Screen, title: str, progress: Progress, task: TaskID, per_epoch: int) -> None:
        self._screen, self._title, self._progress, self._task = screen, title, progress, task
        self._per_epoch = per_epoch
        self._started = time.perf_counter()
        self._losses: list[Tensor] = []

    def advance(self, step: int, loss: Tensor, note: str = "") -> None:
        """Count a step of the run with its loss, a scalar.

        Raises:
            TrainingError: the loss is not finite any more.
        """
        self._losses.append(loss.detach())
        self._progress.advance(self._task)
        ends_epoch = step % self._per_epoch == 0
        if step % LOOK_EVERY and not ends_epoch:
            return
        loss_now = float(loss)
        if not math.isfinite(loss_now):
            raise TrainingError(f"the loss is {loss_now} at step {step}: training diverged. Lower --lr.")
        self._progress.update(self._task, description=f"{self._title}  loss {loss_now:.3f}  {note}".rstrip())
        if ends_epoch:
            self._end_epoch(step // self._per_epoch, note)

    def _end_epoch(self, epoch: int, note: str) -> None:
        mean = sum(float(loss) for loss in self._losses) / len(self._losses)
        seconds = time.perf_counter() - self._started
        self._screen.note(f"{self._title}: epoch {epoch}, {seconds:.0f} s, mean loss {mean:.3f}  {note}".rstrip())
        self._losses.clear()
        self._started = time.perf_counter()
