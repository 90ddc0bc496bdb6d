"""Widths before and after, and the course of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hyperprune.errors import HyperpruneError
from hyperprune.plots.canvas import BLUE, GUIDE, VERMILION, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REMOVED = "#d9d9d9"
KEPT = BLUE
ACCURACY = VERMILION
MACS = BLUE

_WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class SearchPoint:
    """The state of a search after ``step`` optimiser steps.

    Attributes:
        step: optimiser steps taken.
        macs_fraction: MACs of the living channels as a share of the dense ones, 0 to 1.
        accuracy: share of the test images classified correctly, or None where nobody looked.
    """

    step: int
    macs_fraction: float
    accuracy: float | None = None


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of one layer before and after pruning."""

    name: str
    dense: int
    slim: int


def layer_widths(dense: nn.Module, slim: nn.Module) -> tuple[LayerWidth, ...]:
    """Return the output channels of every convolution and linear layer, in the order of the modules.

    A layer that the slim model lacks counts as 0 channels.

    Example:
        >>> layer_widths(nn.Sequential(nn.Linear(2, 8)), nn.Sequential(nn.Linear(2, 3)))
        (LayerWidth(name='0', dense=8, slim=3),)
    """
    after = _widths(slim)
    return tuple(LayerWidth(name, width, after.get(name, 0)) for name, width in _widths(dense).items())


def _widths(model: nn.Module) -> dict[str, int]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)}
    return {name: _out_channels(layer) for name, layer in layers.items()}


def _out_channels(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def plot_widths(dense: nn.Module, slim: nn.Module) -> Figure:
    """Return a figure of the output channels per layer, before and after.

    Raises:
        HyperpruneError: when matplotlib is missing or the model has no weighted layer.
    """
    widths = _some_widths(dense, slim)
    figure = new_figure(7.0, _height(widths))
    _draw_widths(figure.subplots(), widths)
    return figure


def plot_search(
    history: Sequence[SearchPoint], target: float | None = None, dense_accuracy: float | None = None
) -> Figure:
    """Return a figure of the accuracy and the MACs over the search.

    Args:
        history: the points in the order of their steps.
        target: the budget as a share of the dense MACs, drawn as a guide.
        dense_accuracy: the accuracy before the search, 0 to 1, drawn as a guide.

    Raises:
        HyperpruneError: when matplotlib is missing or ``history`` is empty.
    """
    _require_history(history)
    figure = new_figure(7.0, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_search(upper, lower, history, target, dense_accuracy)
    return figure


def plot_pruning(
    dense: nn.Module,
    slim: nn.Module,
    history: Sequence[SearchPoint],
    *,
    target: float | None = None,
    dense_accuracy: float | None = None,
    title: str = "",
) -> Figure:
    """Return one figure with the widths on the left and the search on the right.

    See ``plot_widths`` and ``plot_search`` for the arguments and the errors.
    """
    widths = _some_widths(dense, slim)
    _require_history(history)
    figure = new_figure(13.0, max(6.0, _height(widths)))
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1.0), wspace=0.03, squeeze=False)[0]
    _draw_widths(left.subplots(), widths)
    upper, lower = right.subplots(2, 1, sharex=True)
    _draw_search(upper, lower, history, target, dense_accuracy)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure


def _some_widths(dense: nn.Module, slim: nn.Module) -> tuple[LayerWidth, ...]:
    widths = layer_widths(dense, slim)
    if not widths:
        raise HyperpruneError(
            f"{type(dense).__name__} has no convolution or linear layer, so there are no widths to draw; "
            "pass the dense model first and the slim one second"
        )
    return widths


def _require_history(history: Sequence[SearchPoint]) -> None:
    if not history:
        raise HyperpruneError("the search's history is empty; record a SearchPoint after search.step()")


def _height(widths: Sequence[LayerWidth]) -> float:
    """Return the inches that let every layer's name be read."""
    return 1.4 + 0.27 * len(widths)


def _draw_widths(axes: Axes, widths: Sequence[LayerWidth]) -> None:
    names = [layer.name for layer in widths]
    axes.barh(names, [layer.dense for layer in widths], color=REMOVED, label="removed")
    axes.barh(names, [layer.slim for layer in widths], color=KEPT, label="kept")
    widest = max(layer.dense for layer in widths)
    for row, layer in enumerate(widths):
        axes.text(layer.dense + 0.012 * widest, row, _caption(layer), va="center", fontsize=8, color=GUIDE)
    axes.invert_yaxis()
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.set_xlim(0, 1.13 * widest)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_xlabel("output channels")
    axes.set_title("Widths per layer", loc="left", fontsize=11)
    axes.legend(loc="upper right", frameon=False, reverse=True)
    tidy(axes, grid="x")


def _caption(layer: LayerWidth) -> str:
    return f"{layer.dense}" if layer.slim == layer.dense else f"{layer.slim} of {layer.dense}"


def _draw_search(
    upper: Axes,
    lower: Axes,
    history: Sequence[SearchPoint],
    target: float | None,
    dense_accuracy: float | None,
) -> None:
    _draw_accuracy(upper, history, dense_accuracy)
    _draw_macs(lower, history, target)
    lower.set_xlabel("search step (optimiser steps)")
    lower.set_xlim(0, 1.02 * max(1, history[-1].step))


def _draw_accuracy(axes: Axes, history: Sequence[SearchPoint], dense_accuracy: float | None) -> None:
    seen = [(point.step, 100 * point.accuracy) for point in history if point.accuracy is not None]
    axes.plot(*_columns(seen), color=ACCURACY, marker="o", markersize=4, linewidth=1.8)
    if dense_accuracy is not None:
        _guide(axes, 100 * dense_accuracy, f"dense {dense_accuracy:.1%}")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(*_accuracy_limits([percent for _, percent in seen]))
    axes.set_title("Accuracy during the search", loc="left", fontsize=11)
    tidy(axes, grid="y")


def _accuracy_limits(percents: Sequence[float]) -> tuple[float, float]:
    """Return limits that span at least five points, so that a single image is no mountain."""
    low, high = min(percents, default=0.0), max(percents, default=100.0)
    span = max(high - low, 5.0)
    return high - 1.15 * span, high + 0.1 * span


def _draw_macs(axes: Axes, history: Sequence[SearchPoint], target: float | None) -> None:
    curve = [(point.step, 100 * point.macs_fraction) for point in history]
    steps, shares = _columns(curve)
    axes.step(steps, shares, where="post", color=MACS, linewidth=1.8)
    axes.fill_between(steps, shares, step="post", color=MACS, alpha=0.12)
    if target is not None:
        _guide(axes, 100 * target, f"budget {target:.0%}")
    axes.set_ylabel("MACs (% of dense)")
    axes.set_ylim(0, 108)
    axes.set_title("Cost during the search", loc="left", fontsize=11)
    tidy(axes, grid="y")


def _columns(rows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in rows], [y for _, y in rows]


def _guide(axes: Axes, height: float, words: str) -> None:
    """Draw a dashed horizontal line at ``height`` with its meaning under the right end."""
    axes.axhline(height, color=GUIDE, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        words,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-3, -5),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GUIDE,
        fontsize=9,
    )
