"""Timings are taken in turns, summed up rightly, and leave the networks as they were."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hyperprune.errors import InputsError, LatencyError, ModelError
from hyperprune.latency import WARMUPS, LatencyComparison, LatencyRow, Timing, compare_latency, in_turns, latency_table
from hyperprune.memory import weight_bytes

X = torch.randn(1, 16)


class Refuses(nn.Module):
    """Runs, but cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > -1e9 else x


@pytest.fixture(scope="module")
def found() -> LatencyComparison:
    dense, slim = nn.Linear(16, 512), nn.Linear(16, 64)
    return compare_latency(dense, slim, X, batches=(1, 3), backends=("eager", "onnx"), threads=1, runs=4)


def test_median_spread_and_throughput() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), batch=6)
    assert timing.median == 3.0
    assert timing.spread == (2.0, 4.0)
    assert timing.throughput == 2000.0


def test_one_run_has_no_spread() -> None:
    assert Timing((5.0,), batch=1).spread == (5.0, 5.0)


def test_speedup_is_dense_over_slim() -> None:
    assert LatencyRow("onnx", 1, Timing((6.0,), 1), Timing((3.0,), 1)).speedup == 2.0


def test_calls_take_turns_and_every_other_turn_goes_backwards() -> None:
    order: list[str] = []
    times = in_turns([lambda: order.append("d"), lambda: order.append("s")], 3, torch.device("cpu"))
    assert "".join(order) == "ds" * WARMUPS + "sddssd"
    assert [len(t) for t in times] == [3, 3]


def test_every_runtime_and_batch_has_a_row(found: LatencyComparison) -> None:
    assert [(row.backend, row.batch) for row in found.rows] == [("eager", 1), ("eager", 3), ("onnx", 1), ("onnx", 3)]
    assert not found.failures
    for row in found.rows:
        assert len(row.dense.milliseconds) == len(row.slim.milliseconds) == 4
        assert min(*row.dense.milliseconds, *row.slim.milliseconds) > 0


def test_peak_memory_of_pytorch_is_weights_and_outputs_exactly(found: LatencyComparison) -> None:
    row = found.row("eager", 3)
    assert row.dense.peak_bytes == weight_bytes(nn.Linear(16, 512)) + 4 * 3 * 512
    assert row.slim.peak_bytes == weight_bytes(nn.Linear(16, 64)) + 4 * 3 * 64


def test_a_row_that_was_not_measured_is_a_key_error(found: LatencyComparison) -> None:
    with pytest.raises(KeyError, match="compile at batch 1"):
        found.row("compile", 1)


def test_json_holds_the_numbers_of_the_rows(found: LatencyComparison) -> None:
    data = json.loads(json.dumps(found.to_json()))
    assert data["threads"] == 1
    assert data["rows"][0]["dense"]["median_ms"] == round(found.rows[0].dense.median, 4)
    assert data["rows"][3]["speedup"] == round(found.rows[3].speedup, 3)


def test_the_table_shows_times_ratios_and_memory(found: LatencyComparison) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(latency_table(found))
    text = console.export_text()
    assert f"{found.rows[2].speedup:.2f}x" in text
    assert "ONNX Runtime" in text
    assert "MB" in text


@pytest.mark.slow
def test_networks_of_one_class_are_both_compiled_for_every_batch() -> None:
    before = counters["stats"]["unique_graphs"]
    pair = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    row = compare_latency(*pair, X, batches=[2, 4], backends=["compile"], runs=2).row("compile", 2)
    assert counters["stats"]["unique_graphs"] == before + 4
    assert row.dense.peak_bytes is not None
    assert row.dense.peak_bytes >= weight_bytes(pair[0]) + 4 * 2 * 32


def test_modes_threads_and_gradients_come_back() -> None:
    dense, slim = nn.Sequential(nn.Linear(16, 4), nn.Dropout()), nn.Linear(16, 2)
    dense[0].eval()
    threads = torch.get_num_threads()
    seen: list[bool] = []
    dense.register_forward_hook(lambda module, args, output: seen.append(module.training or output.requires_grad))
    compare_latency(dense, slim, X, batches=[1], backends=["eager"], threads=threads + 1, runs=1)
    assert (dense.training, dense[0].training, slim.training) == (True, False, True)
    assert torch.get_num_threads() == threads
    assert set(seen) == {False}


def test_a_runtime_that_refuses_is_noted_and_the_others_count() -> None:
    result = compare_latency(Refuses(), Refuses(), X, batches=[1], backends=["eager", "onnx"], runs=1)
    assert [row.backend for row in result.rows] == ["eager"]
    assert "torch.export cannot export Refuses" in result.failures["onnx"]


def test_when_all_runtimes_refuse_every_reason_is_told() -> None:
    with pytest.raises(LatencyError, match=r"ONNX Runtime: OnnxError: torch\.export cannot export Refuses"):
        compare_latency(Refuses(), Refuses(), X, batches=[1], backends=["onnx"], runs=1)


@pytest.mark.parametrize(
    "wrong",
    [{"backends": ["tpu"]}, {"batches": [0]}, {"batches": []}, {"runs": 0}, {"threads": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_numbers_out_of_range_are_refused_before_anything_runs(wrong: dict[str, object]) -> None:
    with pytest.raises(InputsError, match=r"no backend|at least"):
        compare_latency(nn.Linear(16, 2), nn.Linear(16, 2), X, **wrong)


def test_a_path_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"two torch\.nn\.Modules"):
        compare_latency(nn.Linear(2, 2), tmp_path, X)
