"""Coupling: units (channels that live or die together), groups of units, and the sites where they lie."""

from hyperprune.coupling.build import build
from hyperprune.coupling.map import STAYS, CouplingMap, Frozen, Group, Norm, Site, Size, Tensor

__all__ = ["STAYS", "CouplingMap", "Frozen", "Group", "Norm", "Site", "Size", "Tensor", "build"]
