"""Every convolution and linear layer of a network, timed on its own at a ladder of widths."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperprune.cost import LayerTable
from hyperprune.metering.networks import Tailor
from hyperprune.stopwatch import Stopwatch

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {kind.forward for kind in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)}


def timed_layers(tailor: Tailor) -> dict[str, tuple[nn.Module, Counter[tuple[int, ...]]]]:
    """Return, by the name of their weights, the layers that a pass calls, each with the shapes of its inputs.

    Only layers whose ``forward`` is torch's own; what others take is part of the rest of the network.
    """
    layers = {f"{path}.weight": m for path, m in tailor.dense.named_modules() if type(m).forward in _FORWARDS}
    found = {
        name: (layer, Counter[tuple[int, ...]]()) for name, layer in layers.items() if name in tailor.coupling.weights
    }
    hooks = [layer.register_forward_pre_hook(_noting(seen), with_kwargs=True) for layer, seen in found.values()]
    try:
        tailor.run(tailor.dense)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (layer, seen) for name, (layer, seen) in found.items() if seen}


def layer_tables(
    layers: dict[str, tuple[nn.Module, Counter[tuple[int, ...]]]],
    lengths: Sequence[np.ndarray],
    sliced: Sequence[bool],
    stopwatch: Stopwatch,
) -> tuple[LayerTable, ...]:
    """Time each layer at every pair of lengths along the two axes of its weight; equal layers are timed once.

    Args:
        layers: what ``timed_layers`` returned.
        lengths: for each rung of the ladder the lengths of the two axes, ``[2, layers]``.
        sliced: for each layer whether its second axis is; a grouped convolution then keeps its number of groups.
        stopwatch: what times them.
    """
    known: dict[object, np.ndarray] = {}
    tables = []
    for at, (name, (layer, seen)) in enumerate(layers.items()):
        rows, columns = (tuple(sorted({int(rung[side, at]) for rung in lengths})) for side in (0, 1))
        total = np.zeros((len(rows), len(columns)))
        for shape, calls in seen.items():
            key = (str(layer), shape, rows, columns, layer.weight.dtype, sliced[at])
            if key not in known:
                known[key] = _time(layer, shape, rows, columns, sliced[at], stopwatch)
            total += calls * known[key]
        tables.append(LayerTable(name, rows, columns, tuple(tuple(row) for row in total.tolist())))
    return tuple(tables)


def _noting(seen: Counter[tuple[int, ...]]) -> Any:
    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[tuple((args or tuple(kwargs.values()))[0].shape)] += 1

    return note


def _time(
    layer: nn.Module,
    shape: tuple[int, ...],
    rows: Sequence[int],
    columns: Sequence[int],
    sliced: bool,
    stopwatch: Stopwatch,
) -> np.ndarray:
    calls = [_call(layer, shape, row, column, sliced) for row in rows for column in columns]
    times = np.array(stopwatch.medians(calls))
    table = times.reshape(len(rows), len(columns))
    rising: np.ndarray = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
    return rising


def _call(layer: Any, shape: tuple[int, ...], row: int, column: int, sliced: bool) -> Any:
    """Make a layer like this one with a weight of ``[row, column, ...]``, and an input that fits it."""
    made = copy.deepcopy(layer)
    groups = getattr(layer, "groups", 1)
    if groups > 1 and not sliced:
        groups = made.groups = groups * row // len(layer.weight)
    transposed = isinstance(layer, _TRANSPOSED)
    inputs, outputs = (row, column * groups) if transposed else (column * groups, row)
    made.weight = nn.Parameter(_random((row, column, *layer.weight.shape[2:]), layer.weight), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(_random((outputs,), layer.weight), requires_grad=False)
    axis = 1 - layer.weight.ndim if layer.weight.ndim > 2 else -1
    size = list(shape)
    size[axis] = inputs
    x = _random(tuple(size), layer.weight)
    return lambda: made(x)


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=like.device).to(like.dtype)
