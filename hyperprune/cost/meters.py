"""Meters: each says what one resource costs at any widths, exactly and in whole numbers."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hyperprune.cost.axes import Axes


class Meter(Protocol):
    """The cost of one resource: the largest of one or several rows, none of which falls as units are added."""

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Return every row at these counts of units, int64 of shape ``[rows]``."""

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Return what every row gains when one group alone changes by ``delta[g]``: ``[rows, groups]``."""


class Elements:
    """A weighted sum of products of two lengths, bilinear in the counts; a meter of one row.

    Args:
        axes: the two axes of every product.
        factor: what one position along both costs, shape ``[products]``.
        rest: what does not depend on the counts.
    """

    def __init__(self, axes: Axes, factor: np.ndarray, rest: int = 0) -> None:
        self._axes = axes
        self._factor = factor
        self._rest = rest

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Return the count, shape ``[1]``."""
        return np.array([self._factor @ self._axes.lengths(counts).prod(axis=0) + self._rest])

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Return what the count gains, shape ``[1, groups]``."""
        lengths, at = self._axes.lengths(counts), self._axes.product
        gain = self._axes.moved(lengths, delta).prod(axis=0) - lengths[:, at].prod(axis=0)
        return self._axes.by_group(self._factor[at] * gain)[None]


class Moments:
    """The largest of several linear functions of the counts: one row for each moment of a forward pass.

    Args:
        own: what each row costs with no unit alive, shape ``[rows]``.
        slope: what each unit of a group adds to a row, at least 0, shape ``[rows, groups]``.

    Example:
        >>> peak = Moments(np.array([8, 0]), np.array([[4, 0], [2, 3]]))
        >>> peak.values(np.array([2, 5]))
        array([16, 19])
    """

    def __init__(self, own: np.ndarray, slope: np.ndarray) -> None:
        self._own = own
        self._slope = slope

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Return every row, shape ``[rows]``."""
        return self._own + self._slope @ np.asarray(counts, dtype=np.int64)

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Return what every row gains, shape ``[rows, groups]``."""
        return self._slope * np.asarray(delta, dtype=np.int64)
