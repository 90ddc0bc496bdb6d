"""What latents cost: training steps, hyperize, export, the solver, and how cost grows, beside Torch-Pruning.

    python -m benchmarks.speed             # every case that has no result yet, each in a fresh process
    python -m benchmarks.speed --again step/resnet50
    python -m benchmarks.speed --report

A case runs alone in its process; results are written after every case, so the run can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed_report import page
from benchmarks.speed_steps import DEVICE, network, steps, torch_pruner
from hyperprune import Budget, Search, export_pruned, hyperize
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import CostModel
from hyperprune.files import write_whole

RESULTS = Path("benchmarks/results/speed.json")
PAGE = Path("docs/speed.md")
KINDS = ("lean", "gates", "torch-pruning")
HYPERNETS = ("dhp", "dhp as published")
ROUNDS = 9
UNITS = 50_000
NETWORKS = {
    "resnet20": (128, 3, 32, 32),
    "resnet50": (16, 3, 128, 128),
    "224px resnet50": (4, 3, 224, 224),
    "mobilenet_v2": (8, 3, 224, 224),
    "efficientnet_b0": (8, 3, 224, 224),
    "convnext_tiny": (4, 3, 224, 224),
    "vit_small_patch16_224": (8, 3, 224, 224),
}
WHOLE = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224")
LARGE = ("resnet152", "densenet201", "convnext_base", "vit_b_16", "hrnet_w48")
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
WIDTHS = (1, 2, 4)
PIXELS = (64, 128, 256, 512)


def whole(name: str, pixels: int = 224, rounds: int = 5, **options: int) -> dict[str, object]:
    """Time what happens once: export alone, hyperize, export_pruned, and Torch-Pruning's graph and step, in turns."""
    model, x = network(name, **options).eval(), torch.randn(1, 3, pixels, pixels)
    works: dict[str, Callable[[], Callable[[], object]]] = {
        "torch_export": lambda: lambda: torch.export.export(model, (x,), strict=False),
        "hyperize": lambda: lambda: hyperize(model, x),
        "export_pruned": lambda: partial(export_pruned, _half(model, x)),
        "torch_pruning_graph": lambda: lambda: torch_pruner(model, x),
        "torch_pruning_step": lambda: torch_pruner(network(name, **options).eval(), x).step,
    }
    seconds: dict[str, list[float]] = {key: [] for key in works}
    for _ in range(rounds + 1):
        for key, prepare in works.items():
            work = prepare()
            gc.collect()
            started = time.process_time()
            work()
            seconds[key].append(time.process_time() - started)
    ratios = [a / b for a, b in zip(seconds["hyperize"][1:], seconds["torch_export"][1:], strict=True)]
    figures = {f"{key}_s": round(median(values[1:]), 4) for key, values in seconds.items()}
    return {"network": name, "pixels": pixels, "rounds": rounds, **figures, "hyperize_ratio": round(median(ratios), 3)}


def _half(model: nn.Module, x: torch.Tensor) -> Any:
    hyper = hyperize(model, x)
    hyper.bank.remove_(torch.cat([torch.arange(group.size) % 2 == 1 for group in hyper.coupling.groups]))
    return hyper


def large(name: str) -> dict[str, object]:
    """Hyperize once in this fresh process: seconds and the process's peak resident memory."""
    import timm

    model = timm.create_model(name) if name.startswith("hrnet") else network(name)
    x = torch.randn(1, 3, 224, 224)
    wall, cpu = time.perf_counter(), time.process_time()
    hyper = hyperize(model.eval(), x)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"network": name, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_rss_bytes": peak,
            "units": hyper.coupling.units}  # fmt: skip


