"""All methods by name, in the order of the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch_pruning as tp

from benchmarks.search import ours, theirs
from benchmarks.search.ours import Maker
from examples.common.rivals import random_channels, uniform_widths
from hyperprune import sparsifiers

DENSE, DEFAULT = "dense", "fisher"
DISTILLED = ", distilled"  # what titles of methods end in that learn from the dense network too


def distilled(name: str) -> str:
    """Return the name of the method that learns from the dense network too."""
    return f"{name}-distilled"


UNPRUNED = (DENSE, distilled(DENSE))


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        title: in tables.
        variants: makers by name; the one that is best on the held-out images counts.
        family: whose it is: "ours", "baseline" or "Torch-Pruning".
        early: whether its rows are among the first to run.
        distilled: whether it learns from the dense network too, in every step.
    """

    title: str
    variants: dict[str, Maker]
    family: str
    early: bool = False
    distilled: bool = False


def _ours(title: str, maker: Maker, early: bool = False) -> Method:
    return Method(title, {"": maker}, "ours", early)


def _baseline(title: str, maker: Maker, early: bool = False) -> Method:
    return Method(title, {"": maker}, "baseline", early)


def _theirs(title: str, variants: dict[str, Maker], early: bool = False) -> Method:
    return Method(f"Torch-Pruning, {title}", variants, "Torch-Pruning", early)


METHODS: dict[str, Method] = {
    DENSE: _baseline("dense, trained as long", ours.unpruned, early=True),
    DEFAULT: _ours("search, Fisher (default)", ours.searched(sparsifiers.Fisher), early=True),
    "fisher-long": _ours("search, Fisher, twice as long", ours.searched(sparsifiers.Fisher, share=1.0)),
    "fisher-short": _ours("search, Fisher, half as long", ours.searched(sparsifiers.Fisher, share=0.25)),
    "unbalanced": _ours("search, Fisher(balance=0)", ours.searched(partial(sparsifiers.Fisher, balance=0.0))),
    "unbalanced-long": _ours(
        "search, Fisher(balance=0), twice as long", ours.searched(partial(sparsifiers.Fisher, balance=0.0), share=1.0)
    ),
    "l1": _ours("search, L1Proximal", ours.searched(sparsifiers.L1Proximal)),
    "group": _ours("search, GroupProximal", ours.searched(sparsifiers.GroupProximal)),
    "published": _ours("search, PublishedL1", ours.published),
    "binary": _ours("search, BinaryGates", ours.searched(sparsifiers.BinaryGates)),
    "hard": _ours("search, HardConcrete", ours.searched(sparsifiers.HardConcrete)),
    "magnitude": _ours("search, Magnitude", ours.searched(sparsifiers.Magnitude), early=True),
    "taylor": _ours("search, Taylor", ours.searched(sparsifiers.Taylor)),
    "uniform": _ours("search, Uniform", ours.searched(sparsifiers.Uniform), early=True),
    "uniform-long": _ours("search, Uniform, twice as long", ours.searched(sparsifiers.Uniform, share=1.0)),
    "random": _ours("search, Random", ours.seeded(sparsifiers.Random), early=True),
    "prune-magnitude": _ours("prune(criterion='magnitude')", ours.by_magnitude, early=True),
    "uniform-widths": _baseline("uniform widths, random channels", ours.at_once(uniform_widths), early=True),
    "random-channels": _baseline("random channels", ours.at_once(random_channels), early=True),
    "tp-group-norm": _theirs(
        "GroupNorm, sparse training",
        theirs.sparse(tp.pruner.GroupNormPruner, partial(tp.importance.GroupMagnitudeImportance, normalizer="max")),
        early=True,
    ),
    "tp-taylor": _theirs(
        "GroupTaylor", theirs.cut(tp.importance.GroupTaylorImportance, theirs.taylor_gradients), early=True
    ),
    "tp-hessian": _theirs(
        "GroupHessian", theirs.cut(tp.importance.GroupHessianImportance, theirs.squared_gradients), early=True
    ),
    "tp-bn-scale": _theirs(
        "BNScale, sparse training", theirs.sparse(tp.pruner.BNScalePruner, tp.importance.BNScaleImportance)
    ),
    "tp-magnitude": _theirs("group magnitude", theirs.cut(tp.importance.GroupMagnitudeImportance), early=True),
}
METHODS |= {
    distilled(name): replace(METHODS[name], title=METHODS[name].title + DISTILLED, early=False, distilled=True)
    for name in (DENSE, DEFAULT, "uniform-widths", "tp-taylor", "tp-magnitude")
}
