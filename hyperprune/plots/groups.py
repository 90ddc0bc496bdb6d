"""A picture of a network's coupling: which layers share channels, what each costs, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from string import ascii_lowercase
from typing import TYPE_CHECKING

from hyperprune.coupling import CouplingMap
from hyperprune.errors import HyperpruneError
from hyperprune.plots.canvas import GREEN, GUIDE, ORANGE, PURPLE, SKY, VERMILION, new_figure
from hyperprune.plots.lanes import Lane, Row, lanes_of, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SHARED = (VERMILION, GREEN, PURPLE, ORANGE)
PRIVATE = SKY
STAYING = "#f2f2f2"
ROWS_PER_PANEL = 64
MOST_PANELS = 3
ROW = 0.2  # inches
LANE = 0.17
BARS = 2.3
LONGEST_NAME = 48
NARROWEST = 7.0


def plot_groups(coupling: CouplingMap, title: str = "") -> Figure:
    """Return a figure with one row per layer, one vertical line per group, and the layers' MACs as bars.

    A filled dot on a line is a layer that makes the group's channels, a ring one that reads them. Groups that
    several layers must agree on have a colour of their own; hatched bars are channels that stay.

    Args:
        coupling: from ``hyperize(model, x).coupling``.
        title: name of the network.

    Raises:
        HyperpruneError: when matplotlib is missing or no layer multiplies.
    """
    rows = rows_of(coupling)
    if not rows:
        raise HyperpruneError("the coupling has no layer with a weight, so there is nothing to draw")
    lanes = lanes_of(rows)
    panels = _panels(len(rows))
    columns = 1 + max((lane.column for lane in lanes), default=0)
    notes = _notes(rows)
    width = len(panels) * (_names_width(rows) + LANE * columns + BARS)
    figure = new_figure(max(NARROWEST, width), ROW * len(panels[0]) + 1.7 + 0.17 * len(notes))
    _draw_panels(figure, panels, rows, lanes, columns, notes)
    _write_heading(figure, coupling, rows, title)
    _write_legend(figure, notes)
    return figure


def _panels(rows: int) -> list[range]:
    """Cut a long network into columns of equal height."""
    count = min(MOST_PANELS, ceil(rows / ROWS_PER_PANEL))
    size = ceil(rows / count)
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def _names_width(rows: Sequence[Row]) -> float:
    """Return the inches that the longest name takes."""
    return 0.35 + 0.07 * max(len(_short(row.layer)) for row in rows)


def _notes(rows: Sequence[Row]) -> dict[str, str]:
    """Return a letter for each reason why channels stay."""
    reasons = dict.fromkeys(reason for row in rows for reason in row.stays)
    return dict(zip(reasons, ascii_lowercase, strict=False))


def _draw_panels(
    figure: Figure,
    panels: Sequence[range],
    rows: Sequence[Row],
    lanes: Sequence[Lane],
    columns: int,
    notes: dict[str, str],
) -> None:
    colours = colours_of(lanes)
    widths = [LANE * columns, BARS] * len(panels)
    axes = figure.subplots(1, 2 * len(panels), squeeze=False, width_ratios=widths)[0]
    longest = max(row.macs for row in rows)
    for panel, left, right in zip(panels, axes[0::2], axes[1::2], strict=True):
        _draw_lanes(left, rows, panel, lanes, columns, colours)
        _draw_bars(right, rows, panel, colours, notes, longest)
        for ax in (left, right):
            ax.set_ylim(panels[0].stop - panels[0].start + panel.start - 0.4, panel.start - 0.6)
            _band(ax, panel)


def colours_of(lanes: Sequence[Lane]) -> dict[int, str]:
    """Return the colour of each group: those that share layers' rows differ, private groups have one for all."""
    colours: dict[int, str] = {}
    for at, lane in enumerate(lanes):
        near = {colours[other.group] for other in lanes[:at] if lane.overlaps(other)}
        turn = at % len(SHARED)
        fresh = [colour for colour in SHARED[turn:] + SHARED[:turn] if colour not in near]
        colours[lane.group] = (fresh or SHARED)[0] if lane.shared else PRIVATE
    return colours


