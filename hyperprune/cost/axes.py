"""Lengths of the axes that are sliced, as linear functions of how many units of each group live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperprune.coupling import STAYS, CouplingMap

Line = tuple[int, ...]
"""The unit at each position along an axis, ``STAYS`` where a channel stays."""


@dataclass(frozen=True)
class Form:
    """The length of one axis: ``own + slope . counts``.

    Attributes:
        own: positions that stay.
        slope: positions that each unit of a group takes, shape ``[groups]``.
    """

    own: int
    slope: np.ndarray

    @classmethod
    def of(cls, line: Line, coupling: CouplingMap) -> Form:
        """Read the form off an axis; all units of a group live there equally often."""
        slope = np.zeros(len(coupling.groups), dtype=np.int64)
        own, groups, each = _occurrences(line, coupling.of_unit(), _sizes(coupling))
        slope[groups] = each
        return cls(own, slope)


class Axes:
    """The lengths of up to two axes of many products at once; only slopes that are not zero are kept.

    Args:
        coupling: the network's groups.
        lines: for each product what lies along the axes in question; one that is missing has length 1.
    """

    def __init__(self, coupling: CouplingMap, lines: Sequence[Sequence[Line]]) -> None:
        self.full = _sizes(coupling)
        of_unit = coupling.of_unit()
        self._own = np.ones((2, len(lines)), dtype=np.int64)
        slopes: dict[tuple[int, int], list[int]] = {}
        for at, sides in enumerate(lines):
            for side, line in enumerate(sides):
                self._own[side, at], groups, each = _occurrences(line, of_unit, self.full)
                for group, slope in zip(groups.tolist(), each.tolist(), strict=True):
                    slopes.setdefault((group, at), [0, 0])[side] = slope
        self._lay_out(slopes)

    def _lay_out(self, slopes: dict[tuple[int, int], list[int]]) -> None:
        """Keep the slopes side by side, sorted by group."""
        order = sorted(slopes)
        self._group, self.product = np.array(order, dtype=np.int64).reshape(-1, 2).T
        self._slope = np.array([slopes[key] for key in order], dtype=np.int64).reshape(-1, 2).T
        self._groups, self._first = np.unique(self._group, return_index=True)

    def lengths(self, counts: np.ndarray) -> np.ndarray:
        """Return all lengths, shape ``[2, products]``."""
        found = self._own.copy()
        taken = self._slope * np.asarray(counts, dtype=np.int64)[self._group]
        for side in (0, 1):
            np.add.at(found[side], self.product, taken[side])
        return found

    def moved(self, lengths: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Return the lengths of ``self.product`` when one group alone changes by ``delta[g]``: ``[2, meetings]``.

        A meeting is a product and a group that takes positions along an axis of it.
        """
        return lengths[:, self.product] + self._slope * np.asarray(delta, dtype=np.int64)[self._group]

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """Add up one int64 per meeting, shape ``[groups]``."""
        found = np.zeros(len(self.full), dtype=np.int64)
        if len(values):
            found[self._groups] = np.add.reduceat(values, self._first)
        return found


def _sizes(coupling: CouplingMap) -> np.ndarray:
    return np.array([group.size for group in coupling.groups], dtype=np.int64)


def _occurrences(line: Line, of_unit: np.ndarray, full: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how many positions stay, which groups lie along an axis, and how often each unit of theirs does."""
    units = np.array(line)
    groups, counts = np.unique(of_unit[units[units != STAYS]], return_counts=True)
    return int((units == STAYS).sum()), groups, counts // full[groups]
