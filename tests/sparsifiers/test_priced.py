"""Scores made of another one: how ``Balanced`` lets groups compare."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, Fisher, HyperModel, Uniform, hyperize
from hyperprune.errors import SearchError
from hyperprune.schedule import Schedule
from hyperprune.sparsifiers import Balanced, Saliency
from tests.models import count, residual

IMAGES = (4, 3, 8, 8)


class Given(Saliency):
    """Scores that a test sets."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.average = scores


def network() -> HyperModel:
    torch.manual_seed(0)
    return hyperize(residual(), torch.randn(IMAGES))


def uneven(hyper: HyperModel) -> Tensor:
    """Scores each of whose groups lies four times as high as the one before."""
    rng = torch.Generator().manual_seed(1)
    of_unit = torch.from_numpy(hyper.coupling.of_unit())
    return (0.5 + torch.rand(hyper.coupling.units, generator=rng)) * 4.0**of_unit


def balanced(hyper: HyperModel, scores: Tensor, balance: float, budget: Budget | None = None) -> Balanced:
    score = Balanced(Given(scores), balance)
    score.meet(hyper, Schedule(hyper, budget or Budget(macs=0.5)).relative_prices)
    return score


def yields(hyper: HyperModel, scores: Tensor, budget: Budget) -> list[float]:
    prices = Schedule(hyper, budget).relative_prices(hyper.living())
    each = scores.double().numpy() / prices
    return [float(each[group.units].mean()) for group in hyper.coupling.groups]


def test_without_balance_the_scores_are_the_inner_ones_and_whole_balance_lets_groups_start_alike() -> None:
    hyper = network()
    scores = uneven(hyper)
    assert torch.equal(balanced(hyper, scores, 0.0).scores(hyper.bank), scores.double())
    for budget in (Budget(macs=0.5), Budget(params=0.5)):
        found = yields(hyper, balanced(hyper, scores, 1.0, budget).scores(hyper.bank), budget)
        assert found == pytest.approx([found[0]] * len(found))


def test_half_a_balance_leaves_the_root_of_what_sets_groups_apart() -> None:
    hyper, budget = network(), Budget(macs=0.5)
    scores = uneven(hyper)
    halved = balanced(hyper, scores, 0.5).scores(hyper.bank)
    before, after = yields(hyper, scores, budget), yields(hyper, halved, budget)
    assert np.array(after) / after[0] == pytest.approx(np.sqrt(np.array(before) / before[0]))


def test_the_order_within_a_group_stays() -> None:
    hyper = network()
    scores = uneven(hyper)
    found = balanced(hyper, scores, 0.7).scores(hyper.bank)
    for group in hyper.coupling.groups:
        assert torch.equal(found[group.units].argsort(), scores[group.units].argsort())


def test_groups_without_scores_stay_finite_and_worthless_and_nothing_is_balanced_before_there_are_scores() -> None:
    hyper = network()
    scores = uneven(hyper)
    first = hyper.coupling.groups[0]
    scores[first.units] = 0
    score = balanced(hyper, torch.zeros_like(scores), 0.5)
    assert not score.scores(hyper.bank).any()
    assert score.factor is None
    score.within.average = scores
    found = score.scores(hyper.bank)
    assert found.isfinite().all()
    assert not found[first.units].any()


def test_the_first_yields_count_all_through_a_search_and_in_a_search_that_goes_on() -> None:
    """Else a group whose units become dearer as they get fewer would be pressed on."""
    hyper = network()
    scores = uneven(hyper)
    score = balanced(hyper, scores, 0.5)
    before = score.scores(hyper.bank)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 0)
    score.within.average = scores * 7
    torch.testing.assert_close(score.scores(hyper.bank), before * 7)
    other = balanced(hyper, scores, 0.5)
    other.load_state_dict(copy.deepcopy(score.state_dict()))
    assert torch.equal(other.scores(hyper.bank), score.scores(hyper.bank))


def test_only_the_living_count() -> None:
    hyper = network()
    scores = uneven(hyper)
    group = hyper.coupling.groups[0]
    dead = torch.zeros(hyper.coupling.units, dtype=torch.bool)
    dead[group.start : group.start + group.size // 2] = True
    hyper.bank.remove_(dead)
    wild = scores.clone()
    wild[dead] = 1e6
    calm, stirred = (balanced(hyper, each, 0.5).scores(hyper.bank) for each in (scores, wild))
    torch.testing.assert_close(calm[~dead], stirred[~dead])


def test_the_more_balance_the_nearer_widths_lie_to_uniform_ones() -> None:
    chain = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, 32, 32, 32, 3))))
    hyper = hyperize(chain, torch.randn(IMAGES))
    schedule = Schedule(hyper, Budget(macs=0.5))

    def widths(scores: Tensor) -> np.ndarray:
        return count(torch.from_numpy(schedule.kept(scores.numpy(), hyper.living(), 1.0)), hyper.coupling)

    skewed = uneven(hyper)
    rank = Uniform(Given(skewed))
    rank.meet(hyper, schedule.relative_prices)
    even = widths(rank.scores(hyper.bank))
    apart = [abs(widths(balanced(hyper, skewed, b).scores(hyper.bank)) - even).sum() for b in (0.0, 0.5, 1.0)]
    assert apart[0] > apart[1] > apart[2]


@pytest.mark.parametrize("balance", [-0.1, 1.5, float("nan")])
def test_a_balance_out_of_range_is_refused(balance: float) -> None:
    with pytest.raises(SearchError, match="balance must be in"):
        Fisher(balance=balance)
