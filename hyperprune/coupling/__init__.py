"""Coupling: units (channels that live or die together), groups of units, and the sites where they lie."""

from hyperprune.coupling.branches import find_branches
from hyperprune.coupling.build import build
from hyperprune.coupling.freezing import Held
from hyperprune.coupling.map import STAYS, Branch, CouplingMap, Frozen, Group, Norm, Product, Site, Size, Tensor, Use
from hyperprune.coupling.records import Follower, Heir, lies_inside

__all__ = [
    "STAYS",
    "Branch",
    "CouplingMap",
    "Follower",
    "Frozen",
    "Group",
    "Heir",
    "Held",
    "Norm",
    "Product",
    "Site",
    "Size",
    "Tensor",
    "Use",
    "build",
    "find_branches",
    "lies_inside",
]
