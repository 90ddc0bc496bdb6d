"""From a ledger of ties and freezes to the coupling map."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import prod

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hyperprune.coupling.components import components
from hyperprune.coupling.map import STAYS, CouplingMap, Frozen, Group, Norm, Product, Site, Size, Tensor, Use
from hyperprune.labels import Ledger
from hyperprune.labels.ledger import ELASTIC, Freeze, Tie
from hyperprune.labels.reasons import (
    ALONE,
    COMPUTED,
    EDITED,
    INEXACT,
    KEPT,
    PARAMETRIZED,
    SEVERAL_AXES,
    SIZE_IN_FORWARD,
    TIED,
    TOO_LARGE,
    UNREAD,
)
from hyperprune.plan import layer_of
from hyperprune.trace import Origin

Heir = tuple[str, str]
Follower = tuple[str, bool]
Held = tuple[str, int, tuple[int, ...]]
Homes = tuple[tuple[int, int], ...]
_NOWHERE = Origin("", "", "")


@dataclass(frozen=True)
class _Axis:
    """One axis of a tensor with the root label at every position."""

    tensor: str
    axis: int
    role: str
    roots: np.ndarray


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
    _freeze_shared(ledger, model)
    _freeze_parametrized(ledger, model)
    _freeze_closed(ledger, closed)
    _freeze_held(ledger, held)
    _freeze_edited(ledger, edited or {})
    _freeze_kept(ledger, kept)
    _freeze_mixed_use(ledger)
    roots = _solve(ledger)
    if _tie_unused(ledger, roots):
        roots = _solve(ledger)
    marked = _on_axes(ledger, roots)
    reasons = _reasons(ledger, roots, marked)
    axes = _axes(ledger, roots, reasons, marked)
    _require_reader(axes, reasons, _gated_rows(ledger, roots), ledger.size)
    members = _members(axes, reasons, ledger.size, _inhabited(ledger, roots))
    _require_company(members, reasons, ledger, roots)
    units = np.full(ledger.size, STAYS)
    units[[root for roots_ in members.values() for root in roots_]] = np.arange(sum(map(len, members.values())))
    of_label = units[roots]
    sites = tuple(Site(axis.tensor, axis.axis, axis.role, tuple(units[axis.roots].tolist())) for axis in axes)
    groups = _groups(members, axes, _crossing_ties(ledger, of_label, members))
    return CouplingMap(
        groups=_in_company(groups, _single_rows(ledger, of_label)),
        sites=tuple(site for site in sites if any(unit != STAYS for unit in site.units)),
        frozen=_frozen(axes, reasons),
        tensors=_tensors(ledger),
        sizes=(*_inherited(_sizes(ledger, of_label), heirs), *_of_own_layers(sites, followers)),
        norms=_norms(ledger, of_label),
        products=_products(ledger, of_label),
        standardised=_standardised(ledger, of_label),
        unreached=tuple(sorted(unreached)),
        uses=_uses(ledger, of_label),
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


def _on_axes(ledger: Ledger, roots: np.ndarray) -> np.ndarray:
    """Mark the roots that lie along an axis of some tensor: no other can become a unit. Bool, ``[labels]``."""
    marked = np.zeros(ledger.size, dtype=bool)
    for labels in ledger.axes.values():
        marked[roots[labels.numpy()]] = True
    return marked


def _reasons(ledger: Ledger, roots: np.ndarray, marked: np.ndarray) -> dict[int, Freeze]:
    """Return the first reason for which each frozen root must stay."""
    found: dict[int, Freeze] = {}
    for freeze in ledger.freezes:
        frozen = roots[freeze.labels.numpy()]
        for root in np.unique(frozen[marked[frozen]]).tolist():
            found.setdefault(root, freeze)
    return found


def _freeze_shared(ledger: Ledger, model: nn.Module) -> None:
    """Tensors that two modules share stay whole: slicing one would have to slice the other."""
    for name, other in shared_tensors(model).items():
        _hold(ledger, name, f"{TIED} (also {other})")


def _freeze_closed(ledger: Ledger, closed: Iterable[str]) -> None:
    for path in closed:
        _hold_module(ledger, path, SIZE_IN_FORWARD)


def _freeze_parametrized(ledger: Ledger, model: nn.Module) -> None:
    """A weight that the user's own parametrization makes stays whole, but for weight norm's that a rule followed.

    Of those no row may be gated: a row of zeros has no length to be divided by.
    """
    followed = {layer_of(tensor) for tensor in ledger.normed}
    paths = {
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if is_parametrized(module) and (path not in followed or len(module.parametrizations) > 1)
    }
    rows = [product.channels for product in ledger.products if product.weight.name in ledger.normed]
    ledger.freezes += [Freeze(channels, PARAMETRIZED, _NOWHERE) for channels in rows]
    if not paths:
        return
    for at, freeze in enumerate(ledger.freezes):
        if freeze.reason == COMPUTED and freeze.origin.module in paths:
            ledger.freezes[at] = replace(freeze, reason=PARAMETRIZED)
    for path in paths:
        _hold_module(ledger, path, PARAMETRIZED)


def _hold_module(ledger: Ledger, path: str, reason: str) -> None:
    for tensor in ledger.tensors:
        if tensor.startswith(f"{path}." if path else ""):
            _hold(ledger, tensor, reason, Origin("", path, ""))


def _freeze_held(ledger: Ledger, held: Iterable[Held]) -> None:
    for tensor, axis, positions in held:
        if (tensor, axis) in ledger.axes:
            labels = ledger.axes[tensor, axis][list(positions)]
            ledger.freezes.append(Freeze(labels, INEXACT, Origin("", tensor.rpartition(".")[0], "")))


def _freeze_edited(ledger: Ledger, edited: Mapping[str, Iterable[str]]) -> None:
    """A generated weight would not take what forward() writes; two tensors that it mixes must keep one shape."""
    products = (tensor for call in ledger.products for tensor in (call.weight, call.bias) if tensor is not None)
    generated = {name for name, _ in ledger.reads} | {tensor.name for tensor in products}
    for name, others in edited.items():
        for held in (name, *others) if others or name in generated else ():
            _hold(ledger, held, EDITED)


def _hold(ledger: Ledger, tensor: str, reason: str, origin: Origin = _NOWHERE) -> None:
    """Freeze every label that a tensor has, along its axes and of its elements."""
    labels = [vector for (name, _), vector in ledger.axes.items() if name == tensor]
    if tensor in ledger.elements:
        labels.append(ledger.elements[tensor].reshape(-1))
    ledger.freezes += [Freeze(vector, reason, origin) for vector in labels]


def _freeze_kept(ledger: Ledger, kept: frozenset[str]) -> None:
    for tensor, axis in sorted(ledger.writes):
        path = layer_of(tensor)
        if path in kept:
            ledger.freezes.append(Freeze(ledger.axes[tensor, axis], KEPT, Origin("", path, "")))


def _freeze_mixed_use(ledger: Ledger) -> None:
    """A tensor used both as a weight and element by element has two sets of labels: neither may go."""
    weights = {name for name, _ in ledger.axes}
    for name in sorted(weights & set(ledger.elements)):
        _hold(ledger, name, SEVERAL_AXES)
    for name in sorted(weights & set(ledger.unlabelled)):
        _hold(ledger, name, TOO_LARGE)


def shared_tensors(model: nn.Module) -> dict[str, str]:
    """Return the names of tensors that two different modules hold, each with another of its names."""
    seen: dict[int, tuple[str, nn.Module]] = {}
    shared: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                name = f"{path}.{key}" if path else key
                other, home = seen.setdefault(id(tensor), (name, module))
                if home is not module:
                    shared[name], shared[other] = other, name
    return shared


def _axes(ledger: Ledger, roots: np.ndarray, reasons: dict[int, Freeze], marked: np.ndarray) -> list[_Axis]:
    found = [
        _Axis(tensor, axis, _role(ledger, tensor, axis), roots[labels.numpy()])
        for (tensor, axis), labels in ledger.axes.items()
    ]
    for tensor, labels in ledger.elements.items():
        found += _element_axis(tensor, roots[labels.numpy()], reasons, marked)
    return found


def _role(ledger: Ledger, tensor: str, axis: int) -> str:
    if (tensor, axis) in ledger.reads:
        return "reads"
    return "writes" if (tensor, axis) in ledger.writes else "along"


def _element_axis(tensor: str, grid: np.ndarray, reasons: dict[int, Freeze], marked: np.ndarray) -> list[_Axis]:
    """Find the one axis along which the roots of a directly used tensor differ; freeze them if there are more."""
    varying = [axis for axis in range(grid.ndim) if (grid != grid.take([0], axis=axis)).any()]
    if len(varying) == 1:
        index = tuple(slice(None) if axis == varying[0] else 0 for axis in range(grid.ndim))
        return [_Axis(tensor, varying[0], "along", grid[index])]
    for root in np.unique(grid[marked[grid]]).tolist():
        reasons.setdefault(root, Freeze(None, SEVERAL_AXES, Origin("parameter", tensor, "")))  # type: ignore[arg-type]
    return []


def _gated_rows(ledger: Ledger, roots: np.ndarray) -> np.ndarray:
    """Return the roots of the rows that are gated because a product between activations sums over them."""
    rows = [roots[ledger.axes[call.weight.name, 0][call.rows].numpy()] for call in ledger.products]
    return np.concatenate([np.zeros(0, dtype=np.int64), *rows])


def _require_reader(axes: list[_Axis], reasons: dict[int, Freeze], gated: np.ndarray, size: int) -> None:
    read = np.zeros(size, dtype=bool)
    for roots in (gated, *(axis.roots for axis in axes if axis.role == "reads")):
        read[roots] = True
    for axis in axes:
        for root in np.unique(axis.roots[~read[axis.roots]]).tolist():
            reasons.setdefault(root, Freeze(None, UNREAD, Origin("", axis.tensor, "")))  # type: ignore[arg-type]


def _inhabited(ledger: Ledger, roots: np.ndarray) -> list[np.ndarray]:
    """Return the roots of each value that may not lose its last channel, the smallest values first."""
    found = {tuple(np.unique(roots[labels.numpy()]).tolist()): None for labels in ledger.inhabited}
    return [np.array(value, dtype=np.int64) for value in sorted(found, key=len)]


def _members(
    axes: list[_Axis], reasons: Mapping[int, Freeze], size: int, inhabited: Iterable[np.ndarray] = ()
) -> dict[Homes, list[int]]:
    """Collect prunable roots by the sites they live at, with how often each occurs there.

    The partition is refined axis by axis: roots that shared a class and occur equally often on this axis share
    the next class. Every class keeps a unit; so a value that may not lose its last channel, and holds neither a
    whole class nor a channel that stays, makes classes of its own.
    """
    free = np.ones(size, dtype=bool)
    free[list(reasons)] = False
    kind = np.zeros(size, dtype=np.int64)
    homes: list[Homes] = [()]
    counted: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # a norm's vectors have the roots of the layer before it
    for at, axis in enumerate(axes):
        key = axis.roots.tobytes()
        if key not in counted:
            counted[key] = np.unique(axis.roots[free[axis.roots]], return_counts=True)
        found, counts = counted[key]
        most = int(counts.max(initial=0)) + 1
        pairs, inverse = np.unique(kind[found] * most + counts, return_inverse=True)
        kind[found] = len(homes) + inverse
        homes += [(*homes[pair // most], (at, pair % most)) for pair in pairs.tolist()]
    for at, found in enumerate(inhabited, start=len(axes)):
        old, inverse, counts = np.unique(kind[found], return_inverse=True, return_counts=True)
        if kind[found].all() and not (counts == np.bincount(kind)[old]).any():
            kind[found] = len(homes) + inverse
            homes += [(*homes[before], (at, 1)) for before in old.tolist()]
    members: dict[Homes, list[int]] = defaultdict(list)
    for root in np.flatnonzero(kind).tolist():
        members[homes[kind[root]]].append(root)
    return dict(members)


def _require_company(
    members: dict[Homes, list[int]], reasons: dict[int, Freeze], ledger: Ledger, roots: np.ndarray
) -> None:
    """A lone unit would take its whole layer along; it stays, for the call that bound its channels to each other."""
    keys = [key for key, roots_ in members.items() if len(roots_) == 1]
    lone = {root for key in keys for root in members.pop(key)}
    reasons.update(dict.fromkeys(lone, Freeze(None, ALONE, _NOWHERE)))  # type: ignore[arg-type]
    binding = [tie for tie in ledger.ties if tie.reason or _binds(tie)] if lone else []
    for tie in sorted(binding, key=lambda tie: bool(tie.reason), reverse=True):
        for root in lone.intersection(roots[tie.left.numpy()].tolist()):
            lone.discard(root)
            reasons[root] = Freeze(tie.left, tie.reason or ALONE, tie.origin)


def _binds(tie: Tie) -> bool:
    """Say whether a tie binds several channels to a single one."""
    return len(tie.left.unique()) != len(tie.right.unique())


def _groups(members: Mapping[Homes, list[int]], axes: list[_Axis], ties: Sequence[Iterable[str]]) -> tuple[Group, ...]:
    groups: list[Group] = []
    names: Counter[str] = Counter()
    start = 0
    for (homes, roots), calls in zip(members.items(), ties, strict=True):
        makers = _modules(axes, homes, "writes")
        readers = _modules(axes, homes, "reads")
        name = (makers or _modules(axes, homes, "along") or readers)[0]
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        width = max(count for at, count in homes if at < len(axes) and axes[at].role != "reads") if makers else 1
        groups.append(Group(unique, start, len(roots), width, makers, readers, tuple(sorted(calls))))
        start += len(roots)
    return tuple(groups)


def _single_rows(ledger: Ledger, units: np.ndarray) -> list[np.ndarray]:
    """Return the units of each axis that must not shrink to a single channel.

    That is what each standardised weight of 1 x 1 reads, for torch refuses to standardise a single number, and what
    rules found.
    """
    pointwise = [name for name in ledger.standardised if prod(ledger.tensors[name].shape[2:]) == 1]
    rows = [units[labels.numpy()] for labels in (*(ledger.axes[name, 1] for name in pointwise), *ledger.paired)]
    return [row for row in rows if (row == STAYS).sum() < 2]


def _in_company(groups: tuple[Group, ...], rows: list[np.ndarray]) -> tuple[Group, ...]:
    """Let two units stay of a group that alone fills a row which needs two."""
    filled = {(int(units[0]), len(units)) for units in map(np.unique, rows)}
    return tuple(replace(group, least=2) if (group.start, group.size) in filled else group for group in groups)


def _modules(axes: list[_Axis], homes: Iterable[tuple[int, int]], role: str) -> tuple[str, ...]:
    tensors = [axes[at].tensor for at, _ in homes if at < len(axes) and axes[at].role == role]
    paths = [layer_of(tensor) or tensor for tensor in tensors]
    return tuple(dict.fromkeys(paths))


def _crossing_ties(ledger: Ledger, units: np.ndarray, members: Mapping[Homes, list[int]]) -> list[set[str]]:
    """Say for each group which calls between activations (adds, shuffles, splits) tied channels of it."""
    group_of = np.repeat(np.arange(len(members)), [len(roots) for roots in members.values()])
    found: list[set[str]] = [set() for _ in members]
    for tie in ledger.ties:
        if _couples(tie):
            tied = units[tie.left.numpy()]
            for group in np.unique(group_of[tied[tied != STAYS]]).tolist():
                found[group].add(str(tie.origin))
    return found


def _couples(tie: Tie) -> bool:
    """Say whether a tie is worth showing: a layer reading its own input is not."""
    plain = ("linear", "batch_norm", "instance_norm", "weight_norm")
    return not any(part in tie.origin.op for part in plain) and not _is_plain_convolution(tie)


def _is_plain_convolution(tie: Tie) -> bool:
    return "conv" in tie.origin.op and bool((tie.left[1:] != tie.left[:-1]).all())


def _frozen(axes: list[_Axis], reasons: Mapping[int, Freeze]) -> tuple[Frozen, ...]:
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


def _tensors(ledger: Ledger) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(ref.name, ref.shape, ledger.positions.get(ref.name, 0))
        for ref in ledger.tensors.values()
        if ref.is_parameter or ref.name in ledger.positions
    )


def _uses(ledger: Ledger, units: np.ndarray) -> tuple[Use, ...]:
    """Return the calls that follow other widths; ``units`` holds the unit of every label."""
    found = []
    for call in ledger.uses:
        lines = [units[line.numpy()] for line in call.lines]
        sliced = tuple(tuple(line.tolist()) for line in lines if (line != STAYS).any())
        found.append(Use(call.tensor, call.macs, sliced))
    return tuple(found)


def _sizes(ledger: Ledger, units: np.ndarray) -> tuple[Size, ...]:
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


def _inherited(sizes: tuple[Size, ...], heirs: Iterable[Heir]) -> tuple[Size, ...]:
    """Add the sizes on an heir's line of the nearest module around it once more, for the heir."""
    holders = sorted({size.module for size in sizes}, key=len)
    inside: list[Size] = []
    for heir, line in heirs:
        around = [module for module in holders if lies_inside(heir, module)][-1:]
        inside += [replace(size, module=heir) for size in sizes if size.module in around and size.source == line]
    return (*sizes, *inside)


