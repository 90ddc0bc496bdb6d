"""Networks put into another dtype or layout, or onto another device, while they are searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperprune import Fisher, L1Proximal, PublishedL1, export_pruned
from hyperprune.errors import ModelError
from tests.faults.loop import advance, images, is_met, start

RULES = [Fisher, L1Proximal, PublishedL1]


def plain_sgd(groups: Any) -> torch.optim.Optimizer:
    """Without momentum: torch's own optimisers do not take their state along to another dtype."""
    return torch.optim.SGD(groups, lr=0.01)


@pytest.mark.filterwarnings("ignore:.*had to be cut at once")
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_at_any_time(dtype: torch.dtype, rule: Any, when: int) -> None:
    hyper, optimizer, search = start(make=plain_sgd, sparsifier=rule())
    advance(hyper, optimizer, search, when)
    hyper.to(dtype)
    advance(hyper, optimizer, search, 8 - when)
    assert is_met(hyper)
    slim = export_pruned(hyper)
    assert {p.dtype for p in slim.parameters()} == {dtype}
    assert slim(images().to(dtype)).dtype == dtype


@pytest.mark.parametrize("convert", [lambda h: h.half(), lambda h: h.bfloat16(), lambda h: h.to(torch.float16)])
def test_latents_stay_in_single_precision_when_the_weights_are_halved(convert: Callable[[Any], Any]) -> None:
    """Beside a latent of 1, a step of 1e-4 is nothing in half precision."""
    hyper, optimizer, search = start()
    hyper.bank.latents.data.fill_(1.0001)
    latents = hyper.bank.latents
    assert convert(hyper) is hyper
    assert hyper.bank.latents is latents
    assert hyper.bank.latents.dtype == hyper.bank.alive.dtype == torch.float32
    assert torch.equal(latents, torch.full_like(latents, 1.0001)), "not rounded on the way either"
    assert hyper.model.stem.weight.dtype != torch.float32
    advance(hyper, optimizer, search)
    assert latents.grad.dtype == torch.float32


def test_double_and_float_again() -> None:
    hyper, optimizer, search = start(make=plain_sgd)
    advance(hyper, optimizer, search, 3)
    hyper.double()
    assert hyper.bank.latents.dtype == torch.float64
    advance(hyper, optimizer, search, 2)
    hyper.float()
    advance(hyper, optimizer, search, 3)
    assert is_met(hyper)
    export_pruned(hyper)


def test_channels_last_at_any_time() -> None:
    hyper, optimizer, search = start()
    advance(hyper, optimizer, search, 3)
    hyper.to(memory_format=torch.channels_last)
    advance(hyper, optimizer, search, 5)
    assert is_met(hyper)
    assert export_pruned(hyper)(images()).shape == (4, 3)


def test_a_network_without_values_is_not_exported() -> None:
    hyper, _, _ = start()
    with pytest.raises(ModelError, match="has no values"):
        export_pruned(hyper.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_another_device_at_any_time() -> None:
    hyper, optimizer, search = start(make=plain_sgd)
    for device in ("cpu", "cuda", "cpu", "cuda"):
        hyper.to(device)
        for _ in range(2):
            optimizer.zero_grad()
            hyper(images(search.step_count).to(device)).square().mean().backward()
            optimizer.step()
            search.step()
    assert is_met(hyper)
    export_pruned(hyper)
