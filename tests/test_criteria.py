"""Scores for ``prune``: the price in them is that of what the budget limits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune import Budget, hyperize
from hyperprune.budget import Solver
from hyperprune.criteria import CRITERIA, criterion
from hyperprune.hyper import allowed_widths
from hyperprune.metering import priced

WIDTH = 64


def strided() -> nn.Sequential:
    """Three groups of one width, whose prices differ greatly, and in MACs otherwise than in parameters."""
    torch.manual_seed(0)
    convs = [
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=4),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=4),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 8, 1),
    ]
    return nn.Sequential(*convs)


@pytest.mark.parametrize("resource", ["macs", "params"])
def test_by_chance_each_group_loses_about_the_same_share_of_what_is_limited(resource: str) -> None:
    hyper, budget = hyperize(strided(), torch.randn(1, 3, 32, 32)), Budget(**{resource: 0.3})
    cost = priced(hyper, budget)
    solver = Solver(cost, allowed_widths(hyper, budget))
    scores = criterion("random")(hyper.model, hyper.coupling, cost, resource)
    keep = solver.solve(scores, budget.limits(cost.total(cost.full)))
    left = [int(keep[group.units].sum()) for group in hyper.coupling.groups]
    assert min(left) > 0.35 * WIDTH
    assert max(left) < 0.75 * WIDTH


@pytest.mark.parametrize("name", CRITERIA)
def test_no_unit_is_worthless_where_a_budget_limits_a_peak_elsewhere(name: str) -> None:
    hyper = hyperize(strided(), torch.randn(1, 3, 32, 32))
    cost = priced(hyper, Budget(activation_bytes=0.5))
    assert (criterion(name)(hyper.model, hyper.coupling, cost, "activation_bytes") > 0).all()
