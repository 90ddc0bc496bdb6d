"""What the examples show: progress bars, one table, one picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from examples.common.quality import Quality
from hyperprune.cost import count_with_fvcore
from hyperprune.files import draft_of, write_whole


@dataclass(frozen=True)
class Row:
    """One network of the comparison.

    Attributes:
        name: how it was made.
        macs: share of the dense network's MACs; None where there is no network.
        params: likewise of its parameters.
        quality: PSNR and SSIM by test set.
        note: why there are no numbers.
    """

    name: str
    macs: float | None = None
    params: float | None = None
    quality: Mapping[str, Quality] = field(default_factory=dict)
    note: str = ""


def shares(model: nn.Module, dense: nn.Module, example: Tensor) -> tuple[float, float]:
    """Return MACs and parameters of ``model`` as shares of those of ``dense``, counted by fvcore."""
    ours, full = (count_with_fvcore(network.eval(), example) for network in (model, dense))
    return ours.macs / full.macs, ours.params / full.params


class Bar:
    """Shows the loss of the run in progress."""

    def __init__(self, progress: Progress, title: str, steps: int) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=steps)

    def advance(self, loss: float, note: str = "") -> None:
        """Count one step."""
        self._progress.update(self._task, advance=1, description=f"{self._title}  loss {loss:.4f}  {note}")


@contextmanager
def bar(console: Console, title: str, steps: int) -> Iterator[Bar]:
    """Show a progress bar while the block runs (on a terminal only)."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, title, steps)


def in_words(found: Mapping[str, Quality]) -> str:
    """Return PSNR and SSIM of each test set in one line."""
    return ", ".join(f"{name} {q.psnr:.2f} dB / {q.ssim:.4f}" for name, q in found.items())


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print the table."""
    sets = list(dict.fromkeys(name for row in rows for name in row.quality))
    table = Table(title=title)
    table.add_column("network")
    for head in ("MACs", "params", *(f"{name}: PSNR / SSIM" for name in sets)):
        table.add_column(head, justify="right")
    for row in rows:
        found = [f"{q.psnr:.2f} dB / {q.ssim:.4f}" for q in row.quality.values()]
        table.add_row(row.name, *(f"{x:.1%}" if x is not None else "" for x in (row.macs, row.params)), *found)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", highlight=False)


def save_rows(rows: Sequence[Row], settings: Mapping[str, object], path: Path) -> None:
    """Write settings and rows as JSON, whole or not at all."""
    write_whole(path, json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def save_picture(images: Mapping[str, Tensor], path: Path) -> None:
    """Draw images ``(C, H, W)`` in [0, 1] side by side, each under its title, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(images), 4.4), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).squeeze(-1).cpu().numpy()
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
