"""What reading to begin with, where a network itself says which one leaves more to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.fx

from hyperprune.coupling import CouplingMap
from hyperprune.labels import convolutions_in_wide_groups, norms_in_groups
from hyperprune.rehearsal.choices import Choices, Couple


def first_reading(graphs: Sequence[torch.fx.Graph], couple: Couple) -> tuple[Choices, CouplingMap]:
    """Return the readings to begin with, and the map that they give: what leaves more combinations of widths.

    Group norms are all read alike: a stream of which one norm wants whole groups, and another the same channels of
    every group, would have to stay whole. So are the convolutions of few and wide groups.
    """
    best = Choices(), couple(Choices())
    for calls in (norms_in_groups(graphs), convolutions_in_wide_groups(graphs)):
        if calls:
            other = best[0].next(calls)
            best = max(best, (other, couple(other)), key=_combinations)
    return best


def _combinations(reading: tuple[Choices, CouplingMap]) -> int:
    return prod(group.size for group in reading[1].groups)
