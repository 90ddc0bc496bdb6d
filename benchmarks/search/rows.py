"""One row: a network, a target, a method and a seed; pruned, trained, measured."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from benchmarks.device import layout, precision
from benchmarks.search.methods import METHODS, UNPRUNED
from benchmarks.search.ours import Maker
from benchmarks.search.settings import CHOOSING_SEED
from benchmarks.search.training import Run, accuracy_of, train
from hyperprune.cost import count_with_fvcore
from hyperprune.recovery import Distillation, recalibrate_

FIRST_CELLS = (("ResNet-20", 0.5), ("ResNet-20", 0.3), ("ResNet-56", 0.5), ("ResNet-56", 0.3))
RECALIBRATION_BATCHES = 20


@dataclass(frozen=True)
class Key:
    """What names a row."""

    preset: str
    network: str
    target: float
    method: str
    seed: int

    def of_seed(self, seed: int) -> Key:
        """Return the same row of another seed."""
        return Key(self.preset, self.network, self.target, self.method, seed)

    def __str__(self) -> str:
        return f"{self.network}, {self.target:.0%}, {self.method}, seed {self.seed}"


def keys(preset: str, networks: list[str], targets: list[float], methods: list[str], seeds: list[int]) -> list[Key]:
    """Return all rows asked for, the most telling first."""
    cells = [(network, target) for network in networks for target in targets]
    first = [cell for cell in FIRST_CELLS if cell in cells]
    rest = [cell for cell in cells if cell not in first]
    pruning = [name for name in methods if name not in UNPRUNED]
    early = [name for name in pruning if METHODS[name].early]
    late = [name for name in pruning if not METHODS[name].early]
    found: list[Key] = []
    for part, names in ((first, early), (first, late), (rest, early + late)):
        for (network, target), seed in product(part, seeds):
            dense = [Key(preset, network, 1.0, name, seed) for name in UNPRUNED if name in methods]
            rows = [Key(preset, network, target, name, seed) for name in names]
            found += [key for key in dense + rows if key not in found]
    return found


def run_row(run: Run, key: Key, variant: str | None) -> dict[str, Any]:
    """Run one row and return plain numbers; the test images are looked at once, after everything else.

    Args:
        variant: of the method; None to run them all and take the one that is best on the held-out images.
    """
    method = METHODS[key.method]
    variants = method.variants
    if method.distilled:
        run = replace(run, lesson=Distillation(run.dense))
    tried = {name: attempt(run, variants[name]) for name in (variants if variant is None else [variant])}
    best = max(tried, key=lambda name: tried[name][1]["held_out"])
    model, numbers = tried[best]
    return {
        **vars(key),
        "variant": best,
        "others": {name: found["held_out"] for name, (_, found) in tried.items() if name != best},
        **sizes(run, model),
        **numbers,
        "test": accuracy_of(model, run.cifar, run.cifar.test),
        "machine": machine(run.example.device),
    }


def attempt(run: Run, maker: Maker) -> tuple[nn.Module, dict[str, Any]]:
    """Prune and train once; return the model and what the held-out images say."""
    seconds = clock(run.example.device)
    feed, started = run.feed(), seconds()
    model = maker(run, feed).to(memory_format=layout(run.example.device))
    pruned, steps_before = seconds() - started, feed.taken
    numbers = {"held_out_cut": accuracy_of(model, run.cifar, run.cifar.held_out)}
    recalibrate_(model, (images for images, _ in feed.first(RECALIBRATION_BATCHES)))
    numbers["held_out_recalibrated"] = accuracy_of(model, run.cifar, run.cifar.held_out)
    started = seconds()
    train(model, feed, run.lesson)
    trained = seconds() - started
    return model, {
        **numbers,
        "held_out": accuracy_of(model, run.cifar, run.cifar.held_out),
        "steps": feed.taken,
        "steps_before_cut": steps_before,
        "seconds": round(pruned + trained, 1),
    }


def sizes(run: Run, model: nn.Module) -> dict[str, Any]:
    """Return MACs and parameters by fvcore's count, also relative to the dense network's, and all widths."""
    dense, slim = (count_with_fvcore(m.eval(), run.example) for m in (run.dense, model))
    return {
        "macs": slim.macs,
        "params": slim.params,
        "macs_fraction": slim.macs / dense.macs,
        "params_fraction": slim.params / dense.params,
        "widths": [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)],
    }


def clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds: of the processor on a CPU, which other programs share; of the wall on a GPU."""
    if device.type == "cpu":
        return time.process_time
    return _after_all_kernels


def _after_all_kernels() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: torch.device) -> str:
    """Say in a few words where a row was run."""
    name = f"{torch.get_num_threads()} CPU thread(s)"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{platform.system()} {platform.machine()}, {name}, {precision(device)}, torch {torch.__version__}"


def needs_choice(key: Key) -> bool:
    """Say whether a row takes the variant that the first seed's row chose."""
    return len(METHODS[key.method].variants) > 1 and key.seed != CHOOSING_SEED
