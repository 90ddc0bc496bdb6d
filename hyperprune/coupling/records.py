"""From the ledger's calls, once units are known, to the map's own records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain, repeat

import numpy as np

from hyperprune.coupling.grouping import Axis
from hyperprune.coupling.map import STAYS, Frozen, Norm, Product, Site, Size, Tensor, Use
from hyperprune.labels import Ledger
from hyperprune.labels.ledger import Freeze
from hyperprune.plan import layer_of

Heir = tuple[str, str]
Follower = tuple[str, bool]


def frozen_of(axes: list[Axis], reasons: Mapping[int, Freeze]) -> tuple[Frozen, ...]:
    """Return how many channels of each layer stay, and why."""
    found: list[Frozen] = []
    for axis in axes:
        if axis.role != "writes":
            continue
        counts: Counter[tuple[str, str]] = Counter()
        for root in axis.roots.tolist():
            if root in reasons:
                where = reasons[root].origin
                counts[reasons[root].reason, str(where) if where.op else where.module] += 1
        layer = layer_of(axis.tensor) or axis.tensor
        found += [Frozen(layer, count, reason, where) for (reason, where), count in counts.items()]
    return tuple(found)


def tensors_of(ledger: Ledger) -> tuple[Tensor, ...]:
    """Return what was met, each with the number of positions at which calls apply it as a weight."""
    return tuple(
        Tensor(ref.name, ref.shape, ledger.positions.get(ref.name, 0))
        for ref in ledger.tensors.values()
        if ref.is_parameter or ref.name in ledger.positions
    )


def uses_of(ledger: Ledger, units: np.ndarray) -> tuple[Use, ...]:
    """Return the calls that follow other widths; ``units`` holds the unit of every label."""
    found = []
    for call in ledger.uses:
        lines = [units[line.numpy()] for line in call.lines]
        sliced = tuple(tuple(line.tolist()) for line in lines if (line != STAYS).any())
        found.append(Use(call.tensor, call.macs, sliced))
    return tuple(found)


def sizes_of(ledger: Ledger, units: np.ndarray) -> tuple[Size, ...]:
    """Return the sizes that change; ``units`` holds the unit of every label."""
    found: dict[Size, None] = {}
    for call in ledger.sized:
        for extent, parts in zip(call.extents, chain([call.parts], repeat(())), strict=False):
            here = units[extent.numpy()]
            if (here != STAYS).any():
                slots = tuple(tuple(np.unique(row).tolist()) for row in here)
                found[Size(call.node, call.origin.module, slots, call.origin.source, parts)] = None
    return tuple(found)


def lies_inside(path: str, module: str) -> bool:
    """Say whether a module lies inside another; the network itself has the empty path.

    Example:
        >>> lies_inside("layer1.0", "layer1"), lies_inside("layer1", ""), lies_inside("layer1", "layer1")
        (True, True, False)
    """
    return path != module and (not module or path.startswith(f"{module}."))


def inherited(sizes: tuple[Size, ...], heirs: Iterable[Heir]) -> tuple[Size, ...]:
    """Add the sizes on an heir's line of the nearest module around it once more, for the heir."""
    holders = sorted({size.module for size in sizes}, key=len)
    inside: list[Size] = []
    for heir, line in sorted(heirs):
        around = [module for module in holders if lies_inside(heir, module)][-1:]
        inside += [replace(size, module=heir) for size in sizes if size.module in around and size.source == line]
    return (*sizes, *inside)


def of_own_layers(sites: Iterable[Site], followers: Iterable[Follower]) -> tuple[Size, ...]:
    """Return the widths of the layers inside each follower, as sizes that no call holds."""
    found: dict[Size, None] = {}
    for path, of_first in sorted(followers):
        inside = [site for site in sites if site.role != "along" and lies_inside(layer_of(site.tensor), path)]
        if of_first:
            inside = [site for site in inside if site.role == "reads"][:1]
        changing = [site.units for site in inside if set(site.units) != {STAYS}]
        found |= dict.fromkeys(Size("", path, tuple((unit,) for unit in units)) for units in changing)
    return tuple(found)


def norms_of(ledger: Ledger, units: np.ndarray) -> tuple[Norm, ...]:
    """Return the norms that read prunable channels; ``units`` holds the unit of every label."""
    found: dict[Norm, list[str]] = {}
    for call in ledger.norms:
        here = units[call.labels.numpy()]
        if (here != STAYS).any():
            layout = (call.axis, call.groups, call.kind, call.spatial, call.offset, call.correction)
            nodes = found.setdefault(Norm(call.weight, tuple(here.tolist()), *layout), [])
            nodes += [call.node] if call.node else []
    return tuple(replace(norm, nodes=tuple(nodes)) for norm, nodes in found.items())


def products_of(ledger: Ledger, units: np.ndarray) -> tuple[Product, ...]:
    """Return the products that sum over prunable channels; ``units`` holds the unit of every label."""
    found: dict[Product, None] = {}
    for call in ledger.products:
        slots = units[call.channels.numpy()]
        if (slots != STAYS).any():
            names = tuple(tensor.name for tensor in (call.weight, call.bias) if tensor is not None)
            here = units[ledger.axes[call.weight.name, 0][call.rows].numpy()]
            rows, living = tuple(call.rows.tolist()), tuple(here.tolist())
            found[Product(call.node, names, rows, living, tuple(slots.tolist()), call.rooted)] = None
    return tuple(found)


def standardised_of(ledger: Ledger, units: np.ndarray) -> tuple[str, ...]:
    """Return the standardised weights that read prunable channels; ``units`` holds the unit of every label."""
    found = [name for name in ledger.standardised if (units[ledger.axes[name, 1].numpy()] != STAYS).any()]
    return tuple(sorted(found))
