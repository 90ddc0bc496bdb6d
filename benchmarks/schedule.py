"""The learning rate that every benchmark's training follows."""

from __future__ import annotations

import math

WARM_UP = 0.05  # share of the steps in which the learning rate rises; then it falls to zero as a cosine


def rate(share: float) -> float:
    """Return the learning rate at a share of the steps, relative to its peak."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
