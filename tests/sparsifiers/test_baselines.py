"""Baselines and proximal maps: each against its formula, and every one meets the budget exactly."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperprune import (
    DHP,
    Budget,
    GroupProximal,
    HyperModel,
    L1Proximal,
    Lean,
    Magnitude,
    Random,
    Search,
    Taylor,
    Uniform,
    export_pruned,
    hyperize,
)
from hyperprune.coupling import Group
from hyperprune.criteria import relative_norms
from hyperprune.errors import SearchError
from hyperprune.generators import Generator
from hyperprune.latents import LatentBank
from hyperprune.schedule import Schedule
from hyperprune.sparsifiers import (
    Cut,
    FirstOrder,
    HardConcrete,
    Press,
    Saliency,
    SignedFirstOrder,
    Sparsifier,
    block_threshold,
    euclidean_threshold,
)
from hyperprune.sparsifiers.baselines import WeightNorm
from tests.models import count, mobile, residual, train

IMAGES = (4, 3, 8, 8)
RULES: dict[str, Callable[[], Sparsifier]] = {
    "magnitude": Magnitude,
    "taylor": Taylor,
    "signed taylor": lambda: Sparsifier(SignedFirstOrder(), Cut()),
    "random": lambda: Random(seed=5),
    "uniform": Uniform,
    "uniform saliency": lambda: Uniform(Saliency()),
    "group proximal": GroupProximal,
}
GENERATORS: dict[str, Generator] = {"lean": Lean(), "dhp": DHP(embedding=2)}
BUDGETS = [Budget(macs=0.5), Budget(params=0.3), Budget(macs=0.6, params=0.5, divisor=2), Budget(macs=0.4, floor=3)]
every_rule = pytest.mark.parametrize("rule", RULES)


def searched(rule: Sparsifier, budget: Budget, generator: Generator | None = None, steps: int = 8) -> HyperModel:
    torch.manual_seed(0)
    hyper = hyperize(residual(width=12, inner=16), torch.randn(IMAGES), generator=generator).train()
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01), momentum=0.9)
    train(hyper, Search(hyper, optimizer, budget, steps, sparsifier=rule), optimizer, torch.randn(IMAGES), steps)
    return hyper


@every_rule
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_every_rule_meets_every_budget_and_exports(rule: str, generator: str, budget: Budget) -> None:
    hyper = searched(RULES[rule](), budget, GENERATORS[generator], steps=4)
    cost, dense = hyper.cost.total(count(hyper.living(), hyper.coupling)), hyper.cost.total(hyper.cost.full)
    for resource, limit in budget.limits(dense).items():
        assert getattr(cost, resource) <= limit
    wider = []
    for at in range(len(hyper.coupling.groups)):
        counts = count(hyper.living(), hyper.coupling)
        counts[at] = min((counts[at] // budget.divisor + 1) * budget.divisor, hyper.cost.full[at])
        more = hyper.cost.total(counts)
        wider.append(more != cost and all(getattr(more, r) <= limit for r, limit in budget.limits(dense).items()))
    assert not any(wider), "a unit is left out that would still fit"
    assert sum(p.numel() for p in export_pruned(hyper).parameters()) == cost.params


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("within", [None, Saliency], ids=["magnitude", "saliency"])
def test_uniform_takes_the_same_share_of_every_group(macs: float, within: type[Saliency] | None) -> None:
    hyper = searched(Uniform(within and within()), Budget(macs=macs))
    kept = count(hyper.living(), hyper.coupling)
    share = kept.sum() / hyper.cost.full.sum()
    assert np.abs(kept - share * hyper.cost.full).max() <= 1.5


def test_uniform_keeps_the_best_of_each_group() -> None:
    hyper = searched(Uniform(Saliency()), Budget(macs=0.5), steps=1)
    felt = hyper.bank.latents.grad
    assert felt is not None
    for group in hyper.coupling.groups:
        living, score = hyper.living()[group.units], felt[group.units].square()
        assert score[living].min() >= score[~living].max()


def test_magnitude_keeps_the_largest_of_each_group() -> None:
    torch.manual_seed(0)
    hyper = hyperize(mobile(), torch.randn(IMAGES))
    rule = Magnitude()
    rule.meet(hyper, Schedule(hyper, Budget(macs=0.5)).relative_prices)
    scores = rule.scores(hyper.bank)
    for group in hyper.coupling.groups:
        norms = torch.zeros(group.size, dtype=torch.float64)
        for site in hyper.coupling.sites:
            if site.role in ("reads", "writes"):
                path, _, name = site.tensor.rpartition(".")
                weight = getattr(hyper.model.get_submodule(path), name).detach().double().transpose(0, site.axis)
                for unit, row in zip(site.units, weight, strict=True):
                    if group.start <= unit < group.start + group.size:
                        norms[unit - group.start] += row.square().sum()
        part = scores[group.units]
        torch.testing.assert_close(part / part.mean(), norms / norms.mean(), rtol=1e-6, atol=0)


def test_magnitude_asks_what_a_unit_costs_of_the_budget() -> None:
    """The solver divides by that price: under any budget the smallest weights go, whatever they cost."""
    hyper = hyperize(mobile(), torch.randn(IMAGES))
    worth = []
    for budget in (Budget(macs=0.5), Budget(params=0.5)):
        schedule, rule = Schedule(hyper, budget), Magnitude()
        rule.meet(hyper, schedule.relative_prices)
        worth.append(rule.scores(hyper.bank) / torch.from_numpy(schedule.relative_prices(hyper.living())))
    torch.testing.assert_close(*worth)


def test_dead_units_do_not_change_how_groups_compare() -> None:
    """The mean runs over the living: half a group gone, the rest is not favoured for it."""
    hyper = hyperize(residual(), torch.randn(IMAGES))
    rule = Magnitude()
    rule.meet(hyper, lambda living: np.ones(len(living)))
    group = hyper.coupling.groups[1]
    before = rule.scores(hyper.bank)
    order = before[group.units].argsort()
    dead = torch.zeros(hyper.coupling.units, dtype=torch.bool)
    dead[group.start + order[: group.size // 2]] = True
    hyper.bank.remove_(dead)
    after, living = rule.scores(hyper.bank), hyper.living()[group.units]
    assert float(after[group.units][living].mean() / before[group.units].mean()) == pytest.approx(1.0, rel=1e-6)


def test_chance_is_the_seeds_alone_and_takes_about_the_same_share_of_every_group() -> None:
    budget, living = Budget(macs=0.5), []
    for seed in (1, 1, 2):
        living.append(searched(Random(seed), budget).living())
        torch.manual_seed(seed + 100)
    assert torch.equal(living[0], living[1])
    assert not torch.equal(living[0], living[2])


def bank_of(latents: list[float]) -> LatentBank:
    bank = LatentBank((Group("a", 0, len(latents), 1, ("a",), ("b",), ()),))
    with torch.no_grad():
        bank.latents.copy_(torch.tensor(latents))
    return bank


@pytest.mark.parametrize("score", [FirstOrder, SignedFirstOrder])
def test_first_order_scores_are_moving_averages_of_the_product(score: type[FirstOrder]) -> None:
    rng, bank, made = torch.Generator().manual_seed(0), bank_of([1.0, -2.0, 0.5]), score(decay=0.8)
    expected = None
    for _ in range(6):
        gradient = torch.randn(3, generator=rng)
        product = torch.tensor([1.0, -2.0, 0.5]) * gradient
        product = product.abs() if score is FirstOrder else product
        expected = product if expected is None else 0.8 * expected + 0.2 * product
        made.observe(bank, gradient)
        made.observe(bank, torch.full((3,), torch.nan))  # a step that does not count
    assert expected is not None
    torch.testing.assert_close(made.scores(bank), expected.abs())


def test_signs_cancel_only_in_the_signed_score() -> None:
    bank, plain, signed = bank_of([1.0]), FirstOrder(0.5), SignedFirstOrder(0.5)
    for gradient in (1.0, -1.0, 1.0, -1.0) * 10:
        plain.observe(bank, torch.tensor([gradient]))
        signed.observe(bank, torch.tensor([gradient]))
    assert float(plain.scores(bank)) == pytest.approx(1.0)
    assert float(signed.scores(bank)) < 0.4


def test_a_dead_unit_keeps_its_first_order_score_and_an_unseen_one_has_none() -> None:
    bank, score = bank_of([1.0, 1.0, 0.0]), FirstOrder(0.5)
    score.observe(bank, torch.tensor([2.0, 2.0, 2.0]))
    bank.remove_(torch.tensor([True, False, False]))
    score.observe(bank, torch.tensor([9.0, 4.0, 9.0]))
    assert score.scores(bank).tolist() == [2.0, 3.0, 0.0]


@every_rule
def test_a_state_goes_on_bit_for_bit(rule: str) -> None:
    x = torch.randn(10, *IMAGES)

    def start() -> tuple[HyperModel, Search, torch.optim.Optimizer]:
        torch.manual_seed(0)
        hyper = hyperize(residual(), torch.randn(IMAGES)).train()
        optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01), momentum=0.9)
        return hyper, Search(hyper, optimizer, Budget(macs=0.5), 10, sparsifier=RULES[rule](), every=2), optimizer

    straight, before, after = start(), start(), start()
    for batch in x:
        train(*straight, batch, 1)
    for batch in x[:5]:
        train(*before, batch, 1)
    for part, saved in zip(after, before, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    for batch in x[5:]:
        train(*after, batch, 1)
    assert torch.equal(after[0].bank.gates(), straight[0].bank.gates())


def test_a_score_of_the_network_says_so_before_it_has_met_one() -> None:
    with pytest.raises(SearchError, match=r"WeightNorm scores a network that it has not met"):
        Magnitude().scores(bank_of([1.0]))


def minimised(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimise numerically, from several starts."""
    best = None
    for scale in (1.0, 0.3, 1e-3):
        x = (start * scale).clone().requires_grad_()
        solver = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15,
                                   line_search_fn="strong_wolfe")  # fmt: skip

        def closure(x: Tensor = x, solver: torch.optim.LBFGS = solver) -> Tensor:
            solver.zero_grad()
            value = objective(x)
            value.backward()
            return value

        solver.step(closure)
        if best is None or float(objective(x)) < float(objective(best)):
            best = x.detach()
    assert best is not None
    return best


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0, 5.0])
def test_the_euclidean_threshold_is_the_argmin_of_its_objective(threshold: float) -> None:
    v = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def objective(x: Tensor) -> Tensor:
        return 0.5 * (x - v).square().sum() + threshold * (x.square().sum((1, 2)) + 1e-16).sqrt().sum()

    found = euclidean_threshold(v, threshold, (1, 2))
    torch.testing.assert_close(found, minimised(objective, v), rtol=0, atol=1e-4)
    assert torch.equal((found == 0).all((1, 2)), torch.linalg.vector_norm(v, dim=(1, 2)) <= threshold)