def solving() -> dict[str, object]:
    """Solve a budget for 50,000 units: a chain of 100 layers of 500 channels."""
    layers = [layer for _ in range(UNITS // 500) for layer in (nn.Conv2d(500, 500, 1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 500, 1), *layers[:-2], nn.Flatten(), nn.Linear(500, 10))
    hyper = hyperize(model.eval(), torch.randn(1, 3, 1, 1))
    cost, budget = CostModel(hyper.coupling, hyper.model), Budget(macs=0.5)
    solver, limits = Solver(cost, Ladder.of(hyper.coupling.groups, budget)), budget.limits(cost.total(cost.full))
    scores, seconds = np.random.default_rng(0).exponential(size=hyper.coupling.units), []
    for _ in range(7):
        started = time.process_time()
        solver.solve(scores, limits)
        seconds.append(time.process_time() - started)
    return {"units": hyper.coupling.units, "solve_s": round(median(seconds), 4)}


def searching(name: str, shape: tuple[int, ...], count: int = 12) -> dict[str, object]:
    """Time search.step() beside the training step around it; decisions are in benchmarks/search_step.py."""
    x, y = torch.randn(shape, device=DEVICE), torch.randint(10, shape[:1], device=DEVICE)
    hyper = hyperize(network(name).to(DEVICE), x[:1]).train()
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=1e-4), momentum=0.9)
    search, training, added = Search(hyper, optimizer, Budget(macs=0.5), 10_000), [], []
    for _ in range(count):
        started = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(hyper(x), y).backward()
        optimizer.step()
        between = time.process_time()
        search.step()
        training.append(between - started)
        added.append(time.process_time() - between)
    share = median(a / t for a, t in zip(added, training, strict=True))
    return {"network": name, "shape": list(shape), "search_step_ms": round(1e3 * median(added), 4),
            "training_step_ms": round(1e3 * median(training), 1), "share": round(share, 6)}  # fmt: skip


def grown(name: str, pixels: int, batch: int, **options: int) -> dict[str, object]:
    """Both what happens once and a step, for the curves."""
    step = steps(name, ["lean"], (batch, 3, pixels, pixels), 5, **options)
    return {**whole(name, pixels, 2, **options), "batch": batch, "lean": step["kinds"]["lean"]}  # type: ignore[index]


def cases() -> dict[str, Callable[[], dict[str, object]]]:
    """Return every case by name: what the promises need first, the curves last."""
    found: dict[str, Callable[[], dict[str, object]]] = {}
    first = ("resnet50", "resnet20")
    found |= {f"bound/{key}": partial(steps, key, ["lean"], NETWORKS[key], 25) for key in first}
    for key in (*first, *(key for key in NETWORKS if key not in first)):
        found[f"step/{key}"] = partial(steps, key.split()[-1], KINDS, NETWORKS[key], ROUNDS)
    for key in WHOLE:
        found[f"once/{key}"] = partial(whole, key)
    for key in LARGE:
        found[f"large/{key}"] = partial(large, key)
    found["solve"] = solving
    found["search/resnet20"] = partial(searching, "resnet20", NETWORKS["resnet20"])
    for key in (*first, *(key for key in NETWORKS if key not in (*first, "vit_small_patch16_224"))):
        found[f"dhp/{key}"] = partial(
            steps, key.split()[-1], HYPERNETS, NETWORKS[key], 3 if key != "resnet20" else ROUNDS
        )
    found |= {f"depth/{key}": partial(grown, key, 128, 4) for key in DEPTHS}
    found |= {f"width/x{w}": partial(grown, "resnet50", 128, 2, width_per_group=64 * w) for w in WIDTHS}
    found |= {f"image/{px}": partial(grown, "resnet18", px, 2) for px in PIXELS}
    return found


def run(name: str) -> dict[str, object] | None:
    """Run one case in a fresh process; None if it fails, with its words on the screen."""
    load = os.getloadavg()[0]
    done = subprocess.run([sys.executable, "-m", "benchmarks.speed", "--case", name], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name}: failed")
        return None
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "load_before": round(load, 1),
    }


def about() -> dict[str, object]:
    """Say where the figures were taken."""
    return {
        "torch": torch.__version__, "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "shared": "load_before is the load average before a case; where it is above the threads, other jobs ran too",
    }  # fmt: skip


def main() -> None:
    """Run what is missing, or one case, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="run one case in this process and print its JSON")
    parser.add_argument("--again", nargs="*", default=[], help="cases (or beginnings of names) to run again")
    parser.add_argument("--only", nargs="*", default=[""], help="cases (or beginnings of names) to run")
    parser.add_argument("--report", action="store_true", help="write the tables of docs/speed.md again")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(cases()[options.case]()))
        return
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    if options.report:
        write_whole(PAGE, page(PAGE.read_text(), json.loads(RESULTS.read_text())))
        return
    for name in cases():
        if not name.startswith(tuple(options.again or options.only)) or (name in rows and not options.again):
            continue
        if (found := run(name)) is not None:
            rows[name] = found
            write_whole(RESULTS, json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")
            print(name, "done", flush=True)


if __name__ == "__main__":
    main()
