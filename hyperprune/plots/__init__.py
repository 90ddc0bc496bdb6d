"""Pictures of a network and of its pruning; needs the extra ``plots``.

Each function returns a matplotlib Figure and touches no global state of pyplot. ``save_figure``
writes it to a file.
"""

from hyperprune.plots.canvas import save_figure
from hyperprune.plots.groups import plot_groups
from hyperprune.plots.lanes import Lane, Row, lanes_of, rows_of
from hyperprune.plots.pruning import (
    LayerWidth,
    SearchPoint,
    layer_widths,
    plot_pruning,
    plot_search,
    plot_widths,
)

__all__ = [
    "Lane",
    "LayerWidth",
    "Row",
    "SearchPoint",
    "lanes_of",
    "layer_widths",
    "plot_groups",
    "plot_pruning",
    "plot_search",
    "plot_widths",
    "rows_of",
    "save_figure",
]
