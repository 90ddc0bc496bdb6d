"""An ordinary ``search.step()`` never asks the device for a value, so the host runs ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperprune import Budget, Fisher, L1Proximal, PublishedL1, Search, hyperize
from tests.faults.loop import HALF, IMAGES, backward, start
from tests.models import residual

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.is_nonzero}
RULES = [Fisher, L1Proximal, PublishedL1]


class NoWaiting(TorchDispatchMode):
    """Fails on operations whose result the host must wait for, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket not in WAITING, f"{function} makes the host wait"
        self.calls += 1
        return function(*args, **(kwargs or {}))


def on_meta(rule: Any, **options: Any) -> tuple[torch.optim.Optimizer, Search, Callable[[], None]]:
    """Start a search on the device without values, where whatever reads one is an error."""
    hyper = hyperize(residual(), torch.zeros(IMAGES)).to("meta")
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1), **options)
    search = Search(hyper, optimizer, HALF, steps=1000, sparsifier=rule(), every=50)

    def gradients() -> None:
        hyper.bank.latents.grad = torch.ones_like(hyper.bank.latents)

    return optimizer, search, gradients


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_ordinary_steps_run_on_a_device_that_has_no_values_at_all(rule: Any, attached: bool) -> None:
    optimizer, search, gradients = on_meta(rule)
    if attached:
        search.attach(optimizer)
    step = optimizer.step if attached else lambda: (optimizer.step(), search.step())
    for _ in range(49):
        gradients()
        step()
    assert search.step_count == 49
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the decision does look
        step()


@pytest.mark.parametrize("rule", RULES)
def test_ordinary_steps_call_few_operations_and_none_that_waits(rule: Any) -> None:
    hyper, optimizer, search = start(steps=1000, sparsifier=rule(), every=50)
    for _ in range(10):
        backward(hyper)
        with NoWaiting():
            optimizer.step()
        with NoWaiting() as stepped:
            search.step()
        assert 0 < stepped.calls <= 10
    with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
        search.state_dict()


def test_the_number_of_operations_does_not_grow_with_the_network() -> None:
    counts = []
    for model in (residual(), torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 1) for _ in range(30)])):
        hyper = hyperize(model, torch.zeros(IMAGES))
        optimizer = torch.optim.SGD([hyper.bank.latents], lr=0.1)
        search = Search(hyper, optimizer, Budget(macs=0.7), 1000, sparsifier=L1Proximal(), every=50)
        with NoWaiting() as mode:
            for _ in range(3):
                hyper.bank.latents.grad = torch.ones_like(hyper.bank.latents)
                optimizer.step()
                search.step()
        counts.append(mode.calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("rule", RULES)
def test_a_learning_rate_that_lies_on_the_device_stays_there(rule: Any) -> None:
    """As capturable optimisers and CUDA graphs keep it."""
    optimizer, search, _ = on_meta(rule)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1, device="meta")
    for _ in range(5):
        search.step()
    assert search.step_count == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no device to wait for")
@pytest.mark.parametrize("rule", RULES)
def test_cuda_itself_sees_no_wait(rule: Any) -> None:
    hyper = hyperize(residual().cuda(), torch.zeros(IMAGES, device="cuda"))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01), momentum=0.9)
    search = Search(hyper, optimizer, HALF, 1000, sparsifier=rule(), every=50)
    for step in range(20):
        hyper(torch.randn(IMAGES, device="cuda")).square().mean().backward()
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        try:
            optimizer.step()
            search.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
