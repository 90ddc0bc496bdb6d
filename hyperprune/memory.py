"""Peak memory of a forward pass: by torch's own books for torch, by the system's for a file in ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hyperprune.errors import OnnxError

_STATUS = Path("/proc/self/status")
_CHILD = """
import sys
import numpy, onnxruntime

def high_water():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

model, inputs, provider, threads = sys.argv[1:]
feed = dict(numpy.load(inputs, allow_pickle=False))
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = int(threads)
before = high_water()
session = onnxruntime.InferenceSession(model, options, providers=[provider])
session.run(None, feed)
print(high_water() - before)
"""


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, each counted once.

    Example:
        >>> weight_bytes(nn.Linear(3, 2))
        32
    """
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def forward_peak(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that tensors made during a call took at one time.

    Every tensor from torch's allocator counts, nothing else: no weights, no library's own scratch memory.

    Example:
        >>> forward_peak(lambda: [torch.zeros(1000), torch.zeros(500)], torch.device("cpu"))
        6000
    """
    return _cuda_peak(call, device) if device.type == "cuda" else _cpu_peak(call)


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(call: Callable[[], object]) -> int:
    with _stderr_closed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return _highest(changes)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Keep what the profiler's C++ part logs, whatever its level is set to, off the screen."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _highest(changes: list[dict[str, Any]]) -> int:
    """Return the largest running sum of what was taken and given back."""
    sizes = [int(change["args"]["Bytes"]) for change in sorted(changes, key=lambda change: change["ts"])]
    return max(0, int(np.cumsum(sizes).max())) if sizes else 0


def onnx_peak(path: Path, feed: Mapping[str, Any], provider: str, threads: int) -> int | None:
    """Return by how many bytes a fresh process grows, at its highest, while it opens an ONNX file and runs it once.

    None where the system does not say (it does on Linux).

    Raises:
        OnnxError: the file does not run.
    """
    if not _STATUS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **feed)
        command = [sys.executable, "-c", _CHILD, str(path), str(inputs), provider, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OnnxError(f"{path.name} does not run in a process of its own: {done.stderr.strip()[-500:]}")
    return int(done.stdout)
