"""Slimming: carve a smaller network of the user's own class out of a plain copy, by kept positions."""

from hyperprune.slim.carve import carve_
from hyperprune.slim.sizes import changed, doubtful
from hyperprune.slim.structure import is_standard

__all__ = ["carve_", "changed", "doubtful", "is_standard"]
