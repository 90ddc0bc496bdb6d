"""The budget, and the solver that meets it exactly: never above, and within one unit below."""

from hyperprune.budget.ladder import Ladder
from hyperprune.budget.request import Budget, shown
from hyperprune.budget.solver import Solver

__all__ = ["Budget", "Ladder", "Solver", "shown"]
