"""Generators: how a layer's weight is made from latents. ``Lean`` is the default, ``DHP`` the paper's own."""

from hyperprune.generators.base import Generated, Generator, attach, detach, generated, withdraw_
from hyperprune.generators.dhp import DHP
from hyperprune.generators.lean import Lean

__all__ = ["DHP", "Generated", "Generator", "Lean", "attach", "detach", "generated", "withdraw_"]