def _draw_lanes(
    axes: Axes, rows: Sequence[Row], panel: range, lanes: Sequence[Lane], columns: int, colours: dict[int, str]
) -> None:
    for lane in lanes:
        x, colour = lane.column, colours[lane.group]
        axes.plot([x, x], [lane.first, lane.last], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
        readers = [at for at in lane.readers if at not in lane.makers]
        axes.plot([x] * len(readers), readers, "o", color=colour, markerfacecolor="white", markersize=4.6, zorder=3)
        axes.plot([x] * len(lane.makers), lane.makers, "o", color=colour, markersize=5.6, zorder=4)
    axes.set_xlim(-0.8, columns - 0.2)
    axes.set_xticks([])
    axes.set_yticks(list(panel), [_short(rows[at].layer) for at in panel], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


def _draw_bars(
    axes: Axes, rows: Sequence[Row], panel: range, colours: dict[int, str], notes: dict[str, str], longest: int
) -> None:
    total = sum(row.macs for row in rows)
    for at in panel:
        row = rows[at]
        for start, length, group in _segments(row):
            _draw_segment(axes, at, start, length, None if group is None else colours[group])
        caption = f"{row.channels:,} ch  {_percent(row.macs / total)}{_letters(row, notes)}"
        axes.text(row.macs + 0.03 * longest, at, caption, va="center_baseline", fontsize=7.5, color=GUIDE)
    axes.set_xlim(0, 1.75 * longest)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _segments(row: Row) -> list[tuple[float, float, int | None]]:
    """Cut the layer's MACs into (start, length, group), by the groups of its output channels; None stays."""
    parts: list[tuple[int | None, int]] = [*row.makes.items(), (None, sum(row.stays.values()))]
    parts = [part for part in parts if part[1]] or [(None, 1)]
    whole = sum(count for _, count in parts)
    lengths = [row.macs * count / whole for _, count in parts]
    starts = accumulate(lengths, initial=0.0)
    return [(start, length, group) for start, length, (group, _) in zip(starts, lengths, parts, strict=False)]


def _draw_segment(axes: Axes, row: int, start: float, length: float, colour: str | None) -> None:
    if colour is None:
        axes.barh(row, length, left=start, height=0.66, color=STAYING, edgecolor=GUIDE, hatch="//////", linewidth=0.6)
    else:
        axes.barh(row, length, left=start, height=0.66, color=colour)


def _letters(row: Row, notes: dict[str, str]) -> str:
    letters = [notes[reason] for reason in row.stays if reason in notes]
    return f"  ({', '.join(letters)})" if letters else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _band(axes: Axes, panel: range) -> None:
    """Shade every other row, so that the eye keeps its line from the name to the bar."""
    for at in panel:
        if at % 2:
            axes.axhspan(at - 0.5, at + 0.5, color="#f6f7f9", zorder=0, linewidth=0)


def _short(name: str) -> str:
    """Return a name that fits beside the picture, its middle left out when it is long."""
    if len(name) <= LONGEST_NAME:
        return name
    head = LONGEST_NAME // 3
    return f"{name[:head]}…{name[head + 1 - LONGEST_NAME :]}"


def _write_heading(figure: Figure, coupling: CouplingMap, rows: Sequence[Row], title: str) -> None:
    macs = sum(row.macs for row in rows)
    counts = f"{len(rows)} layers, {len(coupling.groups)} groups of channels, {macs / 1e6:,.0f} M MACs"
    heading = f"{title}\n{counts}" if title else counts
    figure.suptitle(heading, x=0.02, ha="left", fontsize=11, fontweight="bold")


def _write_legend(figure: Figure, notes: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        _dot("a layer that makes these channels", SHARED[0]),
        _dot("a layer that reads them", "white"),
        Patch(color=SHARED[0], label="several layers share these channels"),
        Patch(color=PRIVATE, label="one layer alone makes these channels"),
        Patch(facecolor=STAYING, edgecolor=GUIDE, hatch="//////", label="channels that stay"),
    ]
    words = [
        "Line: channels that live or die together. Bar: the layer's MACs, in the colours of its output channels.",
        *(f"({letter}) stays: {reason}" for reason, letter in notes.items()),
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=8,
        title="\n".join(words),
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_linespacing(1.5)


def _dot(label: str, face: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=SHARED[0], marker="o", linewidth=2.2, markersize=5, markerfacecolor=face, label=label)
