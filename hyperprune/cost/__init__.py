"""Cost: what a network costs at any widths, by formula and by measured models, and by an independent counter."""

from hyperprune.cost.axes import Axes, Form
from hyperprune.cost.counters import CountedCost, count_with_fvcore
from hyperprune.cost.latency import Clock, LatencyModel, LayerTable
from hyperprune.cost.meters import Elements, Meter, Moments
from hyperprune.cost.model import CHEAPEST, Cost, CostModel

__all__ = [
    "CHEAPEST",
    "Axes",
    "Clock",
    "Cost",
    "CostModel",
    "CountedCost",
    "Elements",
    "Form",
    "LatencyModel",
    "LayerTable",
    "Meter",
    "Moments",
    "count_with_fvcore",
]
