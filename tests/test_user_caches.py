"""What torch.export leaves in the caches of the user's code."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hyperprune import hyperize

TABLES: dict[int, Tensor] = {}


@functools.cache
def table(size: int) -> Tensor:
    return torch.sin(torch.arange(float(size)))


@functools.lru_cache(maxsize=8)
def several(size: int) -> tuple[Tensor, list[Tensor]]:
    return torch.ones(size), [torch.arange(float(size))]


@functools.lru_cache
def name(size: int) -> str:
    return f"{size} wide"


class Once:
    table: Tensor | None = None


def of_the_class(size: int) -> Tensor:
    if Once.table is None:
        Once.table = torch.sin(torch.arange(float(size)) + 1)
    return Once.table


def in_a_closure() -> Callable[[int], Tensor]:
    kept: list[Tensor] = []

    def table(size: int) -> Tensor:
        if not kept:
            kept.append(torch.tanh(torch.arange(float(size))))
        return kept[0]

    return table


enclosed = in_a_closure()


def remembered(size: int) -> Tensor:
    if size not in TABLES:
        TABLES[size] = torch.cos(torch.arange(float(size)))
    return TABLES[size]


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)

    @functools.cached_property
    def places(self) -> Tensor:
        return torch.linspace(0, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        name(width)
        x = torch.relu(self.first(x)) + table(width) + several(width)[1][0] + remembered(width)
        x = x + of_the_class(width) + enclosed(width) + self.places
        return self.out(torch.relu(self.inner(x)))


def test_caches_hold_no_fake_tensors_after_hyperize() -> None:
    for cache in (table, several, name):
        cache.cache_clear()
    TABLES.clear()
    TABLES[5] = five = torch.ones(5)
    model, x = Positions(), torch.randn(2, 3, 8, 8)
    hyper = hyperize(model, x)
    assert hyper.coupling.units == 14
    for value in (table(8), several(8)[1][0], remembered(8), Once.table, enclosed(8), model(x), hyper(x)):
        assert not isinstance(value, FakeTensor)
    assert TABLES[5] is five
    assert name.cache_info().currsize == 1
    assert torch.equal(model(x), hyper(x))


class SetsItself(nn.Module):
    """Takes its scale from the first batch that it meets, as ActNorm does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.ready = nn.Parameter(torch.ones(channels, 1, 1)), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.scale.data.copy_(1 / (1 + x.std((0, 2, 3), unbiased=False)[:, None, None]))
            self.ready = True
        return x * self.scale


def test_a_parameter_that_the_first_run_sets_is_still_unset_after_hyperize() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), SetsItself(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 8, 8)
    hyper = hyperize(model, x)
    assert bool((model[1].scale == 1).all())
    assert bool((hyper.model[1].scale == 1).all())
    assert not hyper.model[1].ready
    assert torch.equal(hyper(x), model(x))
    assert not bool((model[1].scale == 1).all())
