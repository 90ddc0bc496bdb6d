"""Fixtures that every test file shares."""

from __future__ import annotations

import logging

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: one thread is the fastest, and sums come out the same every time


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed before a file is read: networks made there do not depend on which files were read before."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    logging.getLogger("torch.__trace").handlers.clear()  # pytest would store thousands of records per export


@pytest.fixture
def rng() -> torch.Generator:
    """A random generator of its own, so that drawing masks does not move the global random state."""
    return torch.Generator().manual_seed(1)
