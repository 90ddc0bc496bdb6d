"""How `make bench-speed` counts memory, and that its published order of DHP is the same network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from benchmarks.speed_report import MARKS, page
from benchmarks.speed_steps import CONTENDERS, most_allocated, steps


def test_memory_is_the_most_that_lies_allocated_at_a_time() -> None:
    def work() -> None:
        first, second = torch.zeros(1000), torch.zeros(2000)
        del first
        third = torch.zeros(500)
        del second, third

    assert most_allocated(work) == 4 * 3000


def test_what_is_computed_in_the_published_order_is_the_same_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    x = torch.randn(2, 3, 8, 8)
    model(x)
    expected = model(x)
    for kind in ("dhp", "dhp as published"):
        assert torch.equal(CONTENDERS[kind](model, x[:1]).model(x), expected)


def test_a_report_shows_every_step() -> None:
    found = steps("resnet20", ["lean"], (2, 3, 32, 32), 2)
    rows = {"step/resnet20": {**found, "threads": 1, "load_before": 0.5}}
    results = {"about": {"torch": "2", "cores": 2, "gpu": None}, "rows": rows}
    text = page(f"before {MARKS[0]} old {MARKS[1]} after", results)
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert " old " not in text
    assert "| resnet20, 2, 32 (2 rounds) | lean |" in text
