"""Connected components against the textbook's union-find."""

from __future__ import annotations

import numpy as np
import pytest

from hyperprune.coupling.components import components


def union_find(size: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    parent = list(range(size))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(x) for x in range(size)]


@pytest.mark.parametrize("seed", range(60))
def test_random_pairs_give_the_components_of_union_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 80))
    left, right = rng.integers(0, size, (2, int(rng.integers(0, 2 * size))))
    assert components(size, left, right).tolist() == union_find(size, left, right)


def test_a_long_chain_in_any_order_is_one_component() -> None:
    order = np.random.default_rng(0).permutation(9_999)
    assert set(components(10_000, order, order + 1).tolist()) == {0}


def test_without_pairs_every_label_stands_alone() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert components(4, none, none).tolist() == [0, 1, 2, 3]
