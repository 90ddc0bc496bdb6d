"""Memory of activations at any widths: recorded on a few networks, then a linear function of the counts.

How long a tensor lives is decided by the user's Python and is the same at every width. How large it is follows the
length of some axis of a weight, a norm or a bias beside it. So a few networks of random widths tell for each tensor
which axis that is; a tensor that follows none counts at its full size, which can only be too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperprune.cost import Form, Moments
from hyperprune.coupling import CouplingMap
from hyperprune.errors import BudgetError
from hyperprune.hyper import HyperModel
from hyperprune.metering.networks import Tailor
from hyperprune.metering.recorder import Storage, record

MOST_PROBES = 12


@dataclass(frozen=True, eq=False)
class Activations:
    """Every piece of memory that a forward pass takes: ``own + slope . counts`` bytes, and when it lives.

    Attributes:
        own: bytes with no unit alive, int64 of shape ``[pieces]``.
        slope: bytes that one unit of each group adds, shape ``[pieces, groups]``.
        born: the call that takes it, shape ``[pieces]``.
        died: the first call after it is given back, shape ``[pieces]``.
        fixed: pieces whose size was seen to change but follows no axis: they count at their full size.
    """

    own: np.ndarray
    slope: np.ndarray
    born: np.ndarray
    died: np.ndarray
    fixed: int

    def peak(self) -> Moments:
        """Return a meter of the most bytes alive at one time."""
        moments = range(int(self.born.max(initial=0)) + 1)
        alive = np.array([(self.born <= at) & (at < self.died) for at in moments], dtype=np.int64)
        rows = np.concatenate([(alive @ self.own)[:, None], alive @ self.slope], axis=1)
        highest = _undominated(rows)
        return Moments(highest[:, 0], highest[:, 1:])


def measure_activations(hyper: HyperModel) -> Activations:
    """Record a forward pass on the example inputs at several widths, and say what each tensor's size follows.

    Raises:
        BudgetError: the network makes other calls at other widths, so its memory cannot be told from its widths.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4))
        >>> int(measure_activations(hyper).peak().values([8]).max())  # two tensors of 3 x 8 floats at a time
        192
    """
    tailor, forms = Tailor(hyper), _forms(hyper.coupling)
    full = hyper.cost.full
    probes = _probes(forms, full)
    dense, *seen = [_recorded(tailor, counts) for counts in (full, *probes)]
    if any([(s.born, s.died) for s in run] != [(s.born, s.died) for s in dense] for run in seen):
        raise BudgetError(
            "activation_bytes cannot be budgeted: the network makes other calls, or keeps tensors for longer, at other "
            "widths. Budget macs= or params= instead."
        )
    sizes = np.array([[storage.bytes for storage in run] for run in seen], dtype=np.int64)
    return _explained(dense, sizes, forms, full, probes)


def _recorded(tailor: Tailor, counts: np.ndarray) -> list[Storage]:
    network = tailor.of_counts(counts)
    given = [*network.parameters(), *network.buffers(), *tailor.inputs.tensors()]
    return record(lambda: tailor.run(network), given)


def _forms(coupling: CouplingMap) -> list[Form]:
    """Return every way in which an axis of a tensor follows the counts, each proportion once."""
    found: dict[tuple[float, ...], Form] = {}
    sizes = np.array([group.size for group in coupling.groups])
    for site in coupling.sites:
        form = Form.of(site.units, coupling)
        full = form.own + int(form.slope @ sizes)
        found.setdefault(tuple(np.round(np.array([form.own, *form.slope]) / full, 12)), form)
    return list(found.values())


def _probes(forms: Sequence[Form], full: np.ndarray) -> list[np.ndarray]:
    """Draw counts until no two forms are in proportion on all of them."""
    rng, probes = np.random.default_rng(0), [np.maximum(1, full // 2)]
    while len(probes) < 2 or (len(probes) < MOST_PROBES and not _told_apart(forms, full, probes)):
        probes.append(rng.integers(np.minimum(2, full), full + 1))
    return probes


def _lengths(forms: Sequence[Form], counts: np.ndarray) -> np.ndarray:
    return np.array([form.own + int(form.slope @ counts) for form in forms], dtype=np.int64)


def _told_apart(forms: Sequence[Form], full: np.ndarray, probes: Sequence[np.ndarray]) -> bool:
    dense = _lengths(forms, full)
    shares = np.round([_lengths(forms, counts) / dense for counts in probes], 12)
    return len(np.unique(shares, axis=1).T) == len(forms) and bool((shares != 1).any(axis=0).all())


def _explained(
    dense: Sequence[Storage], sizes: np.ndarray, forms: Sequence[Form], full: np.ndarray, probes: Sequence[np.ndarray]
) -> Activations:
    """Find for each piece the form that its size is in proportion to on every probe."""
    own = np.array([storage.bytes for storage in dense], dtype=np.int64)
    slope = np.zeros((len(dense), len(full)), dtype=np.int64)
    lengths = np.array([_lengths(forms, counts) for counts in probes])
    whole = _lengths(forms, full)
    parts = np.array([[form.own, *form.slope] for form in forms], dtype=np.int64)
    fixed = 0
    for at in np.flatnonzero((sizes != own).any(axis=0)).tolist():
        follows = (sizes[:, at, None] * whole == own[at] * lengths).all(axis=0)
        follows &= (own[at] * parts % whole[:, None] == 0).all(axis=1)
        if follows.any():
            which = int(np.argmax(follows))
            own[at], *slope[at] = own[at] * parts[which] // whole[which]
        fixed += not follows.any()
    born, died = (np.array([getattr(storage, name) for storage in dense]) for name in ("born", "died"))
    return Activations(own, slope, born, died, fixed)


def _undominated(rows: np.ndarray) -> np.ndarray:
    """Drop every row that another one is nowhere below: it is never the peak alone."""
    rows = np.unique(rows, axis=0)[::-1]
    kept: list[np.ndarray] = []
    for row in rows[np.argsort(-rows.sum(axis=1), kind="stable")]:
        if not any((row <= other).all() for other in kept):
            kept.append(row)
    return np.array(kept)
