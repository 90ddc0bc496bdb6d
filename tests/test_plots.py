"""The pictures show the numbers they were given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperprune import hyperize
from hyperprune.coupling import CouplingMap
from hyperprune.errors import HyperpruneError
from hyperprune.plots import (
    LayerWidth,
    SearchPoint,
    lanes_of,
    layer_widths,
    plot_groups,
    plot_pruning,
    plot_search,
    plot_widths,
    rows_of,
    save_figure,
)
from hyperprune.plots.groups import PRIVATE, colours_of
from tests.models import residual

HISTORY = (SearchPoint(0, 1.0, 0.9), SearchPoint(1, 0.8), SearchPoint(2, 0.5, 0.7))


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ConvTranspose2d(width, 2 * width, 2),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def test_widths_are_those_of_convolutions_and_linear_layers_in_order() -> None:
    assert layer_widths(network(8), network(3)) == (
        LayerWidth("0", 8, 3),
        LayerWidth("2", 16, 6),
        LayerWidth("4", 10, 10),
    )


def test_a_layer_missing_from_the_slim_model_counts_as_zero() -> None:
    assert layer_widths(network(8), nn.Sequential())[0] == LayerWidth("0", 8, 0)


def test_the_bars_are_as_long_as_the_layers_are_wide() -> None:
    (axes,) = plot_widths(network(8), network(3)).axes
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == [8, 16, 10]
    assert [bar.get_width() for bar in after] == [3, 6, 10]
    assert [label.get_text() for label in axes.texts] == ["3 of 8", "6 of 16", "10"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "4"]


def test_the_search_is_drawn_in_percent_and_skips_steps_where_nobody_looked() -> None:
    accuracy, macs = plot_search(HISTORY, target=0.5, dense_accuracy=0.92).axes
    assert list(accuracy.lines[0].get_xdata()) == [0, 2]
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([90, 70])
    assert list(macs.lines[0].get_ydata()) == pytest.approx([100, 80, 50])
    assert [axes.texts[0].get_text() for axes in (accuracy, macs)] == ["dense 92.0%", "budget 50%"]


def test_every_axis_with_numbers_says_what_it_counts() -> None:
    widths, accuracy, macs = plot_pruning(network(8), network(3), HISTORY).axes
    assert widths.get_xlabel() == "output channels"
    assert accuracy.get_ylabel() == "test accuracy (%)"
    assert macs.get_ylabel() == "MACs (% of dense)"
    assert macs.get_xlabel() == "search step (optimiser steps)"


def test_a_flat_accuracy_is_drawn_on_at_least_five_points() -> None:
    flat = [SearchPoint(0, 1.0, 0.998), SearchPoint(1, 0.5, 1.0)]
    low, high = plot_search(flat).axes[0].get_ylim()
    assert high - low >= 5
    assert low < 99.8 < 100 < high


def test_a_saved_figure_is_a_whole_png_and_leaves_no_draft(tmp_path: Path) -> None:
    path = save_figure(plot_widths(network(8), network(3)), tmp_path / "new" / "widths.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["widths.png"]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path) -> None:
    class Broken:
        def savefig(self, draft: str, dpi: int) -> None:
            Path(draft).write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "widths.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save_figure(Broken(), path)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_is_never_imported_by_a_picture() -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_widths(network(8), network(3))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HyperpruneError, match=r"pip install 'hyperprune\[plots\]'"):
        plot_search(HISTORY)


def test_nothing_to_draw_is_an_error_that_says_so() -> None:
    with pytest.raises(HyperpruneError, match="history is empty"):
        plot_search([])
    with pytest.raises(HyperpruneError, match="no convolution or linear layer"):
        plot_widths(nn.ReLU(), nn.ReLU())


@pytest.fixture(scope="module")
def coupling() -> CouplingMap:
    return hyperize(residual(), torch.zeros(1, 3, 8, 8)).coupling


def test_rows_are_the_layers_in_the_order_they_run_with_all_macs(coupling: CouplingMap) -> None:
    rows = rows_of(coupling)
    assert [row.layer for row in rows] == [
        "stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "fc",
    ]  # fmt: skip
    model = residual()
    assert [row.macs for row in rows[:-1]] == [64 * model.get_submodule(row.layer).weight.numel() for row in rows[:-1]]
    assert [row.channels for row in rows] == [6, 8, 6, 8, 6, 3]
    assert rows[-1].stays == {"is the model's output": 3}


def test_a_layer_called_before_another_that_was_built_earlier_stands_above_it() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 2), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    rows = rows_of(hyperize(Backwards(), torch.zeros(1, 4)).coupling)
    assert [row.layer for row in rows] == ["first", "last"]


def test_lanes_span_makers_and_readers_and_never_meet(coupling: CouplingMap) -> None:
    lanes = {lane.group: lane for lane in lanes_of(rows_of(coupling))}
    stream = lanes[0]
    assert (stream.makers, stream.readers, stream.shared) == ((0, 2, 4), (1, 3, 5), True)
    assert [(lane.first, lane.last, lane.shared) for lane in (lanes[1], lanes[2])] == [(1, 2, False), (3, 4, False)]
    assert not any(
        one.column == other.column and one.overlaps(other)
        for one in lanes.values()
        for other in lanes.values()
        if one is not other
    )


def test_groups_that_layers_share_have_a_colour_of_their_own(coupling: CouplingMap) -> None:
    colours = colours_of(lanes_of(rows_of(coupling)))
    assert colours[0] != PRIVATE
    assert colours[1] == colours[2] == PRIVATE


def test_the_picture_of_groups_shows_every_layer_its_line_and_its_macs(coupling: CouplingMap) -> None:
    figure = plot_groups(coupling, "tests/residual")
    lanes, bars = figure.axes
    rows = rows_of(coupling)
    assert [label.get_text() for label in lanes.get_yticklabels()] == [row.layer for row in rows]
    assert list(lanes.lines[0].get_ydata()) == [0, 5]
    segments = [patch for patch in bars.patches if patch.get_height() < 1]
    assert [patch.get_width() for patch in segments] == [row.macs for row in rows]
    assert segments[-1].get_hatch()
    assert bars.texts[-1].get_text().endswith("(a)")
    assert figure.get_suptitle().startswith("tests/residual\n6 layers, 3 groups of channels")
    assert "(a) stays: is the model's output" in figure.legends[0].get_title().get_text()


def test_a_long_network_stands_in_columns_of_equal_height() -> None:
    layers = [layer for _ in range(70) for layer in (nn.Linear(4, 4), nn.ReLU())]
    figure = plot_groups(hyperize(nn.Sequential(*layers), torch.zeros(1, 4)).coupling)
    names = [len(axes.get_yticklabels()) for axes in figure.axes[0::2]]
    assert names == [35, 35]
    assert [axes.get_ylim() for axes in figure.axes[0::2]] == [(34.6, -0.6), (69.6, 34.4)]


def test_a_coupling_without_layers_has_no_picture() -> None:
    with pytest.raises(HyperpruneError, match="nothing to draw"):
        plot_groups(CouplingMap((), (), (), ()))


def test_a_suffix_that_names_no_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match=r"end it in \.png"):
        save_figure(plot_widths(network(8), network(3)), tmp_path / "widths.txt")
    assert list(tmp_path.iterdir()) == []
