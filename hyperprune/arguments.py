"""What counts as a number in a user's arguments: Python's and NumPy's alike, but no truth values."""

from __future__ import annotations

import math
from numbers import Integral, Real


def is_positive(value: object) -> bool:
    """Say whether a user's argument is a finite number above zero.

    Example:
        >>> is_positive(0.1), is_positive(0), is_positive("1"), is_positive(True), is_positive(float("inf"))
        (True, False, False, False, False)
    """
    return not isinstance(value, bool) and isinstance(value, Real) and 0 < value < math.inf  # type: ignore[operator]


def is_count(value: object, least: int = 1) -> bool:
    """Say whether a user's argument is a whole number, no smaller than ``least``.

    Example:
        >>> is_count(2), is_count(0), is_count(0, least=0), is_count(2.0), is_count(True)
        (True, False, True, False, False)
    """
    return not isinstance(value, bool) and isinstance(value, Integral) and value >= least  # type: ignore[operator]
