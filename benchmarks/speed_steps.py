"""What a training step costs: dense, hyperized and with Torch-Pruning's regulariser, in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from unittest.mock import patch

import timm
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

from hyperprune import DHP, BinaryGates, Budget, Search, hyperize
from hyperprune.demo.resnet import resnet20

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LONG = 100_000  # steps of a search that the timed steps only begin


def network(name: str, **options: int) -> nn.Module:
    """Build a network with random weights: speed does not depend on them."""
    if name == "resnet20":
        return resnet20()
    if name.startswith("vit_small"):
        return timm.create_model(name, **options)
    return torchvision.models.get_model(name, **options)


@dataclass
class Contender:
    """A network in training, and what comes after its backward pass and after its optimiser's step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one training step."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.before()
        self.optimizer.step()
        self.after()

    def held(self) -> dict[str, int]:
        """Return the bytes of parameters and buffers, and of the optimiser's state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in states if isinstance(value, Tensor)]
        weights = [*self.model.parameters(), *self.model.buffers()]
        return {"model_bytes": _bytes(weights), "optimizer_bytes": _bytes(tensors)}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def dense(model: nn.Module, x: Tensor) -> Contender:
    """The network as it is."""
    return Contender(model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9))


def hyperized(model: nn.Module, x: Tensor, **options: object) -> Contender:
    """With generated weights."""
    hyper = hyperize(model, x, **options).train()  # type: ignore[arg-type]
    return Contender(hyper, torch.optim.SGD(hyper.parameter_groups(lr=1e-4), momentum=0.9))


def gates(model: nn.Module, x: Tensor) -> Contender:
    """With gates that a search learns; its step counts."""
    made = hyperized(model, x)
    search = Search(made.model, made.optimizer, Budget(macs=0.5), LONG, sparsifier=BinaryGates())  # type: ignore[arg-type]
    made.after = search.step
    return made


def dhp(model: nn.Module, x: Tensor) -> Contender:
    """With DHP's hypernetwork, m = 8."""
    return hyperized(model, x, generator=DHP(embedding=8))


def literal(model: nn.Module, x: Tensor) -> Contender:
    """The same, computed in the order in which the paper writes it."""
    made = dhp(model, x)
    forward = made.model.forward

    def as_published(*args: Tensor) -> Tensor:
        with patch("hyperprune.generators.dhp.collapsed", published):
            return forward(*args)

    made.model.forward = as_published  # type: ignore[method-assign]
    return made


def published(embedding: Tensor, explicit: Tensor, pairs: Tensor) -> Tensor:
    """O = W2 (w1 s) for each pair, with s = z_i z_j."""
    return torch.matmul(explicit, (embedding * pairs.unsqueeze(2)).unsqueeze(3)).squeeze(3)


def regularised(model: nn.Module, x: Tensor) -> Contender:
    """The dense network with Torch-Pruning's group-lasso regulariser (sparse training)."""
    made = dense(model, x)
    pruner = torch_pruner(model, x)
    pruner.update_regularizer()
    made.before = lambda: pruner.regularize(model)
    return made


def torch_pruner(model: nn.Module, x: Tensor) -> tp.pruner.GroupNormPruner:
    """Build Torch-Pruning's graph and its pruner."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    return tp.pruner.GroupNormPruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=0.3, ignored_layers=last
    )


CONTENDERS: Mapping[str, Callable[[nn.Module, Tensor], Contender]] = {
    "dense": dense, "lean": hyperized, "gates": gates, "dhp": dhp, "dhp as published": literal,
    "torch-pruning": regularised,
}  # fmt: skip


def steps(name: str, kinds: Iterable[str], shape: tuple[int, ...], rounds: int, **options: int) -> dict[str, object]:
    """Train every kind in turns; return figures of each, and its ratios to the dense network."""
    torch.manual_seed(0)
    x, y = torch.randn(shape, device=DEVICE), torch.randint(10, shape[:1], device=DEVICE)
    names = dict.fromkeys(["dense", *kinds])
    made = {kind: CONTENDERS[kind](network(name, **options).to(DEVICE).train(), x[:1]) for kind in names}
    for contender in made.values():
        contender.step(x, y)
    peaks = {kind: peak(contender, x, y) for kind, contender in made.items()}
    for at in range(rounds):
        for contender in list(made.values())[:: 1 if at % 2 else -1]:
            _timed(contender, x, y)
    return {
        "network": name, "shape": list(shape), "device": DEVICE, "rounds": rounds,
        "kinds": {kind: {**_figures(it, made["dense"]), **it.held(), **peaks[kind],
                         "peak_ratio": round(peaks[kind]["peak_bytes"] / peaks["dense"]["peak_bytes"], 4)}
                  for kind, it in made.items()},
    }  # fmt: skip


def _timed(contender: Contender, x: Tensor, y: Tensor) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    contender.step(x, y)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    contender.wall.append(time.perf_counter() - wall)
    contender.cpu.append(time.process_time() - cpu)


def _figures(one: Contender, reference: Contender) -> dict[str, object]:
    ratios = {
        "wall_ratio": [a / b for a, b in zip(one.wall, reference.wall, strict=True)],
        "cpu_ratio": [a / b for a, b in zip(one.cpu, reference.cpu, strict=True)],
    }
    figures: dict[str, object] = {"wall_s": round(median(one.wall), 4), "cpu_s": round(median(one.cpu), 4)}
    figures |= {key: round(median(values), 4) for key, values in ratios.items()}
    figures["fastest_cpu_ratio"] = round(min(one.cpu) / min(reference.cpu), 4)  # least disturbed by other jobs
    return figures | {f"{key}_quartiles": _quartiles(values) for key, values in ratios.items()}


def _quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in quantiles(values, n=4)[::2]]


def peak(contender: Contender, x: Tensor, y: Tensor) -> dict[str, int]:
    """Return the peak memory of one step: what is held before it, plus the most that it allocates at a time.

    On a CPU the profiler's list of allocations and releases is added up, which is the same in every run; resident
    memory would show what the allocator keeps too.
    """
    contender.optimizer.zero_grad()
    before = sum(contender.held().values())
    if DEVICE == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.step(x, y)
        return {"peak_bytes": before + torch.cuda.max_memory_allocated() - held}
    return {"peak_bytes": before + most_allocated(lambda: contender.step(x, y))}


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes of torch's that lie allocated at a time while something runs, beyond those before."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    highest = now = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest
