"""Ten thousand steps: memory stays flat, warnings stay few, and two runs of one seed are equal to the last bit."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperprune import DHP, Budget, Fisher, L1Proximal, Lean, PublishedL1, Search, export_pruned
from tests.faults.loop import advance, images, is_met, same_state, start

STEPS = 10_000
RULES = [Fisher, L1Proximal, PublishedL1]


def resident() -> int:
    """Return the bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("rule", RULES)
def test_memory_stays_flat_and_a_warning_comes_at_most_once(rule: Any) -> None:
    hyper, optimizer, search = start(STEPS, lambda groups: torch.optim.SGD(groups[1:]), sparsifier=rule())
    rng = torch.Generator().manual_seed(0)
    held: list[tuple[int, int]] = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for step in range(1, STEPS + 1):
            hyper.bank.latents.grad = torch.randn(hyper.coupling.units, generator=rng) * 1e-3
            optimizer.step()
            search.step()
            if step in (STEPS // 4, STEPS - 1):
                gc.collect()
                held.append((len(gc.get_objects()), resident()))
    assert search.done
    assert is_met(hyper)
    (objects, memory), (objects_later, memory_later) = held
    assert objects_later - objects < 50
    assert memory_later - memory < 2 * 2**20
    texts = [str(warning.message) for warning in heard]
    assert len(texts) == len(set(texts)) <= 1


def test_hundreds_of_searches_leave_nothing_behind() -> None:
    hyper = start()[0]
    counts = []
    for at in range(60):
        Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1)), Budget(macs=0.5), 10)
        if at in (20, 59):
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 20


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:.*had to be cut at once")
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("generator", [Lean(), DHP(embedding=2)], ids=["lean", "dhp"])
@pytest.mark.parametrize("rule", RULES)
def test_two_runs_of_one_seed_are_equal_to_the_last_bit(rule: Any, generator: Any) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        run = start(20, generator=generator, sparsifier=rule())
        advance(*run, steps=20)
        runs.append(run[0])
    assert same_state(*runs)
    assert torch.equal(export_pruned(runs[0])(images()), export_pruned(runs[1])(images()))
