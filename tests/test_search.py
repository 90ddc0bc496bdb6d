"""The search: the budget is met at its last step, and the loop stays the user's."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperprune import DHP, Budget, Fisher, HyperModel, L1Proximal, Lean, PublishedL1, Search, export_pruned, hyperize
from hyperprune.budget import Ladder
from hyperprune.errors import BudgetError, SearchError
from hyperprune.generators import Generator
from hyperprune.schedule import Schedule
from hyperprune.sparsifiers import BinaryGates, HardConcrete, Sparsifier
from tests.models import SMALL, assert_same, count, residual, sequential, small, snapshot, train

IMAGES = (4, 3, 8, 8)
RULES: dict[str, Callable[[], Sparsifier]] = {"fisher": Fisher, "l1": L1Proximal, "published": PublishedL1}
GENERATORS: dict[str, Generator] = {"lean": Lean(), "dhp": DHP()}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups),
}


def start(
    model: nn.Module | None = None,
    budget: Budget | None = None,
    steps: int = 8,
    generator: Generator | None = None,
    optimizer: str = "sgd",
    **options: Any,
) -> tuple[HyperModel, Search, torch.optim.Optimizer]:
    hyper = hyperize(residual() if model is None else model, torch.randn(IMAGES), generator=generator).train()
    made = OPTIMIZERS[optimizer](hyper.parameter_groups(lr=0.01, weight_decay=1e-4))
    return hyper, Search(hyper, made, budget or Budget(macs=0.5), steps, **options), made


def assert_met(hyper: HyperModel, budget: Budget) -> None:
    """Never above the budget, and no unit left out that would still fit."""
    counts, dense = count(hyper.living(), hyper.coupling), hyper.cost.total(hyper.cost.full)
    limits, ladder = budget.limits(dense), Ladder.of(hyper.coupling.groups, budget)
    assert all(getattr(hyper.cost.total(counts), r) <= limit for r, limit in limits.items())
    for at in range(len(counts)):
        wider = counts.copy()
        wider[at] = ladder.up(counts)[at]
        more = hyper.cost.total(wider)
        assert wider[at] == counts[at] or any(getattr(more, r) > limit for r, limit in limits.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("rule", RULES)
def test_the_budget_is_met_exactly_at_the_last_step(rule: str, generator: str, optimizer: str) -> None:
    budget = Budget(macs=0.5)
    hyper, search, made = start(None, budget, 8, GENERATORS[generator], optimizer, sparsifier=RULES[rule]())
    x = torch.randn(IMAGES)
    train(hyper, search, made, x, 7)
    assert not search.done
    train(hyper, search, made, x, 1)
    assert search.done
    assert search.progress().step == 8
    assert_met(hyper, budget)
    slim = export_pruned(hyper)
    assert sum(p.numel() for p in slim.parameters()) == search.progress().params


@pytest.mark.parametrize(
    "budget",
    [
        Budget(macs=0.3),
        Budget(params=0.4),
        Budget(macs=0.6, params=0.35),
        Budget(macs=0.5, floor=3),
        Budget(macs=0.5, divisor=4),
    ],
    ids=str,
)
def test_any_budget_is_met(budget: Budget) -> None:
    hyper, search, optimizer = start(residual(width=12, inner=16), budget)
    train(hyper, search, optimizer, torch.randn(IMAGES), 8)
    assert_met(hyper, budget)
    counts = count(hyper.living(), hyper.coupling)
    assert (counts >= budget.floor).all()
    assert ((counts % budget.divisor == 0) | (counts == hyper.cost.full)).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_small_network_reaches_its_budget(name: str) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=3)
    train(hyper, search, optimizer, x, 3)
    assert_met(hyper, Budget(macs=0.5))


def test_the_cost_falls_step_by_step_under_the_default_rule() -> None:
    hyper, search, optimizer = start(residual(width=12, inner=16), Budget(macs=0.4), 12)
    seen = [search.progress().macs_fraction]
    for _ in range(12):
        train(hyper, search, optimizer, torch.randn(IMAGES), 1)
        seen.append(search.progress().macs_fraction)
    assert seen[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(seen))
    schedule = [1 - 0.6 * step / 12 for step in range(13)]
    assert all(share <= planned + 1e-3 for share, planned in zip(seen, schedule, strict=True))
    assert seen[6] > 0.5, "half way, the network is cut half way"


def test_the_units_of_least_saliency_go() -> None:
    hyper, search, optimizer = start(steps=1)
    x = torch.randn(IMAGES)
    hyper(x).square().mean().backward()
    saliency = hyper.bank.latents.grad.square().clone()
    optimizer.step()
    search.step()
    for group in hyper.coupling.groups:
        living, scores = hyper.living()[group.units], saliency[group.units]
        assert living.all() or scores[living].min() >= scores[~living].max()


def test_progress_counts_what_lives() -> None:
    hyper, search, optimizer = start()
    train(hyper, search, optimizer, torch.randn(IMAGES), 8)
    progress = search.progress()
    cost = hyper.cost.total(count(hyper.living(), hyper.coupling))
    assert (progress.macs, progress.params) == (cost.macs, cost.params)
    assert progress.live_units == int(hyper.living().sum()) < progress.units == hyper.coupling.units
    assert progress.macs_fraction == cost.macs / hyper.cost.total(hyper.cost.full).macs
    assert str(progress).startswith("step 8/8: ")


def test_progress_shows_the_pressure_of_an_l1_rule() -> None:
    hyper, search, optimizer = start(sparsifier=L1Proximal(fade=2.0))
    train(hyper, search, optimizer, torch.randn(IMAGES), 2)
    assert search.progress().pressure == pytest.approx(1 / (0.01 * 2 * search.every))
    assert start(sparsifier=PublishedL1(lambda_=3e-4))[1].progress().pressure == 3e-4
    assert start()[1].progress().pressure == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_resumed_search_goes_on_bit_for_bit(rule: str, at: int) -> None:
    batches = torch.randn(12, *IMAGES)
    model = residual(width=12, inner=16)

    def made() -> tuple[HyperModel, Search, torch.optim.Optimizer]:
        return start(copy.deepcopy(model), Budget(macs=0.5), 10, sparsifier=RULES[rule](), every=2)

    def run(parts: Any, some: Tensor) -> None:
        for x in some:
            train(*parts, x, 1)

    straight, before, after = made(), made(), made()
    run(straight, batches)
    run(before, batches[:at])
    states = [copy.deepcopy(part.state_dict()) for part in before]
    for part, state in zip(after, states, strict=True):
        part.load_state_dict(state)
    run(before, batches[:1] * 100)  # must not reach what was saved
    run(after, batches[at:])
    assert torch.equal(after[0].bank.latents, straight[0].bank.latents)
    assert torch.equal(after[0].bank.alive, straight[0].bank.alive)
    assert after[1].progress() == straight[1].progress()
    assert after[1].done


def test_a_state_of_another_network_is_refused() -> None:
    _, search, _ = start()
    _, other, _ = start(residual(width=7))
    with pytest.raises(SearchError, match=r"a search over 23 units, this network has 22"):
        search.load_state_dict(other.state_dict())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_dead_stay_dead_though_training_goes_on(rule: str, optimizer: str) -> None:
    hyper, search, made = start(optimizer=optimizer, sparsifier=RULES[rule]())
    x = torch.randn(IMAGES)
    train(hyper, search, made, x, 8)
    dead, latents, progress = ~hyper.living(), hyper.bank.latents.detach().clone(), search.progress()
    train(hyper, search, made, x, 12)
    assert torch.equal(~hyper.living(), dead)
    assert dead.any()
    assert not torch.equal(hyper.bank.latents[~dead], latents[~dead]), "the others train on"
    assert search.progress() == progress
    export_pruned(hyper)


def test_a_step_after_the_end_does_nothing() -> None:
    hyper, search, optimizer = start()
    train(hyper, search, optimizer, torch.randn(IMAGES), 8)
    before = snapshot(hyper)
    for _ in range(3):
        search.step()
    assert_same(before, snapshot(hyper))
    assert search.progress().step == 8


def test_zeroing_gradients_before_the_searchs_step_is_fine() -> None:
    x = torch.randn(IMAGES)

    def run(early: bool) -> Tensor:
        torch.manual_seed(0)
        hyper, search, optimizer = start()
        for _ in range(8):
            hyper(x).square().mean().backward()
            optimizer.step()
            if early:
                optimizer.zero_grad(set_to_none=True)
            search.step()
            optimizer.zero_grad()
        return hyper.bank.gates().detach()

    assert torch.equal(run(True), run(False))


def test_clipped_gradients_are_read_as_the_optimiser_uses_them() -> None:
    hyper, search, optimizer = start(steps=4)
    hyper(torch.randn(IMAGES)).square().mean().backward()
    nn.utils.clip_grad_norm_(hyper.parameters(), 1e-3)
    clipped = hyper.bank.latents.grad.clone()
    optimizer.step()
    assert torch.equal(search.state_dict()["sparsifier"]["score"]["within"]["average"], clipped.square())


def test_a_step_that_a_grad_scaler_skips_is_not_observed() -> None:
    hyper, search, optimizer = start(steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(IMAGES)
    for bad in (False, True, False, True):
        optimizer.zero_grad()
        scaler.scale(hyper(x).square().mean()).backward()
        if bad:
            hyper.bank.latents.grad[0] = float("inf")
        before = hyper.bank.latents.detach().clone()
        scaler.step(optimizer)
        assert torch.equal(before, hyper.bank.latents) == bad
        scaler.update()
        search.step()
    assert search.state_dict()["watch"]["observed"] == 2
    assert torch.isfinite(search.state_dict()["sparsifier"]["score"]["within"]["average"]).all()
    assert search.done
    assert_met(hyper, Budget(macs=0.5))


def test_first_steps_that_a_grad_scaler_skips_only_delay_the_decisions() -> None:
    hyper, search, optimizer = start(steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(IMAGES)
    for index in range(20):
        optimizer.zero_grad()
        scaler.scale(hyper(x).square().mean() * (float("inf") if index < 5 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        search.step()
        assert bool(hyper.living().all()) == (index < 5)
    assert search.done
    assert_met(hyper, Budget(macs=0.5))


@pytest.mark.parametrize("attached", [False, True])
def test_steps_that_a_fused_optimiser_skips_at_first_are_no_missing_gradient(attached: bool) -> None:
    """Its step() runs on overflow too, and is told by the scaler to do nothing."""
    hyper = hyperize(residual(), torch.randn(IMAGES))
    optimizer = torch.optim.AdamW(hyper.parameter_groups(lr=0.01), fused=True)
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=20)
    if attached:
        search.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for index in range(25 if attached else 20):
        optimizer.zero_grad()
        loss = hyper(torch.randn(IMAGES)).square().mean()
        scaler.scale(loss * (float("inf") if index < 5 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if not attached:
            search.step()
        assert bool(hyper.living().all()) == (index < 5)
    assert search.done
    assert_met(hyper, Budget(macs=0.5))


def test_an_optimiser_without_a_learning_rate_will_do() -> None:
    class Plain(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(0.01 * parameter.grad)

    hyper = hyperize(residual(), torch.randn(IMAGES))
    optimizer = Plain(hyper.parameters(), {})
    train(hyper, Search(hyper, optimizer, Budget(macs=0.5), 6), optimizer, torch.randn(IMAGES), 6)
    assert_met(hyper, Budget(macs=0.5))


@pytest.mark.parametrize("rule", [BinaryGates, HardConcrete])
def test_no_unit_is_free_where_a_budget_prices_a_peak_alone(rule: Any) -> None:
    hyper = hyperize(residual(), torch.randn(IMAGES))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(activation_bytes=0.5), 12, sparsifier=rule())
    train(hyper, search, optimizer, torch.randn(IMAGES), 6)
    assert float(search.state_dict()["prices"].min()) > 0


def test_latents_that_are_not_finite_are_an_error_that_names_the_step() -> None:
    hyper, search, optimizer = start()
    train(hyper, search, optimizer, torch.randn(IMAGES), 2)
    with torch.no_grad():
        hyper.bank.latents[:3] = float("nan")
    with pytest.raises(SearchError, match=r"3 latents are not finite at step 3\."):
        search.step()


def test_an_optimiser_without_the_latents_is_refused() -> None:
    hyper = hyperize(residual(), torch.randn(IMAGES))
    optimizer = torch.optim.SGD(hyper.model.parameters(), lr=0.1)
    with pytest.raises(SearchError, match="does not hold the latents"):
        Search(hyper, optimizer, Budget(macs=0.5), 5)


def test_an_optimiser_that_decays_the_latents_is_warned_of() -> None:
    hyper = hyperize(residual(), torch.randn(IMAGES))
    with pytest.warns(UserWarning, match="decays the latents"):
        Search(hyper, torch.optim.SGD(hyper.parameters(), lr=0.1, weight_decay=1e-4), Budget(macs=0.5), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1, weight_decay=1e-4)), Budget(macs=0.5), 5)


@pytest.mark.parametrize("steps", [1, 5, 21])
def test_a_search_without_gradients_is_an_error(steps: int) -> None:
    _, search, _ = start(steps=steps)
    for _ in range(steps - 1):
        search.step()  # AMP's scaler may be looking for its scale
    with pytest.raises(SearchError, match=f"no gradient has reached the latents by step {steps}"):
        search.step()


def test_training_the_original_model_instead_is_an_error() -> None:
    model = residual()
    hyper, search, optimizer = start(model)
    model(torch.randn(IMAGES)).square().mean().backward()
    optimizer.step()
    with pytest.raises(SearchError, match=r"train hyper\(\.\.\.\) itself"):
        search.step()
    assert hyper.living().all()


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, None, "5"], ids=repr)
def test_bad_numbers_of_steps_are_refused(bad: Any) -> None:
    hyper = hyperize(residual(), torch.randn(IMAGES))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
    with pytest.raises(SearchError, match="steps"):
        Search(hyper, optimizer, Budget(macs=0.5), bad)
    if bad is not None:
        with pytest.raises(SearchError, match="every"):
            Search(hyper, optimizer, Budget(macs=0.5), 5, every=bad)


def test_a_plain_model_is_refused() -> None:
    model = residual()
    with pytest.raises(SearchError, match="takes what hyperize returned, not ResNet"):
        Search(model, torch.optim.SGD(model.parameters(), lr=0.1), Budget(macs=0.5), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(macs=10**12), "above the dense"),
        (Budget(macs=0.001), "lowest is"),
        (Budget(macs=0.5, floor=6), "lowest is"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_met_is_refused_before_anything_starts(budget: Budget, message: str) -> None:
    hyper = hyperize(residual(), torch.randn(IMAGES))
    before = snapshot(hyper)
    with pytest.raises(BudgetError, match=message):
        Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1)), budget, 5)
    assert_same(before, snapshot(hyper))


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_original_model_and_the_random_state_are_untouched_by_all_of_it(generator: str) -> None:
    model, x = residual().train(), torch.randn(IMAGES)
    model(x).sum().backward()
    before, state = snapshot(model), torch.random.get_rng_state()
    hyper = hyperize(model, x, generator=GENERATORS[generator])
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1), momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=0.5), 4)
    train(hyper, search, optimizer, x, 4)
    export_pruned(hyper)
    assert_same(before, snapshot(model))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_dropped_search_is_let_go_by_its_optimiser() -> None:
    hyper, search, optimizer = start()
    del search
    train(hyper, Search(hyper, optimizer, Budget(macs=0.5), 3), optimizer, torch.randn(IMAGES), 3)
    assert_met(hyper, Budget(macs=0.5))


def test_the_published_rule_ends_early_once_it_is_close_and_then_meets_the_budget() -> None:
    rule = PublishedL1(lambda_=20.0, threshold=0.3, stop=0.02, least=1)
    hyper, search, optimizer = start(residual(width=12, inner=16), Budget(macs=0.5), 1000, sparsifier=rule, every=1)
    train(hyper, search, optimizer, torch.randn(IMAGES), 30)
    assert search.done
    assert search.progress().step < 30
    assert_met(hyper, Budget(macs=0.5))


def test_decisions_are_taken_as_often_as_asked() -> None:
    assert [start(steps=steps)[1].every for steps in (1, 40, 41, 400)] == [1, 1, 2, 10]
    hyper, search, optimizer = start(residual(width=12, inner=16), steps=12, every=4)
    alive = []
    for _ in range(12):
        train(hyper, search, optimizer, torch.randn(IMAGES), 1)
        alive.append(search.progress().live_units)
    changes = [step for step in range(2, 13) if alive[step - 1] != alive[step - 2]]
    assert set(changes) <= {4, 8, 12}
    assert np.diff(alive).max() <= 0


def test_steps_that_are_skipped_before_the_first_one_are_no_error_though_gradients_are_zeroed_early() -> None:
    hyper, search, optimizer = start(steps=24)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    for _ in range(24):
        scaler.scale(hyper(torch.randn(IMAGES)).square().mean() * 100).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        search.step()
    assert 0 < search.state_dict()["watch"]["observed"] < 24
    assert_met(hyper, Budget(macs=0.5))


def test_decisions_that_would_never_come_are_refused() -> None:
    with pytest.raises(SearchError, match=r"every=9 is more than steps=8.*Leave every= out"):
        start(steps=8, every=9)
    assert start(steps=8, every=8)[1].every == 8


def test_an_optimiser_holds_on_to_the_latest_search_of_a_network_alone() -> None:
    hyper, search, optimizer = start()
    seen = [weakref.ref(search)]
    for _ in range(3):
        search = Search(hyper, optimizer, Budget(macs=0.5), 8).attach(optimizer)
        seen.append(weakref.ref(search))
    del search
    gc.collect()
    assert [one() is not None for one in seen] == [False, False, False, True]
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    assert [len(each) for each in hooks] == [1, 1]


def test_for_a_rule_that_never_ends_early_nothing_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper, search, optimizer = start(steps=4)
    monkeypatch.setattr(Schedule, "ratio", lambda *_: pytest.fail("the ending was not asked first"))
    train(hyper, search, optimizer, torch.randn(IMAGES), 4)
    assert_met(hyper, Budget(macs=0.5))


@pytest.mark.parametrize("rule", [BinaryGates, HardConcrete])
def test_a_closed_gate_that_is_taken_back_starts_at_one_though_momentum_has_moved_it(rule: Any) -> None:
    torch.manual_seed(0)
    hyper, x = hyperize(sequential().train(), torch.randn(8, 3, 8, 8)), torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.02), momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=0.4), steps=60, sparsifier=rule())
    closed = torch.zeros(hyper.coupling.units, dtype=torch.bool)
    while not search.done:
        closed = hyper.bank.latents.detach() == 0
        optimizer.zero_grad()
        hyper(x).square().mean().backward()
        optimizer.step()
        hyper.bank.latents.data[closed] = 1e-20  # what is left of momentum
        search.step()
    back = closed & (hyper.bank.living() > 0)
    assert set(hyper.bank.latents[back].tolist()) <= {1.0}
    assert not bool((hyper.bank.gates().abs()[hyper.bank.living() > 0] < 1e-6).any())


def test_a_second_search_starts_from_what_is_left() -> None:
    hyper, x = hyperize(sequential().train(), torch.randn(8, 3, 8, 8)), torch.randn(8, 3, 8, 8)
    for share in (0.6, 0.3):
        optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
        search = Search(hyper, optimizer, Budget(macs=share), steps=20, every=1)
        before = search.progress().macs_fraction
        for _ in range(10):
            optimizer.zero_grad()
            hyper(x).square().mean().backward()
            optimizer.step()
            search.step()
        assert abs(search.progress().macs_fraction - (before + share) / 2) < 0.1
        resumed = Search(hyper, optimizer, Budget(macs=share), steps=20, every=1)
        resumed.load_state_dict(search.state_dict())
        while not resumed.done:
            optimizer.zero_grad()
            hyper(x).square().mean().backward()
            optimizer.step()
            resumed.step()
    assert resumed.progress().macs_fraction <= 0.3


def test_a_budget_above_what_is_left_is_warned_of() -> None:
    hyper = hyperize(sequential(), torch.randn(2, 3, 8, 8))
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 4 == 0)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.9), steps=4)
    hyper(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"less than the .* of the budget: units that were removed come back"):
        search.step()


def test_a_damaged_state_is_refused_and_nothing_has_changed() -> None:
    hyper = hyperize(sequential(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=4, sparsifier=L1Proximal())
    hyper(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    search.step()
    good = search.state_dict()
    damages: list[dict[str, Any]] = [
        *({"sparsifier": {}}, {"sparsifier": torch.ones(1)}, {"step": 5}, {"step": "1"}, {"steps": "4"}, {"every": 0}),
        *({"starts": bad} for bad in (None, "x", -3, {"params": 3}, {"macs": "3"})),
        *({"watch": bad} for bad in ({}, {**good["watch"], "observed": -3}, {**good["watch"], "skipped": 0.5})),
        *({"done": 1}, {"done": True}, {"step": 4}, {"about": []}, {"starts": {"macs": -3}}),
        *({"doomed": bad} for bad in (None, good["doomed"].float(), good["doomed"][:, None], torch.tensor(True))),
        *({"prices": bad} for bad in (-3, torch.ones(1), good["prices"][:, None], good["prices"] * torch.nan)),
        *({"sparsifier": {**good["sparsifier"], "pressure": bad}} for bad in ("x", torch.nan)),
        *({"sparsifier": {**good["sparsifier"], "score": {"average": bad}}} for bad in (3, "x")),
    ]
    for damage in damages:
        with pytest.raises(SearchError):
            search.load_state_dict({**good, **damage})
    now = search.state_dict()
    assert (now["step"], now["steps"], now["every"]) == (good["step"], good["steps"], good["every"])
    assert torch.equal(now["sparsifier"]["score"]["average"], good["sparsifier"]["score"]["average"])
    assert torch.equal(now["prices"], good["prices"])


def test_an_optimiser_that_is_replaced_in_the_middle_is_warned_of() -> None:
    hyper = hyperize(sequential(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=40)

    def advance(optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            hyper(torch.randn(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            search.step()

    advance(optimizer, 25)
    with pytest.warns(UserWarning, match="calls .* followed no optimizer.step.* make a new Search where") as caught:
        advance(torch.optim.SGD(hyper.parameter_groups(lr=0.01)), 15)
    assert sum("make a new Search" in str(warning.message) for warning in caught) == 1


def test_a_search_that_resumes_before_the_first_step_that_counts_goes_on_as_it_would_have() -> None:
    """AMP's scaler skips steps until it knows its scale."""
    hyper = hyperize(sequential(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=12, every=2)
    for _ in range(3):
        search.step()
    again = Search(hyper, optimizer, Budget(macs=0.5), steps=12, every=2)
    again.load_state_dict(search.state_dict())
    again.step()
    hyper(torch.randn(2, 3, 8, 8)).square().mean().backward()
    for _ in range(8):
        optimizer.step()
        again.step()
    assert again.done
    assert not again.unmet()


def test_frozen_latents_and_missing_rates_are_refused_before_anything_starts() -> None:
    hyper = hyperize(sequential(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    hyper.requires_grad_(False)
    with pytest.raises(SearchError, match=r"the latents are frozen .*hyper.bank.latents.requires_grad_"):
        Search(hyper, optimizer, Budget(macs=0.5), steps=4)
    hyper.requires_grad_(True)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = None
    with pytest.raises(SearchError, match=r"SGD has lr=None, but Fade takes proximal steps"):
        Search(hyper, optimizer, Budget(macs=0.5), steps=4, sparsifier=L1Proximal())
    Search(hyper, optimizer, Budget(macs=0.5), steps=4)
