"""Dense against slim, side by side: latency, throughput and peak memory, by runtime and batch size.

The two networks take turns in one process, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

import torch
from rich.table import Table
from torch import nn

from hyperprune.batches import with_batch
from hyperprune.errors import InputsError, LatencyError, ModelError, UnknownNameError
from hyperprune.memory import forward_peak, onnx_peak, weight_bytes
from hyperprune.onnx_export import OnnxSession, export_onnx
from hyperprune.stopwatch import Stopwatch
from hyperprune.trace import ExampleInputs
from hyperprune.verify import eval_mode

BACKENDS = ("eager", "compile", "onnx")
RUNTIMES = {"eager": "PyTorch eager", "compile": "torch.compile", "onnx": "ONNX Runtime"}
WARMUPS = 3

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Forward passes of one network in one runtime at one batch size.

    Attributes:
        milliseconds: of every timed pass, in the order they ran.
        batch: examples in one pass.
        peak_bytes: memory at its highest (docs/deploy.md says how it is measured); None where it cannot be.
    """

    milliseconds: tuple[float, ...]
    batch: int
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Milliseconds of the middle pass."""
        return median(self.milliseconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Milliseconds between which the middle half of all passes lies."""
        if len(self.milliseconds) < 2:
            return self.milliseconds[0], self.milliseconds[0]
        low, _, high = quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high

    @property
    def throughput(self) -> float:
        """Examples per second, at the median."""
        return 1e3 * self.batch / self.median

    def to_json(self) -> dict[str, Any]:
        """Return what is worth keeping, in plain numbers."""
        return {
            "median_ms": round(self.median, 4),
            "spread_ms": [round(limit, 4) for limit in self.spread],
            "per_second": round(self.throughput, 2),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class LatencyRow:
    """Dense and slim in one runtime at one batch size.

    Attributes:
        backend: ``"eager"``, ``"compile"`` or ``"onnx"``.
        batch: examples in one pass.
        dense: the dense network.
        slim: the slim one.
    """

    backend: str
    batch: int
    dense: Timing
    slim: Timing

    @property
    def speedup(self) -> float:
        """How many times faster the slim network is: the ratio of the medians."""
        return self.dense.median / self.slim.median

    def to_json(self) -> dict[str, Any]:
        """Return the row in plain numbers."""
        return {
            "backend": self.backend,
            "runtime": RUNTIMES[self.backend],
            "batch": self.batch,
            "dense": self.dense.to_json(),
            "slim": self.slim.to_json(),
            "speedup": round(self.speedup, 3),
        }


@dataclass(frozen=True)
class LatencyComparison:
    """Everything that was measured; ``print`` it with rich.

    Attributes:
        rows: one for each runtime and batch size.
        failures: why a runtime has no rows.
        threads: threads that each network ran with.
        runs: timed passes of each network in a row.
        device: where the networks ran.
        versions: of torch, ONNX Runtime and the machine.
    """

    rows: tuple[LatencyRow, ...]
    failures: Mapping[str, str]
    threads: int
    runs: int
    device: str
    versions: Mapping[str, str]

    def row(self, backend: str, batch: int) -> LatencyRow:
        """Return one row.

        Raises:
            UnknownNameError: it was not measured.
        """
        for row in self.rows:
            if (row.backend, row.batch) == (backend, batch):
                return row
        raise UnknownNameError(f"{backend} at batch {batch} was not measured")

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "failures": dict(self.failures),
            "threads": self.threads,
            "runs": self.runs,
            "device": self.device,
            "versions": dict(self.versions),
        }

    def __rich__(self) -> Table:
        return latency_table(self)


