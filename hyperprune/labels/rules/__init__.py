"""The rules, by kind of operation. Importing this package registers all of them."""

from hyperprune.labels.rules import elementwise, layers, movement, pooling, reductions, splitting

__all__ = ["elementwise", "layers", "movement", "pooling", "reductions", "splitting"]
