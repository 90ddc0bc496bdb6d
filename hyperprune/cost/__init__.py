"""Cost: MACs and parameters of a network at any widths, by formula, and by an independent counter."""

from hyperprune.cost.counters import CountedCost, count_with_fvcore
from hyperprune.cost.model import Cost, CostModel

__all__ = ["Cost", "CostModel", "CountedCost", "count_with_fvcore"]
