"""Sparsifiers: what presses the latents to zero, and how important each unit is.

A ``Sparsifier`` is a score, an action and an ending; ``Fisher``, ``L1Proximal`` and ``PublishedL1`` name the
combinations that have a name. The budget solver and the schedule belong to ``Search``.
"""

from hyperprune.sparsifiers.actions import Cut, Fade, Shrink, soft_threshold
from hyperprune.sparsifiers.base import Action, Ending, Press, Score, Sparsifier
from hyperprune.sparsifiers.rules import Fisher, L1Proximal, PublishedL1, PublishedStop
from hyperprune.sparsifiers.scores import Saliency, Size

__all__ = [
    "Action",
    "Cut",
    "Ending",
    "Fade",
    "Fisher",
    "L1Proximal",
    "Press",
    "PublishedL1",
    "PublishedStop",
    "Saliency",
    "Score",
    "Shrink",
    "Size",
    "Sparsifier",
    "soft_threshold",
]