def compare_latency(
    dense: nn.Module,
    slim: nn.Module,
    example_inputs: Any,
    *,
    batches: Sequence[int] = (1, 8),
    backends: Sequence[str] = BACKENDS,
    threads: int | None = None,
    runs: int = 30,
    note: Callable[[str], None] = lambda message: None,
) -> LatencyComparison:
    """Time a dense and a slim network in turns: dense, slim, slim, dense, ... after three passes that warm up.

    Both run in eval mode without gradients and get their modes back. ``torch.compile`` compiles for each batch size;
    ONNX Runtime runs the file that ``export_onnx`` writes, with its batch free.

    Args:
        dense: the network before.
        slim: the network after, on the same device.
        example_inputs: as for ``hyperize``; rows are repeated to reach a batch size.
        batches: batch sizes to time.
        backends: any of ``"eager"``, ``"compile"``, ``"onnx"``.
        threads: CPU threads for both networks; torch's present number by default.
        runs: timed passes of each network.
        note: called with a line of text whenever something new begins.

    Raises:
        InputsError: an unknown backend, a batch or a number of runs below 1, or inputs of the wrong type.
        ModelError: a network is no module, or the two live on different devices.
        LatencyError: no runtime could run the networks; the message holds every reason.

    Example:
        >>> dense, slim = nn.Linear(64, 64), nn.Linear(64, 32)
        >>> found = compare_latency(dense, slim, torch.randn(1, 64), batches=[4], backends=["eager"], runs=5)
        >>> len(found.row("eager", 4).slim.milliseconds)
        5
    """
    _check_numbers(batches, backends, runs, threads)
    device = _shared_device(dense, slim)
    inputs = ExampleInputs.of(example_inputs).map(lambda tensor: tensor.to(device))
    rows: list[LatencyRow] = []
    failures: dict[str, str] = {}
    with _threads(threads) as count, eval_mode(dense), eval_mode(slim), torch.no_grad():
        for backend in backends:
            try:
                rows += _rows(backend, (dense, slim), inputs, batches, runs, note)
            except Exception as error:  # a runtime may be missing, or refuse the network: the others still count
                failures[backend] = f"{type(error).__name__}: {error}"
    if not rows:
        reasons = "\n".join(f"  {RUNTIMES[backend]}: {reason}" for backend, reason in failures.items())
        raise LatencyError(f"nothing could be measured:\n{reasons}")
    return LatencyComparison(tuple(rows), failures, count, runs, str(device), _versions())


def latency_table(comparison: LatencyComparison) -> Table:
    """Return a rich table with one row for each runtime and batch size."""
    title = f"{comparison.device}, {comparison.threads} threads, medians of {comparison.runs} alternating runs"
    table = Table(title=f"{title} (in brackets: the middle half)")
    for header in ("runtime", "batch"):
        table.add_column(header)
    for header in ("dense ms", "slim ms", "faster", "dense /s", "slim /s", "dense peak", "slim peak"):
        table.add_column(header, justify="right")
    for row in comparison.rows:
        pair = (row.dense, row.slim)
        table.add_row(
            RUNTIMES[row.backend],
            str(row.batch),
            *(f"{timing.median:.2f} ({timing.spread[0]:.2f}-{timing.spread[1]:.2f})" for timing in pair),
            f"{row.speedup:.2f}x",
            *(f"{timing.throughput:.1f}" for timing in pair),
            *("-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.1f} MB" for timing in pair),
        )
    for backend, reason in comparison.failures.items():
        table.add_row(RUNTIMES[backend], "-", reason.splitlines()[0][:60])
    return table


class _Runtime(Protocol):
    """One network, made ready in one runtime."""

    def call(self, inputs: ExampleInputs) -> Call:
        """Return one forward pass on these inputs."""

    def peak(self, inputs: ExampleInputs) -> int | None:
        """Return the bytes that a pass takes at its highest, weights included."""


class _Torch:
    """A network as it is, or compiled."""

    def __init__(self, network: nn.Module, run: Callable[..., Any]) -> None:
        self._network = network
        self._run = run

    def call(self, inputs: ExampleInputs) -> Call:
        return lambda: self._run(*inputs.args, **inputs.kwargs)

    def peak(self, inputs: ExampleInputs) -> int:
        return weight_bytes(self._network) + forward_peak(self.call(inputs), inputs.tensors()[0].device)


