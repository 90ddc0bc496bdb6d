"""Sparsifiers: what presses the latents to zero, and how important each unit is.

A ``Sparsifier`` is a score, an action and an ending; ``Fisher``, ``L1Proximal``, ``BinaryGates`` and their like name
the combinations that have a name. The budget solver and the schedule belong to ``Search``.
"""

from hyperprune.sparsifiers.actions import Cut, Fade, Shrink, soft_threshold
from hyperprune.sparsifiers.base import Action, Ending, Press, Score, Sparsifier
from hyperprune.sparsifiers.baselines import FirstOrder, Magnitude, Random, SignedFirstOrder, Taylor, Uniform
from hyperprune.sparsifiers.gates import BinaryGates, Gates, HardConcrete
from hyperprune.sparsifiers.priced import Balanced
from hyperprune.sparsifiers.proximal import block_threshold, euclidean_threshold
from hyperprune.sparsifiers.rules import Fisher, GroupProximal, L1Proximal, PublishedL1, PublishedStop
from hyperprune.sparsifiers.scores import Saliency, Size

__all__ = [
    "Action",
    "Balanced",
    "BinaryGates",
    "Cut",
    "Ending",
    "Fade",
    "FirstOrder",
    "Fisher",
    "Gates",
    "GroupProximal",
    "HardConcrete",
    "L1Proximal",
    "Magnitude",
    "Press",
    "PublishedL1",
    "PublishedStop",
    "Random",
    "Saliency",
    "Score",
    "Shrink",
    "SignedFirstOrder",
    "Size",
    "Sparsifier",
    "Taylor",
    "Uniform",
    "block_threshold",
    "euclidean_threshold",
    "soft_threshold",
]
