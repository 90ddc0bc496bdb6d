"""From a ledger of ties and freezes to the coupling map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from hyperprune.coupling.components import components
from hyperprune.coupling.freezing import Held, freeze_
from hyperprune.coupling.grouping import grouped
from hyperprune.coupling.map import STAYS, CouplingMap
from hyperprune.coupling.records import (
    Follower,
    Heir,
    frozen_of,
    inherited,
    norms_of,
    of_own_layers,
    products_of,
    sizes_of,
    standardised_of,
    tensors_of,
    uses_of,
)
from hyperprune.labels import Ledger
from hyperprune.labels.ledger import ELASTIC, Tie
from hyperprune.trace import Origin


def build(
    ledger: Ledger,
    model: nn.Module,
    unreached: Iterable[str] = (),
    closed: Iterable[str] = (),
    kept: frozenset[str] = frozenset(),
    heirs: Iterable[Heir] = (),
    followers: Iterable[Follower] = (),
    held: Iterable[Held] = (),
    edited: Mapping[str, Iterable[str]] | None = None,
) -> CouplingMap:
    """Solve the ledger's ties and lay out units, groups and sites.

    A unit is prunable if nothing froze it, some gated weight reads it, and its group has another unit left.

    Args:
        ledger: what the rules wrote down.
        model: the network, to find tensors that modules share.
        unreached: parameters that no trace reached, for the report.
        closed: modules whose channels all stay.
        kept: modules whose output channels the user keeps.
        heirs: modules that take over the sizes on one line of the module around them, with that line.
        followers: modules that hold widths of their own layers, or, if so marked, only what the first of them reads.
        held: positions along an axis of a tensor whose channels stay.
        edited: parameters that forward() itself writes to while the network trains, with what it mixes into them.
    """
    freeze_(ledger, model, closed, kept, held, edited or {})
    roots = _solve(ledger)
    if _tie_unused(ledger, roots):
        roots = _solve(ledger)
    found = grouped(ledger, roots)
    sites = found.sites()
    return CouplingMap(
        groups=found.groups,
        sites=tuple(site for site in sites if any(unit != STAYS for unit in site.units)),
        frozen=frozen_of(found.axes, found.reasons),
        tensors=tensors_of(ledger),
        sizes=(*inherited(sizes_of(ledger, found.units), heirs), *of_own_layers(sites, followers)),
        norms=norms_of(ledger, found.units),
        products=products_of(ledger, found.units),
        standardised=standardised_of(ledger, found.units),
        unreached=tuple(sorted(unreached)),
        uses=uses_of(ledger, found.units),
    )


def _solve(ledger: Ledger) -> np.ndarray:
    if not ledger.ties:
        return np.arange(ledger.size)
    left = np.concatenate([tie.left.numpy() for tie in ledger.ties])
    right = np.concatenate([tie.right.numpy() for tie in ledger.ties])
    real = (left != ELASTIC) & (right != ELASTIC)
    return components(ledger.size, left[real], right[real])


def _tie_unused(ledger: Ledger, roots: np.ndarray) -> bool:
    """Let elements of tables that these inputs do not reach follow their channel; say whether there are any.

    A table of 50 positions of which 8 are used loses the same channels everywhere.
    """
    alone = np.bincount(roots, minlength=ledger.size) == 1
    for freeze in ledger.freezes:
        alone[roots[freeze.labels.numpy()]] = False
    ties = [tie for name, labels in ledger.elements.items() if (tie := _to_reached(name, labels, roots, alone))]
    ledger.ties += ties
    return bool(ties)


def _to_reached(name: str, labels: torch.Tensor, roots: np.ndarray, alone: np.ndarray) -> Tie | None:
    grid = roots[labels.numpy()]
    reached = ~alone[grid]
    if not reached.any() or reached.all():
        return None
    for axis in range(grid.ndim):
        others = tuple(at for at in range(grid.ndim) if at != axis)
        lowest = np.where(reached, grid, alone.size).min(axis=others, keepdims=True)
        highest = np.where(reached, grid, -1).max(axis=others, keepdims=True)
        if (lowest == highest).all():
            left = torch.from_numpy(np.broadcast_to(lowest, grid.shape).copy())
            return Tie(left.reshape(-1), labels.reshape(-1), Origin("parameter", name, ""))
    return None
