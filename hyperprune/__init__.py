"""hyperprune: make trained networks slim.

The way of a model through the package: trace -> labels -> coupling -> latents and generated weights -> search ->
plan -> slim -> proof.
"""

from hyperprune.budget import Budget
from hyperprune.coupling import CouplingMap
from hyperprune.errors import HyperpruneError
from hyperprune.export import export_pruned, prune
from hyperprune.generators import DHP, Lean
from hyperprune.hyper import HyperModel, hyperize
from hyperprune.plan import WidthPlan
from hyperprune.search import Search, SearchProgress
from hyperprune.sparsifiers import Fisher, L1Proximal, PublishedL1

__version__ = "0.1.0"

__all__ = [
    "DHP",
    "Budget",
    "CouplingMap",
    "Fisher",
    "HyperModel",
    "HyperpruneError",
    "L1Proximal",
    "Lean",
    "PublishedL1",
    "Search",
    "SearchProgress",
    "WidthPlan",
    "export_pruned",
    "hyperize",
    "prune",
]