def _of_own_layers(sites: Iterable[Site], followers: Iterable[Follower]) -> tuple[Size, ...]:
    """Return the widths of the layers inside each follower, as sizes that no call holds."""
    found: dict[Size, None] = {}
    for path, of_first in followers:
        inside = [site for site in sites if site.role != "along" and lies_inside(layer_of(site.tensor), path)]
        if of_first:
            inside = [site for site in inside if site.role == "reads"][:1]
        changing = [site.units for site in inside if set(site.units) != {STAYS}]
        found |= dict.fromkeys(Size("", path, tuple((unit,) for unit in units)) for units in changing)
    return tuple(found)


def _norms(ledger: Ledger, units: np.ndarray) -> tuple[Norm, ...]:
    """Return the norms that read prunable channels; ``units`` holds the unit of every label."""
    found: dict[Norm, list[str]] = {}
    for call in ledger.norms:
        here = units[call.labels.numpy()]
        if (here != STAYS).any():
            layout = (call.axis, call.groups, call.kind, call.spatial, call.offset)
            nodes = found.setdefault(Norm(call.weight, tuple(here.tolist()), *layout), [])
            nodes += [call.node] if call.node else []
    return tuple(replace(norm, nodes=tuple(nodes)) for norm, nodes in found.items())


def _products(ledger: Ledger, units: np.ndarray) -> tuple[Product, ...]:
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


def _standardised(ledger: Ledger, units: np.ndarray) -> tuple[str, ...]:
    """Return the standardised weights that read prunable channels; ``units`` holds the unit of every label."""
    found = [name for name in ledger.standardised if (units[ledger.axes[name, 1].numpy()] != STAYS).any()]
    return tuple(sorted(found))
