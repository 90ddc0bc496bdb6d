"""A number before and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A number of the dense network and the same of the slim one.

    Example:
        >>> Change(8, 6).kept
        0.75
        >>> Change.total([Change(8, 6), Change(2, 2)])
        Change(dense=10, slim=8)
    """

    dense: float
    slim: float

    @property
    def kept(self) -> float:
        """What is left, as a share of the dense number; 1 where there was nothing."""
        return self.slim / self.dense if self.dense else 1.0

    @classmethod
    def total(cls, changes: Iterable[Change]) -> Change:
        """Add up both sides."""
        pairs = list(changes)
        return cls(sum(pair.dense for pair in pairs), sum(pair.slim for pair in pairs))
