"""The widths that each group may have."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from hyperprune.budget.request import Budget
from hyperprune.coupling import Branch, Group
from hyperprune.errors import BudgetError


@dataclass(frozen=True)
class Ladder:
    """The widths each group may have: full, or a multiple of its step, from its lowest to its highest.

    Attributes:
        names: of the groups.
        full: units per group, shape ``[groups]``.
        step: units by which a width changes, shape ``[groups]``.
        lowest: the smallest allowed width, shape ``[groups]``.
        highest: the largest allowed width, shape ``[groups]``.
        branches: groups, as indices, that reach a width of zero together only.
    """

    names: tuple[str, ...]
    full: np.ndarray
    step: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    branches: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, groups: tuple[Group, ...], budget: Budget, branches: Iterable[Branch] = ()) -> Ladder:
        """Work out the allowed widths from the budget's divisor, floors and ceilings.

        Args:
            branches: residual branches that may be closed, if the budget allows it.

        Raises:
            BudgetError: a pattern matches no group, or a floor lies above a ceiling.
        """
        full = np.array([group.size for group in groups], dtype=np.int64)
        width = np.array([group.width for group in groups], dtype=np.int64)
        step = np.array([budget.divisor // math.gcd(budget.divisor, group.width) for group in groups], dtype=np.int64)
        floors = _bounds("floors", groups, budget.floors, {g.name: g.least * g.width for g in groups}, max)
        ceilings = _bounds("ceilings", groups, budget.ceilings, {g.name: g.size * g.width for g in groups}, min)
        lowest = np.minimum(full, -(-np.maximum(budget.floor, -(-floors // width)) // step) * step)
        within = ceilings // width
        highest = np.where(within >= full, full, within // step * step)
        _require_room(groups, budget, lowest, highest, ceilings)
        open_to = (branch for branch in branches if budget.depth and _may_close(branch, budget, floors, width))
        closable = tuple(branch.groups for branch in open_to)
        for together in closable:
            lowest[list(together)] = 0
        return cls(tuple(group.name for group in groups), full, step, lowest, highest, closable)

    def closed(self, counts: np.ndarray) -> np.ndarray:
        """Return the widths where a group without units takes its whole branch along."""
        counts = counts.copy()
        for together in self.branches:
            if not counts[list(together)].all():
                counts[list(together)] = 0
        return counts

    def bare(self) -> np.ndarray:
        """Return the smallest widths that the divisor alone allows, shape ``[groups]``."""
        return np.minimum(self.lowest, np.minimum(self.full, self.step))

    def down(self, counts: np.ndarray) -> np.ndarray:
        """Return the next smaller allowed width of each group, or the present one at the lowest."""
        return np.where(counts > self.lowest, np.maximum((counts - 1) // self.step * self.step, self.lowest), counts)

    def up(self, counts: np.ndarray) -> np.ndarray:
        """Return the next larger allowed width of each group, or the present one at the highest."""
        return np.minimum((counts // self.step + 1) * self.step, self.highest)

    def rungs(self, group: int) -> np.ndarray:
        """Return all allowed widths of one group, the largest first."""
        lowest, highest, step = (int(bound[group]) for bound in (self.lowest, self.highest, self.step))
        below = np.arange((highest - 1) // step * step, lowest - 1, -step)
        found = np.concatenate([[highest], below, [lowest]])
        return np.unique(found)[::-1]


def _may_close(branch: Branch, budget: Budget, floors: np.ndarray, width: np.ndarray) -> bool:
    at = list(branch.groups)
    return budget.floor == 1 and bool((floors[at] <= width[at]).all())


def _bounds(
    what: str,
    groups: tuple[Group, ...],
    asked: Mapping[str, int],
    default: Mapping[str, int],
    stricter: Callable[[int, int], int],
) -> np.ndarray:
    """Return how many channels bound each group, shape ``[groups]``."""
    found = dict(default)
    for pattern, channels in asked.items():
        hits = [group.name for group in groups if _matches(pattern, group)]
        if not hits:
            raise BudgetError(f"{what}: no prunable layer matches {pattern!r}.{_nearest(pattern, groups)}")
        for name in hits:
            found[name] = stricter(found[name], channels)
    return np.array([found[group.name] for group in groups], dtype=np.int64)


def _matches(pattern: str, group: Group) -> bool:
    """Say whether a pattern names the group, a layer that makes its channels, or a module around one."""
    paths = {group.name, *group.makers}
    around = {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 2)}
    return any(fnmatchcase(path, pattern) for path in around)


def _nearest(pattern: str, groups: tuple[Group, ...]) -> str:
    names = sorted({name for group in groups for name in (group.name, *group.makers)})
    near = difflib.get_close_matches(pattern, names, n=3)
    return f" Did you mean {', '.join(near)}?" if near else " print(hyper.coupling) lists them."


def _require_room(
    groups: tuple[Group, ...], budget: Budget, lowest: np.ndarray, highest: np.ndarray, ceilings: np.ndarray
) -> None:
    for at in np.flatnonzero(lowest > highest).tolist():
        group = groups[at]
        least, all_of_it = lowest[at] * group.width, group.size * group.width
        raise BudgetError(
            f"{group.name}: a ceiling of {ceilings[at]} channels leaves no width. With its floor and divisor="
            f"{budget.divisor} it keeps at least {least} of its {all_of_it} channels. "
            "Raise the ceiling, or lower the floor or divisor=."
        )
