"""Sparsifiers: what presses the latents to zero, and how important each unit is.

All share one small interface (``Sparsifier``); the budget solver and the schedule belong to ``Search``.
"""

from hyperprune.sparsifiers.base import Press, Sparsifier
from hyperprune.sparsifiers.dhp import PublishedL1
from hyperprune.sparsifiers.fisher import Fisher
from hyperprune.sparsifiers.l1 import L1Proximal
from hyperprune.sparsifiers.proximal import soft_threshold

__all__ = ["Fisher", "L1Proximal", "Press", "PublishedL1", "Sparsifier", "soft_threshold"]
