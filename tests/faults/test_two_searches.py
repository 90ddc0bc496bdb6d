"""Two searches: on one network, on one optimiser, in two threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch

from hyperprune import Budget, HyperModel, L1Proximal, Search, export_pruned
from hyperprune.errors import SearchError
from tests.faults.loop import HALF, advance, backward, images, is_met, same_state, start


def test_of_two_searches_on_one_network_the_newer_goes_on() -> None:
    hyper, optimizer, old = start(steps=8)
    advance(hyper, optimizer, old, 3)
    new = Search(hyper, optimizer, HALF, 6)
    with pytest.raises(SearchError, match=r"a newer Search .* step the newer one and drop this one"):
        old.step()
    advance(hyper, optimizer, new, 6)
    assert is_met(hyper)
    assert old.step_count == 3
    assert old.state_dict()["watch"]["observed"] == 3, "it looks at no gradient any more"


def test_a_sparsifier_serves_one_search() -> None:
    rule = L1Proximal()
    start(sparsifier=rule)
    with pytest.raises(SearchError, match=r"this L1Proximal|this Sparsifier .*Make a new one for each Search"):
        start(sparsifier=rule)


def test_an_attached_search_that_was_replaced_stands_still() -> None:
    """As when a cell of a notebook is run again: the optimiser still knows the old one."""
    hyper, optimizer, old = start(steps=8)
    old.attach(optimizer)
    backward(hyper)
    optimizer.step()
    new = Search(hyper, optimizer, HALF, 8).attach(optimizer)
    for _ in range(8):
        backward(hyper)
        optimizer.step()
    assert (old.step_count, new.step_count) == (1, 8)
    assert is_met(hyper)


def test_one_optimiser_may_hold_two_networks() -> None:
    torch.manual_seed(0)
    alone = start()
    advance(*alone, steps=8)
    torch.manual_seed(0)
    (first, _, _), (second, _, _) = start(), start()
    groups = [*first.parameter_groups(lr=0.01), *second.parameter_groups(lr=0.01)]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    searches = [Search(hyper, optimizer, HALF, 8) for hyper in (first, second)]
    for step in range(8):
        optimizer.zero_grad()
        for hyper in (first, second):
            backward(hyper, images(step))
        optimizer.step()
        for search in searches:
            search.step()
    assert is_met(second)
    assert same_state(first, alone[0]), "as if it were alone"


def searches_of_two() -> list[tuple[HyperModel, torch.optim.Optimizer, Search]]:
    torch.manual_seed(0)
    return [start(steps=12), start(steps=10)]


def test_two_threads_find_what_one_after_the_other_finds() -> None:
    one_by_one, together = searches_of_two(), searches_of_two()
    for run in one_by_one:
        advance(*run, steps=12)
    faults: list[BaseException] = []
    threads = [threading.Thread(target=guarded(lambda r=run: advance(*r, steps=12), faults)) for run in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    for (expected, _, _), (found, _, search) in zip(one_by_one, together, strict=True):
        assert search.done
        assert same_state(expected, found)
        x = images()
        assert torch.equal(export_pruned(expected)(x), export_pruned(found)(x))


def guarded(work: Callable[[], None], faults: list[BaseException]) -> Callable[[], None]:
    """Let a thread's exception reach the test."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            faults.append(error)

    return run


def test_a_copy_of_the_network_is_another_network() -> None:
    hyper, optimizer, search = start()
    twin = copy.deepcopy(hyper)
    other = Search(twin, torch.optim.SGD(twin.parameter_groups(lr=0.01)), Budget(macs=0.5), 8)
    advance(hyper, optimizer, search, 8)
    assert is_met(hyper)
    assert twin.living().all()
    assert other.step_count == 0
