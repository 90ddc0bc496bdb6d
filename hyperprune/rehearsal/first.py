"""What reading to begin with, where a network itself says which one leaves more to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.fx

from hyperprune.coupling import CouplingMap
from hyperprune.labels import convolutions_in_wide_groups, norms_in_groups
from hyperprune.labels.reasons import ALONE, AS_WIDE
from hyperprune.rehearsal.choices import Choices, Couple


def first_readings(graphs: Sequence[torch.fx.Graph], couple: Couple) -> list[tuple[Choices, CouplingMap]]:
    """Return the readings to begin with, the best first, and the maps that they give.

    It is what leaves more combinations of widths. Group norms are all read alike: a stream of which one norm wants
    whole groups, and another the same channels of every group, would have to stay whole. So are the convolutions of
    few and wide groups; how these are read otherwise comes second, for the rest of the network may not allow the first.
    """
    norms, convolutions = norms_in_groups(graphs), convolutions_in_wide_groups(graphs)
    readings = [(Choices(), couple(Choices()))]
    for calls in (norms, convolutions):
        if calls:
            other = readings[0][0].next(calls)
            readings = sorted([readings[0], (other, couple(other))], key=_combinations, reverse=True)
    return readings if convolutions else readings[:1]


def _combinations(reading: tuple[Choices, CouplingMap]) -> int:
    return prod(group.size for group in reading[1].groups)


def tied(coupling: CouplingMap) -> int:
    """Return how many channels stay because all of them would have to go at once."""
    return sum(frozen.channels for frozen in coupling.frozen if frozen.reason in (ALONE, *AS_WIDE))
