"""Test accuracy over MACs: one column per network; our methods above, the others below."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes

from benchmarks.search.methods import DEFAULT, DENSE, METHODS
from benchmarks.search.results import Results, Row
from benchmarks.search.settings import PRESETS
from hyperprune.plots.canvas import BLUE, GREEN, GUIDE, ORANGE, PURPLE, SKY, VERMILION, new_figure, save_figure, tidy

STYLES: dict[str, dict[str, Any]] = {
    DEFAULT: {"color": BLUE, "marker": "o", "linewidth": 2.2},
    "fisher-long": {"color": BLUE, "marker": ".", "linestyle": ":"},
    "l1": {"color": VERMILION, "marker": "s"},
    "group": {"color": GREEN, "marker": "^"},
    "binary": {"color": PURPLE, "marker": "D"},
    "hard": {"color": ORANGE, "marker": "v"},
    "taylor": {"color": SKY, "marker": "P"},
    "magnitude": {"color": GUIDE, "marker": "s", "linestyle": "--"},
    "published": {"color": GUIDE, "marker": "x", "linestyle": ":"},
    "uniform": {"color": "#999999", "marker": "^", "linestyle": "--"},
    "random": {"color": "#999999", "marker": "x", "linestyle": ":"},
    "prune-magnitude": {"color": "#222222", "marker": "+", "linestyle": "-."},
    "tp-group-norm": {"color": VERMILION, "marker": "s"},
    "tp-taylor": {"color": SKY, "marker": "P"},
    "tp-hessian": {"color": GREEN, "marker": "^"},
    "tp-bn-scale": {"color": ORANGE, "marker": "v"},
    "tp-magnitude": {"color": PURPLE, "marker": "D"},
    "uniform-widths": {"color": GUIDE, "marker": "^", "linestyle": "--"},
    "random-channels": {"color": GUIDE, "marker": "x", "linestyle": ":"},
}


def draw_curves(results: Results, preset: str, path: Path) -> Path:
    """Write the picture of one preset and return its path."""
    rows = [row for row in results.rows.values() if row["preset"] == preset and "failed" not in row]
    networks = [name for name in PRESETS[preset] if any(row["network"] == name for row in rows)]
    figure = new_figure(4.2 * len(networks) + 2.6, 7.4)
    grid = figure.subplots(2, len(networks), squeeze=False, sharex=True, sharey="col")
    for axes, network in zip(grid.T, networks, strict=True):
        here = [row for row in rows if row["network"] == network]
        for panel, ours in zip(axes, (True, False), strict=True):
            _panel(panel, here, ours)
        axes[0].set_title(network)
        axes[1].set_xlabel("MACs kept, %")
    for panels in grid:
        panels[0].set_ylabel("test accuracy after the last step, %")
        handles = _legend(panels)
        panels[-1].legend(handles.values(), handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_figure(figure, path)


def _legend(panels: Iterable[Axes]) -> dict[str, Any]:
    """Return the handles of all panels by their label, each once."""
    pairs = (zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels)
    return {label: handle for several in pairs for handle, label in several}


def _panel(axes: Axes, rows: list[Row], ours: bool) -> None:
    """Draw one network's lines: ours, or the others' with our default for reference."""
    dense = [100 * row["test"] for row in rows if row["method"] == DENSE]
    if dense:
        axes.axhline(mean(dense), color=GUIDE, linewidth=0.9, label="dense, trained as long")
    for name, style in STYLES.items():
        if name == DEFAULT or (METHODS[name].family == "ours") == ours:
            points = list(_points(rows, name))
            if points:
                x, y, spread = zip(*points, strict=True)
                title = METHODS[name].title.removeprefix("search, ")
                line = {"linewidth": 1.3, "markersize": 5, "capsize": 2, "elinewidth": 0.7, **style}
                axes.errorbar(x, y, yerr=spread, label=title, **line)
    tidy(axes, "y")


def _points(rows: list[Row], method: str) -> Iterator[tuple[float, float, float]]:
    """Yield MACs kept, mean accuracy and its spread, in percent, at every target."""
    found: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        if row["method"] == method:
            found[row["target"]].append(row)
    for _, several in sorted(found.items()):
        tests = [100 * row["test"] for row in several]
        macs = 100 * mean(row["macs_fraction"] for row in several)
        yield macs, mean(tests), stdev(tests) if len(tests) > 1 else 0.0
