"""From the roots of labels to the axes where they lie, and to groups of units that lie at the same places."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from hyperprune.coupling.map import STAYS, Group, Site
from hyperprune.labels import Ledger
from hyperprune.labels.ledger import Freeze, Tie
from hyperprune.labels.reasons import ALONE, AS_WIDE, SEVERAL_AXES, UNREAD
from hyperprune.plan import layer_of
from hyperprune.trace import NOWHERE, Origin, gathered

Homes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor with the root label at every position."""

    tensor: str
    axis: int
    role: str
    roots: np.ndarray


@dataclass(frozen=True)
class Grouping:
    """What may go, and where it lies.

    Attributes:
        groups: of units.
        units: the unit of every label, ``STAYS`` for those that stay, int, shape ``[labels]``.
        axes: of every tensor.
        reasons: why the roots stay that do.
    """

    groups: tuple[Group, ...]
    units: np.ndarray
    axes: list[Axis]
    reasons: Mapping[int, Freeze]

    def sites(self) -> tuple[Site, ...]:
        """Return the axes with the unit at every position, also those where all stays."""
        return tuple(Site(a.tensor, a.axis, a.role, tuple(self.units[a.roots].tolist())) for a in self.axes)


def grouped(ledger: Ledger, roots: np.ndarray) -> Grouping:
    """Group the roots that nothing froze, some gated weight reads, and that are not alone.

    Args:
        roots: the root of every label, which is one itself: int, shape ``[labels]``.
    """
    marked = _on_axes(ledger, roots)
    reasons = _reasons(ledger, roots, marked)
    axes = _axes(ledger, roots, reasons, marked)
    _require_reader(axes, reasons, _gated_rows(ledger, roots), ledger.size)
    members = _members(axes, reasons, ledger.size, _inhabited(ledger, roots))
    _require_company(members, reasons, ledger, roots)
    of_root = np.full(ledger.size, STAYS)
    of_root[[root for several in members.values() for root in several]] = np.arange(sum(map(len, members.values())))
    units = of_root[roots]
    groups = _groups(members, axes, _crossing_ties(ledger, units, members))
    return Grouping(_in_company(groups, _single_rows(ledger, units)), units, axes, reasons)


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


def _axes(ledger: Ledger, roots: np.ndarray, reasons: dict[int, Freeze], marked: np.ndarray) -> list[Axis]:
    """Return every axis of every tensor; where one used element by element varies along several, its roots stay."""
    found = [
        Axis(tensor, axis, _role(ledger, tensor, axis), roots[labels.numpy()])
        for (tensor, axis), labels in ledger.axes.items()
    ]
    for tensor, labels in ledger.elements.items():
        found += _element_axis(tensor, roots[labels.numpy()], reasons, marked)
    return found


def _role(ledger: Ledger, tensor: str, axis: int) -> str:
    if (tensor, axis) in ledger.reads:
        return "reads"
    return "writes" if (tensor, axis) in ledger.writes else "along"


def _element_axis(tensor: str, grid: np.ndarray, reasons: dict[int, Freeze], marked: np.ndarray) -> list[Axis]:
    """Find the one axis along which the roots of a directly used tensor differ; freeze them if there are more."""
    varying = [axis for axis in range(grid.ndim) if (grid != grid.take([0], axis=axis)).any()]
    if len(varying) == 1:
        index = tuple(slice(None) if axis == varying[0] else 0 for axis in range(grid.ndim))
        return [Axis(tensor, varying[0], "along", grid[index])]
    reason = SEVERAL_AXES if varying else ALONE
    for root in np.unique(grid[marked[grid]]).tolist():
        reasons.setdefault(root, Freeze(None, reason, Origin("parameter", tensor, "")))  # type: ignore[arg-type]
    return []


