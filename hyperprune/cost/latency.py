"""Latency at any widths: measured tables of layers, and what passes through memory between them.

    latency = scale x (sum of layers, each looked up at its present widths) + per_byte x bytes written + constant

The three numbers are fitted to whole networks of random widths, so caches, norms, activations and the overhead of
each call are in them. Every term is rounded to whole nanoseconds, so that the solver's sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Protocol

import numpy as np

from hyperprune.cost.axes import Axes


class Clock(Protocol):
    """Times real networks."""

    def ratio(self, alive: np.ndarray) -> float:
        """Return how long the slim network takes, as a share of the dense one; units bool, ``[units]``."""


@dataclass(frozen=True)
class LayerTable:
    """One layer, timed at a ladder of widths along the two axes of its weight.

    Attributes:
        tensor: name of the weight.
        rows: lengths of its first axis at which it was timed, ascending.
        columns: likewise for its second axis.
        nanoseconds: what all calls of the layer take in one pass, shape ``[rows, columns]``; it never falls.
    """

    tensor: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    nanoseconds: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Written:
    """The bytes that a pass writes: ``own + slope . counts``."""

    own: int
    slope: tuple[int, ...]


@dataclass(frozen=True)
class LatencyModel:
    """Predicts how long a forward pass takes at any widths; a meter of one row. ``print`` says how well.

    Attributes:
        axes: lengths of the first two axes of every timed weight.
        tables: for each of these weights what was measured.
        written: bytes that a pass writes.
        scale: nanoseconds in the network for a nanosecond in a table.
        per_byte: nanoseconds for a byte written.
        constant: nanoseconds that depend on no width.
        dense_ns: the dense network's latency.
        errors: for networks of random widths that a fit had not seen: predicted / measured - 1.
        device: where it was measured.
        divisor: channels are multiples of this in the networks it was fitted to.
        clock: times real networks on the same device.
    """

    axes: Axes
    tables: tuple[LayerTable, ...]
    written: Written
    scale: float
    per_byte: float
    constant: float
    dense_ns: int
    errors: tuple[float, ...]
    device: str
    divisor: int
    clock: Clock

    @property
    def error(self) -> float:
        """The median relative error on networks that the fit had not seen."""
        return median(abs(error) for error in self.errors)

    @property
    def worst(self) -> float:
        """The largest relative error on networks that the fit had not seen."""
        return max(abs(error) for error in self.errors)

    def __str__(self) -> str:
        return (
            f"latency on {self.device}: dense {self.dense_ns / 1e6:.3f} ms; on {len(self.errors)} networks of random "
            f"widths that a fit had not seen it is off by {self.error:.1%} (median), {self.worst:.1%} (worst)"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> LatencyModel:
        """Nothing in it changes, so a copy of a search shares it."""
        return self

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Return the predicted nanoseconds, shape ``[1]``."""
        layers = self._layers(np.arange(len(self.tables)), self.axes.lengths(counts))
        return np.array([layers.sum() + self._rest(np.array([self._bytes(counts)]))[0]])

    def changes(self, counts: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Return what the prediction gains, shape ``[1, groups]``."""
        lengths, at = self.axes.lengths(counts), self.axes.product
        before = self._layers(np.arange(len(self.tables)), lengths)[at]
        gain = self.axes.by_group(self._layers(at, self.axes.moved(lengths, delta)) - before)
        written = self._bytes(counts)
        more = written + np.asarray(self.written.slope, dtype=np.int64) * np.asarray(delta, dtype=np.int64)
        return (gain + self._rest(more) - self._rest(np.array([written])))[None]

    def features(self, counts: np.ndarray) -> np.ndarray:
        """Return what the fit weighs: nanoseconds of the tables, bytes written, 1. Shape ``[3]``."""
        plain = replace(self, scale=1.0)
        tables = plain._layers(np.arange(len(self.tables)), self.axes.lengths(counts)).sum()
        return np.array([tables, self._bytes(counts), 1.0])

    def _bytes(self, counts: np.ndarray) -> int:
        slope = np.asarray(self.written.slope, dtype=np.int64)
        return int(self.written.own + slope @ np.asarray(counts, dtype=np.int64))

    def _rest(self, written: np.ndarray) -> np.ndarray:
        return np.rint(self.per_byte * written + self.constant).astype(np.int64)

    def _layers(self, at: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return nanoseconds of the tables ``at`` at these lengths, ``[2, len(at)]``, by bilinear interpolation."""
        if not len(at):
            return np.zeros(0, dtype=np.int64)
        rows, columns, times = self._stacked
        (i, u), (j, v) = (_place(grid[at], length) for grid, length in zip((rows, columns), lengths, strict=True))
        low = times[at, i, j] * (1 - v) + times[at, i, j + 1] * v
        high = times[at, i + 1, j] * (1 - v) + times[at, i + 1, j + 1] * v
        return np.rint(self.scale * (low * (1 - u) + high * u)).astype(np.int64)

    @cached_property
    def _stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All tables side by side, made equally long by repeating their last entries."""
        longest = max(len(lengths) for table in self.tables for lengths in (table.rows, table.columns))
        size = max(longest, 2)
        rows = np.array([_padded(table.rows, size) for table in self.tables])
        columns = np.array([_padded(table.columns, size) for table in self.tables])
        shapes = [((0, size - len(t.rows)), (0, size - len(t.columns))) for t in self.tables]
        times = np.array([np.pad(t.nanoseconds, s, mode="edge") for t, s in zip(self.tables, shapes, strict=True)])
        return rows, columns, times


def _padded(values: Sequence[int], size: int) -> np.ndarray:
    return np.pad(np.array(values, dtype=np.float64), (0, size - len(values)), mode="edge")


def _place(grid: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say between which two entries of each grid a length lies, and how far along; outside, the last one counts."""
    at = np.clip((grid <= lengths[:, None]).sum(axis=1) - 1, 0, grid.shape[1] - 2)
    index = np.arange(len(grid))
    below, above = grid[index, at], grid[index, at + 1]
    share = np.where(above > below, (lengths - below) / np.maximum(above - below, 1e-300), 0.0)
    return at, np.clip(share, 0.0, 1.0)
