"""Networks whose budgets the tests sweep: their coupling maps and prices, worked out once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from hyperprune import HyperModel, hyperize
from hyperprune.cost import Axes, CostModel, LatencyModel, LayerTable
from hyperprune.cost.latency import Written
from hyperprune.coupling import CouplingMap, Group, Site
from hyperprune.coupling.map import Tensor as MapTensor
from hyperprune.metering import Activations, measure_activations

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "densenet": lambda: torchvision.models.DenseNet(16, (3, 4, 3, 2), 32),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3),
}


class Unused:
    """A clock that no test may look at."""

    def ratio(self, alive: np.ndarray) -> float:
        raise AssertionError("nothing was to be timed")


@cache
def hyperized(name: str) -> HyperModel:
    torch.manual_seed(0)
    return hyperize(NETWORKS[name]().eval(), torch.randn(1, 3, 32, 32))


@cache
def activations(name: str) -> Activations:
    return measure_activations(hyperized(name))


@cache
def fully_priced(name: str) -> CostModel:
    """Price everything: activations as recorded, latency by a drawn model of a device."""
    cost = hyperized(name).cost.metered("activation_bytes", activations(name).peak())
    return cost.metered("latency_ns", drawn_latency(hyperized(name).coupling, seed=0))


def drawn_latency(coupling: CouplingMap, seed: int) -> LatencyModel:
    """Return the latency model of a device that is not: tables with steps and flat stretches, that never fall."""
    rng = np.random.default_rng(seed)
    weights = [t for t in coupling.tensors if t.positions and len(t.shape) > 1]
    axes = Axes(coupling, [[coupling.line(t.name, axis) for axis in (0, 1)] for t in weights])
    tables = tuple(_drawn_table(t.name, t.shape, t.positions, rng) for t in weights)
    written = Written(1000, tuple(rng.integers(0, 500, len(coupling.groups)).tolist()))
    model = LatencyModel(axes, tables, written, 1.3, 2.0, 5e4, 1, (0.1,), "nowhere", 1, Unused())
    return LatencyModel(**{**vars(model), "dense_ns": int(model.values(axes.full)[0])})


def _drawn_table(name: str, shape: tuple[int, ...], positions: int, rng: np.random.Generator) -> LayerTable:
    rows, columns = (tuple(sorted({max(1, round(size * share)) for share in (0.1, 0.3, 0.6, 1)})) for size in shape[:2])
    whole = float(np.prod(shape)) * positions
    steps = rng.random((len(rows), len(columns))) * (rng.random((len(rows), len(columns))) < 0.7)
    times = np.cumsum(np.cumsum(steps, axis=0), axis=1) * whole / max(float(steps.sum()), 1e-9) / 50
    return LayerTable(name, rows, columns, tuple(tuple(row) for row in times.tolist()))


class Shapes:
    """Stands for a model of which only the parameters' sizes matter."""

    def __init__(self, coupling: CouplingMap) -> None:
        self._tensors = coupling.tensors

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [(tensor.name, torch.empty(tensor.shape, device="meta")) for tensor in self._tensors]


def chain(layers: int, width: int) -> tuple[CouplingMap, CostModel]:
    """Return a long chain of convolutions, each of whose widths is a group, and its prices."""
    groups = tuple(Group(f"c{at}", at * width, width, 1, (f"c{at}",), (f"c{at + 1}",), ()) for at in range(layers))
    sites: list[Site] = []
    for group in groups:
        units = tuple(range(group.start, group.start + width))
        sites += [Site(f"{group.makers[0]}.weight", 0, "writes", units)]
        sites += [Site(f"{group.readers[0]}.weight", 1, "reads", units)]
    shapes = [(width if at < layers else 10, width if at else 3, 3, 3) for at in range(layers + 1)]
    tensors = tuple(MapTensor(f"c{at}.weight", shape, 1024 >> 4 * at // layers) for at, shape in enumerate(shapes))
    coupling = CouplingMap(groups, tuple(sites), (), tensors)
    return coupling, CostModel(coupling, Shapes(coupling))  # type: ignore[arg-type]
