"""Random networks: none of them may be exported wrongly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.networks.check import check
from tests.networks.description import Description
from tests.networks.draw import LARGEST, LENGTH, describe, drawn
from tests.networks.network import build

GENES = st.tuples(*[st.integers(0, LARGEST)] * LENGTH)
DESCRIPTIONS = st.builds(describe, GENES, st.lists(GENES, min_size=2, max_size=10))
NETWORKS, AT_ONCE = 20, 20
SEARCHED = 1000
SHARE_REJECTED = 0.02

rejected: list[str] = []


@pytest.mark.parametrize("first", range(0, NETWORKS, AT_ONCE))
def test_random_networks_start_equal_and_export_exactly(first: int) -> None:
    """``make nightly`` runs thousands more; a network that fails there becomes a named one in ``test_found``."""
    for seed in range(first, first + AT_ONCE):
        verdict = check(drawn(seed))
        if verdict.rejected:
            rejected.append(verdict.rejected)


@pytest.mark.nightly
@settings(
    max_examples=SEARCHED,
    deadline=None,
    database=None,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(description=DESCRIPTIONS)
def test_hypothesis_finds_no_network_that_fails(description: Description) -> None:
    """Other networks every night: what hypothesis draws changes with the package's own source."""
    check(description)


def test_hardly_any_random_network_was_rejected_and_each_with_a_reason() -> None:
    assert all(len(reason) > 40 for reason in rejected)
    assert len(rejected) <= SHARE_REJECTED * NETWORKS, rejected


def test_a_description_survives_json_and_rebuilds_the_same_network() -> None:
    for seed in range(20):
        description = drawn(seed)
        again = Description.from_json(description.to_json())
        assert str(again) == str(description)
        first, second = build(description), build(again)
        assert str(first[0]) == str(second[0])
        for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
            assert a.equal(b)
        assert all(a.equal(b) for a, b in zip(first[1], second[1], strict=True))
