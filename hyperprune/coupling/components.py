"""Connected components of labels, solved once for the whole network."""

from __future__ import annotations

import numpy as np


def components(size: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return, for each of ``size`` labels, the smallest label it is connected to.

    Hooking and pointer jumping: every pass hangs the larger root of each pair under the smaller one and
    flattens the trees; the number of passes grows with the logarithm of the longest chain.

    Example:
        >>> components(5, np.array([4, 1]), np.array([1, 3])).tolist()
        [0, 1, 2, 1, 1]
    """
    root = np.arange(size)
    while True:
        a, b = root[left], root[right]
        low, high = np.minimum(a, b), np.maximum(a, b)
        apart = low != high
        if not apart.any():
            return root
        left, right = left[apart], right[apart]
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(flat := root[root], root):
            root = flat
