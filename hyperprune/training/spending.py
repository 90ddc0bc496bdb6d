"""What came of a run's budget: for each resource it limits, what was asked and what dense and slim network take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from hyperprune.budget import Budget
from hyperprune.metering import record
from hyperprune.reporting import PruningReport
from hyperprune.stopwatch import Stopwatch
from hyperprune.verify import eval_mode


def spending(
    budget: Budget, found: PruningReport, dense: nn.Module, slim: nn.Module, x: Tensor
) -> dict[str, dict[str, Any]]:
    """Return by resource what was ``asked`` (a float: fraction of dense; an int: absolute), and ``dense``, ``slim``.

    MACs and parameters are the report's. Activation memory (bytes at the peak) is recorded and latency (nanoseconds,
    median, in turns) timed on the networks themselves in eval mode, without the model that met the budget.

    Args:
        x: example inputs, ``(1, C, H, W)``.
    """
    networks = (dense, slim)
    measures: dict[str, Callable[[], Sequence[float]]] = {
        "macs": lambda: (found.macs.dense, found.macs.slim),
        "params": lambda: (found.params.dense, found.params.slim),
        "activation_bytes": lambda: [activation_peak(network, x) for network in networks],
        "latency_ns": lambda: _timed(networks, x),
    }
    with eval_mode(dense), eval_mode(slim):
        taken = {resource: measures[resource]() for resource in budget.asked()}
    asked = budget.asked()
    return {r: {"asked": asked[r], "dense": full, "slim": left} for r, (full, left) in taken.items()}


def activation_peak(network: nn.Module, x: Tensor) -> int:
    """Return the most bytes of activations alive at one time in a forward pass on ``x``, in the mode it is in.

    Example:
        >>> import torch
        >>> activation_peak(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4))
        192
    """
    storages = record(partial(network, x), [*network.parameters(), *network.buffers(), x])
    return max(
        sum(storage.bytes for storage in storages if storage.born <= call < storage.died)
        for call in {storage.born for storage in storages}
    )


def _timed(networks: Sequence[nn.Module], x: Tensor) -> list[int]:
    watch = Stopwatch(x.device, fewest=11, most=101, seconds=3.0)
    return [round(nanoseconds) for nanoseconds in watch.medians([partial(network, x) for network in networks])]
