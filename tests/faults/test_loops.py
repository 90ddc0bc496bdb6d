"""Loops with a step left out, taken twice, or taken too late; optimisers that hold the wrong things."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from hyperprune import Budget, Fisher, L1Proximal, PublishedL1, Search, export_pruned
from hyperprune.errors import SearchError
from tests.faults.loop import HALF, advance, backward, images, is_met, same_state, start


def test_after_the_end_step_does_nothing() -> None:
    hyper, optimizer, search = start(steps=4)
    advance(hyper, optimizer, search, 4)
    before, state = search.progress(), hyper.living()
    for _ in range(3):
        search.step()
    advance(hyper, optimizer, search, 2)
    assert search.progress() == before
    assert torch.equal(hyper.living(), state)
    hyper.bank.latents.data[0] = torch.nan  # not the search's concern any more
    search.step()


def test_a_second_search_takes_the_network_further_down_after_the_first() -> None:
    hyper, optimizer, search = start(steps=4)
    advance(hyper, optimizer, search, 4)
    alive = hyper.living()
    further = Search(hyper, optimizer, Budget(macs=0.3), 4)
    advance(hyper, optimizer, further, 4)
    search.step()
    assert further.progress().macs_fraction <= 0.3
    assert not (hyper.living() & ~alive).any(), "nothing came back"


def test_a_short_search_that_is_stepped_twice_is_warned_of_before_its_end() -> None:
    hyper, optimizer, search = start(steps=24)
    for _ in range(6):
        advance(hyper, optimizer, search, 1)
        said = pytest.warns(UserWarning, match=r"6 of 12 calls .* followed no optimizer\.step\(\)")
        with said if search.progress().step == 11 else nullcontext():
            search.step()


@pytest.mark.parametrize("calls", [2, 4], ids=["twice a step", "at every part of an accumulated batch"])
def test_more_steps_of_the_search_than_of_the_optimiser_are_warned_of_once(calls: int) -> None:
    hyper, optimizer, search = start(steps=100, every=10)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(100 // calls):
            backward(hyper)
            optimizer.step()
            for _ in range(calls):
                search.step()
    assert len(heard) == 1
    assert "followed no optimizer.step()" in str(heard[0].message)
    assert heard[0].filename == __file__
    assert is_met(hyper)


def test_optimiser_steps_that_stop_in_the_middle_are_warned_of() -> None:
    hyper, optimizer, search = start(steps=100, every=10)
    advance(hyper, optimizer, search, 20)
    for _ in range(9):
        search.step()
    with pytest.warns(UserWarning, match=r"10 of 30 calls of search\.step\(\) followed no optimizer\.step\(\)"):
        search.step()


def test_as_many_skipped_steps_as_amp_needs_to_find_its_scale_are_not_warned_of() -> None:
    hyper, optimizer, search = start(steps=100, every=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(hyper, optimizer, search, 5)
        backward(hyper)
        hyper.bank.latents.grad.fill_(torch.inf)
        for _ in range(20):
            search.step()
        advance(hyper, optimizer, search, 75)
    assert is_met(hyper)


def test_search_step_alone_is_an_error_at_the_first_decision_after_those_that_amp_may_skip() -> None:
    hyper, _, search = start(steps=100, every=7)
    for _ in range(20):
        search.step()
    with pytest.raises(SearchError, match="no gradient has reached the latents by step 21"):
        search.step()
    assert hyper.living().all()


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_thrown_away_before_the_optimiser_sees_them_are_an_error(to_none: bool) -> None:
    hyper, optimizer, search = start()
    backward(hyper)
    optimizer.zero_grad(set_to_none=to_none)
    optimizer.step()
    with pytest.raises(SearchError, match=r"no gradient .* let zero_grad\(\) not come between the two"):
        search.step()
    assert hyper.living().all()


def test_latents_that_are_frozen_are_an_error() -> None:
    hyper, optimizer, search = start()
    hyper.bank.latents.requires_grad_(False)
    with pytest.raises(SearchError, match="no gradient has reached the latents by step 1"):
        advance(hyper, optimizer, search)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("place", ["before backward", "before search.step", "after search.step"])
def test_zero_grad_may_stand_anywhere_else(place: str, to_none: bool) -> None:
    ends = []
    for where in ("before backward", place):
        torch.manual_seed(0)
        hyper, optimizer, search = start()
        for step in range(8):
            if where == "before backward":
                optimizer.zero_grad(set_to_none=to_none)
            backward(hyper, images(step))
            optimizer.step()
            if where == "before search.step":
                optimizer.zero_grad(set_to_none=to_none)
            search.step()
            if where == "after search.step":
                hyper.zero_grad(set_to_none=to_none)
        ends.append(hyper)
    assert same_state(*ends)


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("rule", [Fisher, L1Proximal, PublishedL1])
def test_without_a_learning_rate_the_budget_is_met_all_the_same(rule: Any, rate: Any) -> None:
    hyper, optimizer, search = start(make=lambda groups: torch.optim.SGD(groups, lr=0.1), sparsifier=rule())
    for group in optimizer.param_groups:
        group["lr"] = rate
    before = {name: value.detach().clone() for name, value in hyper.named_parameters()}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        advance(hyper, optimizer, search, 8)
    assert is_met(hyper)
    assert all(torch.equal(value, before[name]) for name, value in hyper.named_parameters())
    assert ["pressed too little" in str(warning.message) for warning in heard] == ([] if rule is Fisher else [True])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": None}, "a torch optimiser that holds the latents is needed, not NoneType"),
        ({"optimizer": "sgd"}, "a torch optimiser .* not str"),
        ({"budget": 0.5}, r"takes a Budget, such as Budget\(macs=0\.5\), not 0\.5"),
        ({"sparsifier": L1Proximal}, r"such as L1Proximal\(\), not <function L1Proximal"),
    ],
    ids=["none", "name", "number", "rule not called"],
)
def test_arguments_of_the_wrong_kind_are_named(changed: dict[str, Any], message: str) -> None:
    hyper, optimizer, _ = start()
    with pytest.raises(SearchError, match=message):
        Search(**{"hyper": hyper, "optimizer": optimizer, "budget": HALF, "steps": 5, **changed})


def test_an_optimiser_of_the_latents_alone_searches_and_trains_nothing_else() -> None:
    hyper, optimizer, search = start(make=lambda groups: torch.optim.SGD(groups[1:], lr=0.1))
    before = {name: value.detach().clone() for name, value in hyper.model.named_parameters()}
    advance(hyper, optimizer, search, 8)
    assert is_met(hyper)
    assert all(torch.equal(value, before[name]) for name, value in hyper.model.named_parameters())
    export_pruned(hyper)


def test_latents_taken_out_of_the_optimiser_are_an_error_at_the_next_step() -> None:
    hyper, optimizer, search = start(every=8)
    advance(hyper, optimizer, search, 2)
    optimizer.param_groups.pop()
    with pytest.raises(SearchError, match="does not hold the latents"):
        advance(hyper, optimizer, search)


def replace_by_state(hyper: nn.Module) -> None:
    hyper.load_state_dict({name: value.clone() for name, value in hyper.state_dict().items()}, assign=True)


@pytest.mark.parametrize("replace", [replace_by_state, lambda hyper: hyper.to("meta")], ids=["assign", "meta"])
def test_latents_that_were_replaced_are_an_error_at_the_next_step(replace: Any) -> None:
    """The optimiser would go on training tensors that no network uses any more."""
    hyper, optimizer, search = start(every=8)
    advance(hyper, optimizer, search, 2)
    replace(hyper)
    with pytest.raises(SearchError, match=r"does not hold the latents.*build optimiser and Search anew.*assign=True"):
        search.step()


def test_a_parameter_group_added_later_changes_nothing() -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 5.0})
    advance(hyper, optimizer, search, 5)
    assert is_met(hyper)


def test_an_optimiser_state_that_is_thrown_away_changes_no_decision_at_once() -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    before = search.state_dict()["sparsifier"]["score"]["within"]["average"]
    optimizer.state.clear()
    assert torch.equal(search.state_dict()["sparsifier"]["score"]["within"]["average"], before)
    advance(hyper, optimizer, search, 5)
    assert is_met(hyper)


def test_an_export_in_the_middle_is_the_network_as_it_is_and_the_search_goes_on() -> None:
    ends = []
    for exported in (False, True):
        torch.manual_seed(0)
        hyper, optimizer, search = start()
        advance(hyper, optimizer, search, 4)
        if exported:
            slim = export_pruned(hyper)
            assert hyper.training
            assert all(module.training for module in hyper.modules())
            assert sum(p.numel() for p in slim.parameters()) == search.progress().params
            assert 0.5 < search.progress().macs_fraction < 1
            torch.testing.assert_close(slim.eval()(images()), hyper.eval()(images()), rtol=1e-4, atol=1e-5)
            hyper.train()
        advance(hyper, optimizer, search, 4)
        ends.append(hyper)
    assert same_state(*ends)


def test_modes_may_change_at_any_time() -> None:
    hyper, optimizer, search = start()
    for step in range(8):
        hyper.train(step % 2 == 0)
        hyper.model.bn.eval()
        advance(hyper, optimizer, search)
    assert is_met(hyper)
    export_pruned(hyper)
    assert HALF.limits(hyper.cost.total(hyper.cost.full))["macs"] >= search.progress().macs
