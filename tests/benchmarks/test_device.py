"""What a benchmark trains in, by what the processor says of itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks import device
from benchmarks.device import BFLOAT16, FLOAT32, autocast, layout, precision

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """A processor whose features the test chooses."""
    features: dict[str, bool] = {"avx2": True}
    monkeypatch.setattr(device, "_cpu_features", lambda: features)
    device._has_bfloat16.cache_clear()
    yield features
    device._has_bfloat16.cache_clear()


@pytest.mark.parametrize("instruction", ["amx_bf16", "avx512_bf16", "bf16"])
def test_bfloat16_and_channels_last_where_the_processor_has_it(processor: dict[str, bool], instruction: str) -> None:
    processor[instruction] = True
    assert (precision(CPU), layout(CPU)) == (BFLOAT16, torch.channels_last)
    with autocast(CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_float32_and_plain_layout_where_it_would_be_imitated(processor: dict[str, bool]) -> None:
    assert (precision(CPU), layout(CPU)) == (FLOAT32, torch.contiguous_format)
    with autocast(CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_a_torch_that_cannot_say_counts_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert device._cpu_features() == {}
