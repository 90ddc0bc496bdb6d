"""The user's side of the demo: an ordinary training loop, its accuracy and its progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune.demo.digits import Digits, batches

SMOOTHING = 0.9  # of the loss and the accuracy shown beside a progress bar


class Phase:
    """One stretch of training: smooths what it is told and shows it beside the bar."""

    def __init__(self, title: str, progress: Progress, task: TaskID) -> None:
        self._title, self._progress, self._task = title, progress, task
        self._smooth: dict[str, float] = {}
        self._note = ""

    def advance(self, logits: Tensor, labels: Tensor, loss: Tensor, note: str = "") -> None:
        """Count one step with its logits ``(N, classes)``, labels ``(N,)`` and loss."""
        hits = (logits.argmax(1) == labels).float().mean().item()
        self._blend("loss", loss.item())
        self._blend("accuracy", hits)
        self._note = note
        self._progress.update(self._task, advance=1, description=f"{self._title}  {self.summary()}")

    def _blend(self, key: str, value: float) -> None:
        before = self._smooth.get(key, value)
        self._smooth[key] = SMOOTHING * before + (1 - SMOOTHING) * value

    def summary(self) -> str:
        """Return the smoothed loss and training accuracy in words."""
        if not self._smooth:
            return "nothing to do"
        words = f"loss {self._smooth['loss']:.3f}  training accuracy {self._smooth['accuracy']:.1%}"
        return f"{words}  {self._note}".rstrip()


@contextmanager
def phase(console: Console, title: str, steps: int) -> Iterator[Phase]:
    """Show a progress bar while the block runs (on a terminal only), then one line that stays."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        current = Phase(title, progress, progress.add_task(title, total=steps))
        yield current
    seconds = time.perf_counter() - started
    console.print(f"{title}: {steps} steps in {seconds:.0f} s, {current.summary()}", highlight=False)


def train(
    model: nn.Module, digits: Digits, steps: int, peak_lr: float, *, batch_size: int, seed: int, bar: Phase
) -> None:
    """Train ``model`` in place with SGD under a one-cycle learning rate; leaves it in train mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak_lr, total_steps=steps)
    for images, labels in batches(digits, steps, batch_size, seed):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.advance(logits, labels, loss)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images (N, C, H, W)`` classified as ``labels (N,)``; keeps the mode."""
    was_training = model.training
    model.eval()
    hits = sum(
        (model(part).argmax(1) == wanted).sum().item()
        for part, wanted in zip(images.split(128), labels.split(128), strict=True)
    )
    model.train(was_training)
    return float(hits / len(labels))
