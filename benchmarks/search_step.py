"""What a search adds to a training step: its look at the gradients, ``search.step()``, and the decisions.

    python benchmarks/search_step.py --out benchmarks/results/search_step.json

All parts are timed inside the same training steps, so other work on the machine meets them alike. A decision falls on
every 25th step, as in a search of 1,000 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from hyperprune import Budget, Fisher, L1Proximal, PublishedL1, Search, hyperize
from hyperprune.demo.resnet import resnet20
from hyperprune.files import write_whole

STEPS, EVERY = 1000, 25
RULES = {"Fisher": Fisher, "L1Proximal": L1Proximal, "PublishedL1": PublishedL1}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet-20, batch 128, 32 px": (resnet20, (128, 3, 32, 32), 51),
    "ResNet-50, batch 4, 128 px": (torchvision.models.resnet50, (4, 3, 128, 128), 51),
}


def measured(make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, rule: Any) -> dict[str, float]:
    """Train a while and return medians in milliseconds, and shares of the training step."""
    hyper = hyperize(make(), torch.randn(1, *shape[1:])).train()
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=1e-4), momentum=0.9)
    clock = {"look": 0.0}
    optimizer.register_step_pre_hook(lambda *_: clock.update(start=time.perf_counter()))
    search = Search(hyper, optimizer, Budget(macs=0.5), STEPS, sparsifier=rule, every=EVERY)
    optimizer.register_step_pre_hook(lambda *_: clock.update(look=time.perf_counter() - clock["start"]))
    training, ordinary, decisions = [], [], []
    for step in range(1, steps + 1):
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        whole = timed(lambda x=x, y=y: train(hyper, optimizer, x, y)) - clock["look"]
        added = timed(search.step) + clock["look"]
        if step > 2:
            training.append(whole)
            (decisions if step % EVERY == 0 else ordinary).append(added)
    step, plain, decision = median(training), median(ordinary), median(decisions)
    mean = (plain * (EVERY - 1) + decision) / EVERY
    return {
        "training step ms": 1e3 * step, "ordinary ms": 1e3 * plain, "decision ms": 1e3 * decision,
        "ordinary %": 100 * plain / step, "with decisions %": 100 * mean / step,
    }  # fmt: skip


def train(hyper: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Take one training step, without the search's."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(hyper(x), y).backward()
    optimizer.step()


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_step.json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for network, (make, shape, steps) in NETWORKS.items():
        for name, rule in RULES.items():
            figures = {key: round(value, 4) for key, value in measured(make, shape, steps, rule()).items()}
            rows.append({"network": network, "rule": name, **figures})
            print(json.dumps(rows[-1]), flush=True)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "steps": STEPS, "every": EVERY}
    write_whole(arguments.out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
