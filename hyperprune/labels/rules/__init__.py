"""The rules, by kind of operation. Importing this package registers all of them."""

from hyperprune.labels.rules import (
    attention,
    elementwise,
    layers,
    movement,
    pooling,
    recurrent,
    reductions,
    spectral,
    splitting,
)

__all__ = [
    "attention",
    "elementwise",
    "layers",
    "movement",
    "pooling",
    "recurrent",
    "reductions",
    "spectral",
    "splitting",
]
