"""Peaks of memory that can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyperprune import export_onnx
from hyperprune.errors import OnnxError
from hyperprune.memory import forward_peak, onnx_peak, weight_bytes

CPU = torch.device("cpu")


def test_tensors_that_live_at_the_same_time_add_up() -> None:
    assert forward_peak(lambda: [torch.zeros(1000), torch.zeros(1000)], CPU) == 8000


def test_tensors_that_live_after_each_other_do_not() -> None:
    def one_by_one() -> None:
        for _ in range(3):
            torch.zeros(1000)

    assert forward_peak(one_by_one, CPU) == 4000


def test_a_call_that_makes_no_tensor_takes_nothing() -> None:
    assert forward_peak(lambda: None, CPU) == 0


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(10, 10, bias=False)
    assert weight_bytes(nn.Sequential(layer, layer, nn.BatchNorm1d(2))) == 400 + 4 * 8 + 8


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_file_takes_at_least_its_weights(tmp_path: Path) -> None:
    wide = nn.Linear(2048, 2048)
    export_onnx(wide, torch.randn(1, 2048), tmp_path / "wide.onnx")
    feed = {"input": np.zeros((1, 2048), dtype=np.float32)}
    peak = onnx_peak(tmp_path / "wide.onnx", feed, "CPUExecutionProvider", 1)
    assert peak is not None
    assert weight_bytes(wide) < peak < 20 * weight_bytes(wide)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_file_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(OnnxError, match=r"no\.onnx does not run"):
        onnx_peak(tmp_path / "no.onnx", {}, "CPUExecutionProvider", 1)