@pytest.mark.parametrize("threshold", [0.2, 0.9, 3.0])
def test_the_block_threshold_is_the_argmin_of_its_objective(threshold: float) -> None:
    rng = torch.Generator().manual_seed(1)
    v, blocks = torch.randn(12, dtype=torch.float64, generator=rng), torch.tensor([0, 2, 1, 0, 3, 2, 2, 1, 0, 3, 3, 0])

    def objective(x: Tensor) -> Tensor:
        norms = torch.stack([(x[blocks == at].square().sum() + 1e-16).sqrt() for at in range(4)])
        return 0.5 * (x - v).square().sum() + threshold * norms.sum()

    torch.testing.assert_close(block_threshold(v, blocks, threshold), minimised(objective, v), rtol=0, atol=1e-4)
    one_each = torch.full((4,), threshold, dtype=torch.float64)
    assert torch.equal(block_threshold(v, blocks, one_each), block_threshold(v, blocks, threshold))


def test_a_block_at_zero_stays_there() -> None:
    assert euclidean_threshold(torch.zeros(2, 3), 0.0).tolist() == [[0.0] * 3] * 2
    assert block_threshold(torch.zeros(3), torch.tensor([0, 0, 1]), 1.0).tolist() == [0.0] * 3


@pytest.mark.parametrize("fade", [1.0, 2.0, 3.0])
def test_a_groups_named_units_reach_zero_together_in_the_promised_time(fade: float) -> None:
    bank, named = bank_of([1.0, 1.2, 0.7, 0.9]), torch.tensor([True, False, True, False])
    rule, size = GroupProximal(fade), (1 + 0.7**2) ** 0.5 / 2**0.5
    for step in range(round(fade * 4)):
        assert step >= fade * 4 * size or (bank.latents[[0, 2]] != 0).all()
        assert bank.latents[0] == 0 or float(bank.latents[2] / bank.latents[0]) == pytest.approx(0.7, rel=1e-4)
        rule.press_(Press(bank, named, torch.ones(4), 0.1, 4))
    assert bank.latents.tolist() == [0.0, pytest.approx(1.2), 0.0, pytest.approx(0.9)]
    with pytest.raises(SearchError, match="fade"):
        GroupProximal(0.0)


