"""What all pictures share: colours, an empty figure, axes without clutter, and the way to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hyperprune.errors import HyperpruneError
from hyperprune.files import draft_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey print.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
GUIDE = "#666666"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches.

    Raises:
        HyperpruneError: when matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise HyperpruneError(
            "pictures need matplotlib, which is not installed: pip install 'hyperprune[plots]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return figure


def tidy(axes: Axes, grid: str) -> None:
    """Leave the left and the lower edge, and a light grid behind the data along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#ececec", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` to ``path`` (the suffix names the format) whole or not at all; return the path.

    Raises:
        FileError: the file cannot be written; what stood there before is intact.
        HyperpruneError: matplotlib knows no format of this suffix.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if Path(path).suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise HyperpruneError(f"no picture can be written as {Path(path).name!r}; end it in .png, .svg or .pdf")
    with draft_of(path) as draft:
        figure.savefig(draft, dpi=150)
    return Path(path)
