"""Reports count independently and compare with the first."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from hyperprune.errors import HyperpruneError
from hyperprune.report import ModelReport, comparison_table, measure_latency, report_on


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


DENSE = ModelReport("dense", macs=40_000_000, params=270_000, accuracy=0.99, latency_ms={1: 2.0})
SLIM = ModelReport(
    "slim",
    macs=20_000_000,
    params=135_000,
    accuracy=0.985,
    accuracy_when_cut=0.91,
    latency_ms={1: 1.0},
    file_bytes=500_000,
    proof_error=3e-7,
)


def test_counts_are_multiply_adds_and_parameters() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    report = report_on("layer", layer, torch.zeros(1, 3, 4, 4))
    assert report.macs == 4 * 4 * 8 * 3 * 3 * 3
    assert report.params == 8 * 3 * 3 * 3 + 8


def test_a_report_keeps_the_numbers_it_is_given() -> None:
    report = report_on("x", nn.Linear(2, 2), torch.zeros(1, 2), accuracy=0.5, latency_ms={8: 1.5})
    assert (report.accuracy, report.latency_ms, report.file_bytes) == (0.5, {8: 1.5}, None)


def test_other_columns_show_their_share_of_the_first() -> None:
    text = text_of(comparison_table([DENSE, SLIM]))
    for cell in ("20.00 M (50.0%)", "135.0 k (50.0%)", "98.5% (-0.5 points)", "1.00 ms (50.0%)", "3.0e-07"):
        assert cell in text


def test_a_number_that_the_first_lacks_is_shown_without_a_share() -> None:
    text = text_of(comparison_table([DENSE, SLIM]))
    assert "500 kB" in text
    assert "500 kB (" not in text


def test_what_nobody_measured_gets_no_row() -> None:
    text = text_of(comparison_table([DENSE]))
    assert "proof" not in text
    assert "weights on disk" not in text
    assert "latency, batch 1" in text


def test_what_only_some_measured_is_a_dash_for_the_others() -> None:
    table = comparison_table([DENSE, SLIM])
    row = list(table.columns[0].cells).index("proof: relative error")
    assert list(table.columns[1].cells)[row] == "–"


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(HyperpruneError, match="nothing to compare"):
        comparison_table([])


def test_latency_is_measured_in_eval_mode_and_every_mode_is_given_back() -> None:
    modes: list[bool] = []
    first, second = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    first[0].eval()
    second.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    latency = measure_latency({"first": first, "second": second}, torch.zeros(2, 4), rounds=3)
    assert set(latency) == {"first", "second"}
    assert all(milliseconds > 0 for milliseconds in latency.values())
    assert set(modes) == {False}
    assert (first.training, first[0].training, second.training) == (True, False, True)


def test_models_take_turns() -> None:
    order: list[str] = []
    models: dict[str, nn.Module] = {"a": nn.Identity(), "b": nn.Identity()}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    measure_latency(models, torch.zeros(1), rounds=2)
    assert order == ["a", "b"] * 5  # three rounds that warm up, two that count