@pytest.mark.parametrize("rule", [L1Proximal, GroupProximal])
def test_units_that_faded_in_time_are_no_jump_though_momentum_moves_them(rule: Callable[[], Sparsifier]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched(rule(), Budget(macs=0.5), steps=60)


def test_norms_of_a_group_of_which_nothing_lives_stay_as_they_are() -> None:
    hyper = hyperize(residual(width=12, inner=16), torch.randn(IMAGES))
    score, branch = WeightNorm(), hyper.coupling.groups[-1].units
    score.meet(hyper, lambda living: np.ones(len(living)))
    gone = torch.zeros_like(hyper.living())
    gone[branch] = True
    hyper.bank.remove_(gone)
    norms = torch.from_numpy(relative_norms(hyper.model, hyper.coupling))
    assert torch.equal(score.scores(hyper.bank)[branch], norms[branch])


@pytest.mark.parametrize("rule", [GroupProximal, HardConcrete])
def test_a_search_goes_on_once_a_branch_has_closed(rule: Callable[[], Sparsifier]) -> None:
    budget = Budget(macs=0.08, depth=True)
    hyper = searched(rule(), budget, steps=40)
    counts, dense = count(hyper.living(), hyper.coupling), hyper.cost.total(hyper.cost.full)
    assert counts.min() == 0
    assert hyper.cost.total(counts).macs <= budget.limits(dense)["macs"]
