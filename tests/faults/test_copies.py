"""Copies of every public object: copy, deepcopy, pickle by the user, state_dict."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass
from typing import Any

import pytest
import torch

from hyperprune import DHP, Budget, Fisher, L1Proximal, Lean, PublishedL1, export_pruned
from hyperprune.errors import SavingError, SearchError
from hyperprune.export import export_with_proof
from hyperprune.plan import plans_of
from hyperprune.sparsifiers import Sparsifier
from tests.faults.loop import advance, backward, images, is_met, same_state, start

pytestmark = pytest.mark.filterwarnings("ignore:.*had to be cut at once")

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}
RULES: dict[str, Callable[[], Sparsifier]] = {"fisher": Fisher, "l1": L1Proximal, "published": PublishedL1}


@pytest.mark.parametrize("how", COPIES)
def test_values_are_equal_to_their_copies_and_cannot_be_changed(how: str) -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    proof = export_with_proof(hyper)[1]
    for value in (search.progress(), Budget(macs=0.5, divisor=4), hyper.coupling, hyper.plan(), proof, Lean(), DHP()):
        copied = COPIES[how](value)
        assert copied == value
        assert repr(copied) == repr(value)
        assert is_dataclass(value)
        with pytest.raises(FrozenInstanceError):
            value.anything = 1


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
def test_a_copied_network_computes_and_exports_the_same(how: str) -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 8)
    twin, x = COPIES[how](hyper), images()
    hyper.eval()
    assert torch.equal(twin.eval()(x), hyper(x))
    assert torch.equal(export_pruned(twin)(x), export_pruned(hyper)(x))
    assert (twin.bank.latents is hyper.bank.latents) == (how == "copy")


def test_a_hyper_model_says_that_it_is_saved_by_its_state() -> None:
    hyper, _, _ = start()
    for save in (pickle.dumps, lambda value: torch.save(value, io.BytesIO())):
        with pytest.raises(SavingError, match=r"cannot be pickled.*save hyper\.state_dict\(\)"):
            save(hyper)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_slim_network_survives_with_its_plans(how: str) -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 8)
    slim = export_pruned(hyper)
    twin = COPIES[how](slim)
    assert torch.equal(twin(images()), slim(images()))
    assert plans_of(twin) == plans_of(slim) != ()


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_network_optimiser_and_search_copied_together_go_on_alike_and_apart(rule: str, attached: bool) -> None:
    hyper, optimizer, search = start(steps=12, every=2, sparsifier=RULES[rule]())
    if attached:
        search.attach(optimizer)
    go_on(hyper, optimizer, search, 5, attached)
    twins = copy.deepcopy((hyper, optimizer, search))
    at_copy = copy.deepcopy(hyper)
    go_on(*twins, 7, attached)
    assert same_state(hyper, at_copy), "the original has not moved"
    assert search.step_count == 5
    go_on(hyper, optimizer, search, 7, attached)
    assert search.done
    assert twins[2].done
    assert is_met(hyper)
    assert same_state(hyper, twins[0])


def go_on(hyper: Any, optimizer: Any, search: Any, steps: int, attached: bool) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(hyper, images(search.step_count))
        optimizer.step()
        if not attached:
            search.step()


def test_a_shallow_copy_of_a_search_takes_its_place() -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    again = copy.copy(search)
    with pytest.raises(SearchError, match=r"a newer Search \(or a copy of this one\)"):
        search.step()
    advance(hyper, optimizer, again, 5)
    assert again.state_dict()["watch"]["observed"] == 8
    assert is_met(hyper)


def test_a_copy_of_the_search_alone_leaves_the_network_and_the_search_alone() -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    alive = hyper.living()
    for copied in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        assert copied.progress() == search.progress()
        for _ in range(5):
            copied.step()
        assert copied.done
        assert torch.equal(hyper.living(), alive)
    advance(hyper, optimizer, search, 5)
    assert is_met(hyper)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_does_not_change_when_the_search_goes_on(rule: str) -> None:
    hyper, optimizer, search = start(sparsifier=RULES[rule]())
    advance(hyper, optimizer, search, 3)
    state = search.state_dict()
    before = copy.deepcopy(state)
    advance(hyper, optimizer, search, 3)
    assert str(state) == str(before)
    assert str(search.state_dict()) != str(before)


@pytest.mark.parametrize("rule", RULES)
def test_loading_a_state_ties_no_two_searches_together(rule: str) -> None:
    torch.manual_seed(0)
    hyper, optimizer, search = start(sparsifier=RULES[rule]())
    advance(hyper, optimizer, search, 3)
    state = search.state_dict()
    other, its_optimizer, its_search = start(sparsifier=RULES[rule]())
    its_search.load_state_dict(state)
    advance(other, its_optimizer, its_search, 5)
    assert str(search.state_dict()) == str(state)
    assert search.step_count == 3


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_with_a_tensor_missing_is_torchs_own_error_or_leaves_it_as_it_is(strict: bool) -> None:
    hyper, _, _ = start()
    state = {name: value for name, value in hyper.state_dict().items() if name != "bank.latents"}
    if strict:
        with pytest.raises(RuntimeError, match=r"bank\.latents"):
            hyper.load_state_dict(state)
    else:
        assert hyper.load_state_dict(state, strict=False).missing_keys == ["bank.latents"]
    assert bool((hyper.bank.latents == 1).all())
