"""Where the layers and groups of a network stand in its picture: rows and lanes, as plain data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hyperprune.coupling import STAYS, CouplingMap
from hyperprune.plan import layer_of


@dataclass(frozen=True)
class Row:
    """One layer, in the order in which layers run.

    Attributes:
        layer: path of the module that owns the weight.
        macs: multiply-adds of its weights.
        makes: its output channels by the index of their group.
        stays: its output channels that stay, by the reason.
        reads: indices of the groups that arrive at its input.
    """

    layer: str
    macs: int
    makes: dict[int, int]
    stays: dict[str, int]
    reads: frozenset[int]

    @property
    def channels(self) -> int:
        """All output channels."""
        return sum(self.makes.values()) + sum(self.stays.values())


@dataclass(frozen=True)
class Lane:
    """The line of one group, from the first layer it passes to the last.

    Attributes:
        group: index of the group.
        column: where the line stands; lanes of one column never meet.
        makers: rows of the layers that make its channels, rising.
        readers: rows of the layers that read them, rising.
    """

    group: int
    column: int
    makers: tuple[int, ...]
    readers: tuple[int, ...]

    @property
    def first(self) -> int:
        """Row where the line begins."""
        return min(self.makers + self.readers)

    @property
    def last(self) -> int:
        """Row where it ends."""
        return max(self.makers + self.readers)

    @property
    def shared(self) -> bool:
        """Whether several layers must agree on these channels."""
        return len(self.makers) > 1

    def overlaps(self, other: Lane) -> bool:
        """Whether the two lines pass a common row."""
        return self.first <= other.last and other.first <= self.last


def rows_of(coupling: CouplingMap) -> tuple[Row, ...]:
    """Return one row per layer that multiplies, in the order in which they run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4))
        >>> [(row.layer, row.macs, row.channels) for row in rows_of(hyper.coupling)]
        [('0', 32, 8), ('2', 16, 2)]
    """
    macs: Counter[str] = Counter()
    for use in coupling.costs:
        if use.macs and use.tensor:
            macs[_layer(use.tensor)] += use.macs
    makes, reads = _groups_at(coupling, "writes"), _groups_at(coupling, "reads")
    stays: dict[str, Counter[str]] = defaultdict(Counter)
    for frozen in coupling.frozen:
        stays[frozen.layer][frozen.reason] += frozen.channels
    return tuple(
        Row(layer, count, dict(makes[layer]), dict(stays[layer]), frozenset(reads[layer]))
        for layer, count in macs.items()
    )


def _groups_at(coupling: CouplingMap, role: str) -> dict[str, Counter[int]]:
    """Return for each layer how many channels of each group it has on its input or output side."""
    of_unit = coupling.of_unit()
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for site in coupling.sites:
        if site.role == role:
            found[_layer(site.tensor)].update(int(of_unit[unit]) for unit in site.units if unit != STAYS)
    return found


def _layer(tensor: str) -> str:
    return layer_of(tensor) or tensor


def lanes_of(rows: Iterable[Row]) -> tuple[Lane, ...]:
    """Give every group a column, shared and long ones to the left, so that no two lanes touch.

    Example:
        >>> chain = [Row("a", 1, {0: 8}, {}, frozenset()), Row("b", 1, {1: 8}, {}, frozenset({0}))]
        >>> [(lane.group, lane.column, lane.first, lane.last) for lane in lanes_of(chain)]
        [(0, 0, 0, 1), (1, 1, 1, 1)]
    """
    makers: dict[int, list[int]] = defaultdict(list)
    readers: dict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        for group in row.makes:
            makers[group].append(at)
        for group in row.reads:
            readers[group].append(at)
    groups = makers.keys() | readers.keys()
    loose = [Lane(group, 0, tuple(makers[group]), tuple(readers[group])) for group in groups]
    return _placed(sorted(loose, key=lambda lane: (not lane.shared, lane.first, -lane.last, lane.group)))


def _placed(lanes: Iterable[Lane]) -> tuple[Lane, ...]:
    columns: list[list[Lane]] = []
    placed: list[Lane] = []
    for lane in lanes:
        free = (at for at, others in enumerate(columns) if not any(map(lane.overlaps, others)))
        column = next(free, len(columns))
        if column == len(columns):
            columns.append([])
        placed.append(Lane(lane.group, column, lane.makers, lane.readers))
        columns[column].append(lane)
    return tuple(placed)
