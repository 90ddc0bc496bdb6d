"""A small network, an optimiser and a search, and one step of a user's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hyperprune import Budget, HyperModel, Search, hyperize
from hyperprune.generators import Generator
from tests.models import count, residual

IMAGES = (4, 3, 8, 8)
HALF = Budget(macs=0.5)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9)


def start(
    steps: int = 8,
    make: Callable[[Any], torch.optim.Optimizer] = sgd,
    model: nn.Module | None = None,
    generator: Generator | None = None,
    **options: Any,
) -> tuple[HyperModel, torch.optim.Optimizer, Search]:
    """Start a search for half the MACs of a small residual network."""
    hyper = hyperize(residual() if model is None else model, torch.zeros(IMAGES), generator=generator).train()
    optimizer = make(hyper.parameter_groups(lr=0.01))
    return hyper, optimizer, Search(hyper, optimizer, HALF, steps, **options)


def images(step: int = 0) -> Tensor:
    """A batch, the same at every call with the same number."""
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(step))


def backward(hyper: nn.Module, x: Tensor | None = None) -> Tensor:
    """Compute a loss that every latent matters to, and its gradients."""
    loss = hyper(images() if x is None else x).float().square().mean()
    loss.backward()
    return loss


def advance(hyper: HyperModel, optimizer: torch.optim.Optimizer, search: Search, steps: int = 1) -> None:
    """Take steps of an ordinary loop."""
    for _ in range(steps):
        optimizer.zero_grad()
        backward(hyper, images(search.step_count).to(next(hyper.model.parameters()).dtype))
        optimizer.step()
        search.step()


def is_met(hyper: HyperModel) -> bool:
    """Say whether the network costs at most half the MACs, and is not idle far below."""
    counts = count(hyper.living(), hyper.coupling)
    share = hyper.cost.total(counts).macs / hyper.cost.total(hyper.cost.full).macs
    return 0.4 < share <= 0.5


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two networks hold the same bits."""
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