def _gated_rows(ledger: Ledger, roots: np.ndarray) -> np.ndarray:
    """Return the roots of the rows that are gated because a product between activations sums over them."""
    rows = [roots[ledger.axes[call.weight.name, 0][call.rows].numpy()] for call in ledger.products]
    return np.concatenate([np.zeros(0, dtype=np.int64), *rows])


def _require_reader(axes: list[Axis], reasons: dict[int, Freeze], gated: np.ndarray, size: int) -> None:
    """Let roots stay that no gated weight reads: nothing would make them zero."""
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
    axes: list[Axis], reasons: Mapping[int, Freeze], size: int, inhabited: Iterable[np.ndarray] = ()
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
    reasons.update(dict.fromkeys(lone, Freeze(None, ALONE, NOWHERE)))  # type: ignore[arg-type]
    binding = [tie for tie in ledger.ties if tie.reason or _binds(tie)] if lone else []
    for tie in sorted(binding, key=lambda tie: bool(tie.reason), reverse=True):
        for root in lone.intersection(roots[tie.left.numpy()].tolist()):
            lone.discard(root)
            reasons[root] = Freeze(tie.left, tie.reason or ALONE, tie.origin)


def _binds(tie: Tie) -> bool:
    """Say whether a tie binds several channels to a single one."""
    return len(tie.left.unique()) != len(tie.right.unique())


def _groups(members: Mapping[Homes, list[int]], axes: list[Axis], ties: Sequence[Sequence[Tie]]) -> tuple[Group, ...]:
    """Return a group for each class of roots, named after the layer that makes its channels."""
    groups: list[Group] = []
    names: Counter[str] = Counter()
    start = 0
    for (homes, roots), binding in zip(members.items(), ties, strict=True):
        makers = _modules(axes, homes, "writes")
        readers = _modules(axes, homes, "reads")
        name = (makers or _modules(axes, homes, "along") or readers)[0]
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        width = max(count for at, count in homes if at < len(axes) and axes[at].role != "reads") if makers else 1
        calls = gathered(tie.origin for tie in binding)
        groups.append(Group(unique, start, len(roots), width, makers, readers, calls, because=_because(binding)))
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


def _modules(axes: list[Axis], homes: Iterable[tuple[int, int]], role: str) -> tuple[str, ...]:
    tensors = [axes[at].tensor for at, _ in homes if at < len(axes) and axes[at].role == role]
    paths = [layer_of(tensor) or tensor for tensor in tensors]
    return tuple(dict.fromkeys(paths))


def _because(ties: Sequence[Tie]) -> tuple[tuple[str, str], ...]:
    """Say why what forward() wants equally wide goes together, with the calls of each reason."""
    calls: dict[str, list[Origin]] = defaultdict(list)
    for tie in ties:
        if tie.reason in AS_WIDE and not tie.left.equal(tie.right):
            calls[tie.reason].append(tie.origin)
    return tuple((reason, "; ".join(gathered(origins))) for reason, origins in calls.items())


def _crossing_ties(ledger: Ledger, units: np.ndarray, members: Mapping[Homes, list[int]]) -> list[list[Tie]]:
    """Return for each group the ties of its channels that calls between activations make (adds, shuffles, splits)."""
    group_of = np.repeat(np.arange(len(members)), [len(roots) for roots in members.values()])
    found: list[list[Tie]] = [[] for _ in members]
    for tie in ledger.ties:
        if _couples(tie):
            tied = units[tie.left.numpy()]
            for group in np.unique(group_of[tied[tied != STAYS]]).tolist():
                found[group].append(tie)
    return found


def _couples(tie: Tie) -> bool:
    """Say whether a tie is worth showing: a layer reading its own input is not."""
    plain = ("linear", "batch_norm", "instance_norm", "weight_norm")
    return not any(part in tie.origin.op for part in plain) and not _is_plain_convolution(tie)


def _is_plain_convolution(tie: Tie) -> bool:
    return "conv" in tie.origin.op and bool((tie.left[1:] != tie.left[:-1]).all())
