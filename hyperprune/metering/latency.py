"""A latency model fitted to one network on its own device, and its error."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from hyperprune.budget import Budget, Ladder
from hyperprune.cost import Axes, LatencyModel
from hyperprune.cost.latency import Written
from hyperprune.errors import ModelError
from hyperprune.hyper import HyperModel
from hyperprune.metering.activations import measure_activations
from hyperprune.metering.layers import layer_tables, timed_layers
from hyperprune.metering.networks import Tailor
from hyperprune.stopwatch import Clock, Stopwatch

RUNGS = (0.06, 0.25, 0.5, 0.75, 1.0)
NETWORKS = 14  # of random widths, beside the dense one
PER_TABLE = 0.3  # seconds for one layer's table
PER_CHECK = 3.0  # seconds for timing one slim network beside the dense one
DENSE = 10.0  # weight of the dense network in the fit: fractions are fractions of it


@dataclass(frozen=True, eq=False)
class PairClock:
    """Times a slim network beside the dense one."""

    tailor: Tailor
    stopwatch: Stopwatch

    def ratio(self, alive: np.ndarray) -> float:
        """Return the slim network's share of the dense one's time, the two taking turns."""
        slim = _runs(self.tailor, self.tailor.slim(alive))
        return self.stopwatch.ratio(slim, to=_runs(self.tailor, self.tailor.dense))


def fit_latency(
    hyper: HyperModel, *, divisor: int = 1, seconds: float = 8.0, clock: Clock = time.perf_counter_ns
) -> LatencyModel:
    """Measure layers and whole networks on the model's device, fit a latency model, and say how far it is off.

    Every convolution and linear layer is timed at up to five by five widths. Fourteen networks of random widths and
    the dense one are timed in turns; three numbers are fitted to them (what a layer costs inside a network, what a
    byte written costs, what no width changes). The error is that of leaving each network out of the fit in turn.
    Let the machine do nothing else meanwhile. It takes from seconds to a minute.

    Args:
        hyper: what ``hyperize`` returned; the example inputs it was given are what is timed.
        divisor: that of the budget: widths that suit the hardware are faster than others.
        seconds: for timing the whole networks.
        clock: what is read, in nanoseconds. On a busy machine, and with ``torch.set_num_threads(1)`` on a CPU,
            ``time.thread_time_ns`` counts only the time in which the network really ran.

    Raises:
        BudgetError: the network makes other calls at other widths.

    Example:
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)), torch.randn(64, 256))
        >>> model = fit_latency(hyper, seconds=0.1)
        >>> bool(model.values([100]) < model.values([512]))
        True
    """
    if not isinstance(hyper, HyperModel):
        raise ModelError(f"fit_latency takes what hyperize returned, not {type(hyper).__name__}.")
    tailor = Tailor(hyper)
    ladder = Ladder.of(hyper.coupling.groups, Budget(macs=1.0, divisor=divisor))
    stopwatch = Stopwatch(tailor.device, seconds=seconds, clock=clock)
    unfitted = _tables(hyper, tailor, ladder, stopwatch)
    counts = [ladder.full, *_random_widths(ladder)]
    calls = [_runs(tailor, tailor.of_counts(widths)) for widths in counts]
    measured = np.array(stopwatch.medians(calls))
    features = np.array([unfitted.features(widths) for widths in counts])
    held_out = [_predicted_without(features, measured, at) / measured[at] - 1 for at in range(1, len(measured))]
    return _with(replace(unfitted, divisor=divisor), features, measured, tuple(float(error) for error in held_out))


def _tables(hyper: HyperModel, tailor: Tailor, ladder: Ladder, stopwatch: Stopwatch) -> LatencyModel:
    """Time the layers; the numbers that weigh them are still to come."""
    layers = timed_layers(tailor)
    axes = Axes(hyper.coupling, [[hyper.coupling.line(name, axis) for axis in (0, 1)] for name in layers])
    sliced = {site.tensor for site in hyper.coupling.sites if site.axis == 1}
    rungs = [axes.lengths(_rounded(share * ladder.full, ladder)) for share in RUNGS]
    tables = layer_tables(
        layers, rungs, [name in sliced for name in layers], replace(stopwatch, fewest=5, seconds=PER_TABLE)
    )
    pieces = measure_activations(hyper)
    written = Written(int(pieces.own.sum()), tuple(pieces.slope.sum(axis=0).tolist()))
    clock = PairClock(tailor, replace(stopwatch, fewest=11, most=101, seconds=PER_CHECK))
    return LatencyModel(axes, tables, written, 1.0, 0.0, 0.0, 1, (), _device_name(tailor.device), 1, clock)


def _with(model: LatencyModel, features: np.ndarray, measured: np.ndarray, errors: tuple[float, ...]) -> LatencyModel:
    weights = _fit(features, measured)
    scale, per_byte, constant = (float(weight) for weight in weights * measured[0] / (features[0] @ weights))
    fitted = replace(model, scale=scale, per_byte=per_byte, constant=constant, errors=errors)
    return replace(fitted, dense_ns=int(fitted.values(model.axes.full)[0]))


def _predicted_without(features: np.ndarray, measured: np.ndarray, out: int) -> float:
    """Predict one network from a fit to all others."""
    others = np.arange(len(measured)) != out
    weights = _fit(features[others], measured[others])
    return float(features[out] @ weights * measured[0] / (features[0] @ weights))


def _fit(features: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the three weights, none negative, with the least squared relative errors; the dense network is first."""
    trust = np.concatenate([[DENSE], np.ones(len(measured) - 1)]) / measured
    left, right = features * trust[:, None], measured * trust
    best, least = np.zeros(features.shape[1]), np.inf
    for used in _subsets(features.shape[1]):
        size = np.maximum(np.abs(left[:, used]).max(axis=0), 1e-300)
        found = np.linalg.lstsq(left[:, used] / size, right, rcond=None)[0] / size
        error = float(((left[:, used] @ found - right) ** 2).sum())
        if (found >= 0).all() and error < least:
            best, least = np.zeros(features.shape[1]), error
            best[used] = found
    return best


def _subsets(size: int) -> list[list[int]]:
    return [list(chosen) for count in range(1, size + 1) for chosen in combinations(range(size), count)]


def _random_widths(ladder: Ladder) -> list[np.ndarray]:
    """Draw networks of all sizes, each group a little wider or narrower than its network."""
    rng = np.random.default_rng(0)
    levels = rng.permutation(np.linspace(0.12, 0.95, NETWORKS))
    shares = [level * rng.uniform(0.6, 1.4, len(ladder.full)) for level in levels]
    return [_rounded(np.minimum(share, 1.0) * ladder.full, ladder) for share in shares]


def _rounded(widths: np.ndarray, ladder: Ladder) -> np.ndarray:
    """Return the allowed widths next to these."""
    near = np.rint(widths / ladder.step).astype(np.int64) * ladder.step
    return np.where(widths >= ladder.full, ladder.full, np.clip(near, ladder.lowest, ladder.full))


def _runs(tailor: Tailor, network: torch.nn.Module) -> Callable[[], object]:
    return lambda: tailor.run(network)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
