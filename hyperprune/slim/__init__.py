"""Slimming: carve a smaller network of the user's own class out of a plain copy, by kept positions."""

from hyperprune.slim.carve import carve_

__all__ = ["carve_"]