class _Onnx:
    """A network as a file in ONNX Runtime."""

    def __init__(self, network: nn.Module, inputs: ExampleInputs, path: Path) -> None:
        self._path = path
        self._device = inputs.tensors()[0].device.type
        export_onnx(network, inputs, path)
        self._session = OnnxSession(path, threads=torch.get_num_threads(), device=self._device)

    def call(self, inputs: ExampleInputs) -> Call:
        feed = self._session.feed(inputs.tensors())
        return lambda: self._session.run(feed)

    def peak(self, inputs: ExampleInputs) -> int | None:
        if self._device != "cpu":
            return None
        feed = self._session.feed(inputs.tensors())
        return onnx_peak(self._path, feed, self._session.provider, torch.get_num_threads())


@contextmanager
def _made_ready(backend: str, networks: Sequence[nn.Module], inputs: ExampleInputs) -> Iterator[list[_Runtime]]:
    """Make networks ready in one runtime for as long as the block lasts."""
    if backend == "eager":
        yield [_Torch(network, network) for network in networks]
    elif backend == "compile":
        # The networks share their class's code, for which torch would stop compiling after a few variants.
        with torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True):
            yield [_Torch(network, torch.compile(network, dynamic=False)) for network in networks]
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield [_Onnx(network, inputs, Path(folder) / f"{at}.onnx") for at, network in enumerate(networks)]


def _rows(
    backend: str,
    networks: Sequence[nn.Module],
    inputs: ExampleInputs,
    batches: Sequence[int],
    runs: int,
    note: Callable[[str], None],
) -> list[LatencyRow]:
    note(f"{RUNTIMES[backend]}: getting ready")
    rows = []
    with _made_ready(backend, networks, inputs) as runtimes:
        for batch in batches:
            note(f"{RUNTIMES[backend]}, batch {batch}")
            fed = with_batch(inputs, batch).copied()
            times = in_turns([runtime.call(fed) for runtime in runtimes], runs, fed.tensors()[0].device)
            peaks = [runtime.peak(fed) for runtime in runtimes]
            dense, slim = (Timing(tuple(t), batch, peak) for t, peak in zip(times, peaks, strict=True))
            rows.append(LatencyRow(backend, batch, dense, slim))
    return rows


def in_turns(calls: Sequence[Call], runs: int, device: torch.device) -> list[list[float]]:
    """Return the milliseconds of ``runs`` passes of every call, which take turns.

    Example:
        >>> [len(times) for times in in_turns([lambda: None, lambda: None], 2, torch.device("cpu"))]
        [2, 2]
    """
    watch = Stopwatch(device, warmups=WARMUPS, fewest=runs, most=runs)
    return [[1e-6 * nanoseconds for nanoseconds in times] for times in watch.times(calls)]


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Let torch use this many threads for a while; yield how many it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _check_numbers(batches: Sequence[int], backends: Sequence[str], runs: int, threads: int | None) -> None:
    if isinstance(backends, str) or not isinstance(batches, Sequence):
        raise InputsError('batches and backends are lists: batches=[1, 8], backends=["eager"].')
    if unknown := [backend for backend in backends if backend not in BACKENDS]:
        raise InputsError(f"no backend {unknown[0]!r}; there are: {', '.join(BACKENDS)}.")
    if not batches or not backends:
        raise InputsError("name at least one batch size and one backend.")
    if min(*batches, runs, 1 if threads is None else threads) < 1:
        raise InputsError("batches, runs and threads must be at least 1.")


def _shared_device(*networks: nn.Module) -> torch.device:
    for network in networks:
        if not isinstance(network, nn.Module):
            raise ModelError(f"compare_latency takes two torch.nn.Modules, not {type(network).__name__}.")
    devices = {p.device for network in networks for p in network.parameters()} or {torch.device("cpu")}
    if len(devices) > 1:
        raise ModelError(f"the networks live on several devices ({', '.join(map(str, devices))}). Move both to one.")
    return devices.pop()


def _versions() -> dict[str, str]:
    try:
        import onnxruntime

        runtime = str(onnxruntime.__version__)
    except ImportError:
        runtime = "not installed"
    return {"torch": torch.__version__, "onnxruntime": runtime, "machine": platform.machine()}
