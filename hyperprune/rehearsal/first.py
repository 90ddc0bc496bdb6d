"""What reading to begin with, where a network itself says which one leaves more to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.fx

from hyperprune.coupling import CouplingMap
from hyperprune.labels import convolutions_in_wide_groups, norms_in_groups
from hyperprune.labels.reasons import ALONE
from hyperprune.rehearsal.choices import Choices, Couple


def first_readings(graphs: Sequence[torch.fx.Graph], couple: Couple) -> list[tuple[Choices, CouplingMap]]:
    """Return the readings to begin with, the best first, and the maps that they give.

    It is what leaves more combinations of widths. Group norms are all read alike: a stream of which one norm wants
    whole groups, and another the same channels of every group, would have to stay whole. So are the convolutions of
    few and wide groups; how these are read otherwise comes second, for the rest of the network may not allow the first.
    """
    norms, convolutions = norms_in_groups(graphs), convolutions_in_wide_groups(graphs)
    likeliest = _ranked([Choices(), *([Choices().next(norms)] if norms else [])], couple)[0]
    if not convolutions:
        return [likeliest]
    return _ranked([likeliest[0], likeliest[0].next(convolutions)], couple)


def _ranked(options: list[Choices], couple: Couple) -> list[tuple[Choices, CouplingMap]]:
    readings = [(choices, couple(choices)) for choices in options]
    return sorted(readings, key=lambda reading: -prod(group.size for group in reading[1].groups))


def tied(coupling: CouplingMap) -> int:
    """Return how many channels stay because all of them would have to go at once."""
    return sum(frozen.channels for frozen in coupling.frozen if frozen.reason == ALONE)
