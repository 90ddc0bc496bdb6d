"""Coupling: units (channels that live or die together), groups of units, and the sites where they lie."""

from hyperprune.coupling.build import Heir, build, lies_inside
from hyperprune.coupling.map import STAYS, CouplingMap, Frozen, Group, Norm, Product, Site, Size, Tensor

__all__ = [
    "STAYS",
    "CouplingMap",
    "Frozen",
    "Group",
    "Heir",
    "Norm",
    "Product",
    "Site",
    "Size",
    "Tensor",
    "build",
    "lies_inside",
]
