"""Ask for a latency, prune to it, export, and time the exported network beside the dense one.

``--clock wall`` reads the wall clock (let the machine do nothing else); ``--clock cpu`` reads the processor time of
the one thread that computes, which other jobs hardly touch. Results of each clock stand in one JSON file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from hyperprune import Budget, export_pruned, fit_latency, hyperize
from hyperprune.budget import Ladder, Solver
from hyperprune.cost import LatencyModel
from hyperprune.criteria import criterion
from hyperprune.errors import BudgetError
from hyperprune.hyper import HyperModel, plain_copy
from hyperprune.metering import settled
from hyperprune.stopwatch import Stopwatch

RESULTS = Path(__file__).parent / "results" / "latency_budget.json"
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}
# The last shares of the last two are a little above the least that their overhead allows.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[float, ...]]] = {
    "resnet18": (torchvision.models.resnet18, (4, 3, 64, 64), (0.7, 0.5, 0.35)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (1, 3, 96, 96), (0.8, 0.65, 0.55)),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=96), (1, 3, 96, 96), (0.7, 0.55, 0.45)),
}
RUNS = 101


def rows(clock: str, name: str, divisor: int) -> Iterator[dict[str, Any]]:
    """Fit one network, then prune it to every latency asked for."""
    torch.manual_seed(0)
    make, shape, asked = NETWORKS[name]
    hyper = hyperize(make().eval(), torch.randn(shape))
    started = time.perf_counter()
    model = fit_latency(hyper, divisor=divisor, clock=CLOCKS[clock])
    fitted = time.perf_counter() - started
    print(name, model, flush=True)
    for share in asked:
        yield {
            "network": name,
            "input": list(shape),
            "divisor": divisor,
            "dense_ms": round(model.dense_ns / 1e6, 3),
            "fit_seconds": round(fitted, 1),
            "error_median": round(model.error, 4),
            "error_worst": round(model.worst, 4),
            **pruned(hyper, model, Budget(latency=share, divisor=divisor), share, clock),
        }


def pruned(hyper: HyperModel, model: LatencyModel, budget: Budget, share: float, clock: str) -> dict[str, Any]:
    """Prune to one latency, export with proof, and time the result anew; or say why it cannot be reached."""
    cost = hyper.cost.metered("latency_ns", model)
    solver = Solver(cost, Ladder.of(hyper.coupling.groups, budget))
    scores = criterion("magnitude")(hyper.model, hyper.coupling, cost)
    limits = budget.limits(cost.total(cost.full))
    try:
        solver.check(limits)
    except BudgetError as error:
        print(error, flush=True)
        return {"asked": share, "refused": str(error)}
    uncorrected = model.clock.ratio(solver.solve(scores, limits))
    keep = settled(cost, limits, lambda bounds: solver.solve(scores, bounds))
    searched = copy.deepcopy(hyper)
    searched.bank.keep_(torch.from_numpy(keep))
    dense, slim = plain_copy(hyper).eval(), export_pruned(searched).eval()
    x = hyper.inputs.tensors()[0]
    watch = Stopwatch(x.device, fewest=RUNS, most=RUNS, clock=CLOCKS[clock])
    before, after = watch.medians([lambda: dense(x), lambda: slim(x)])
    found = {
        "asked": share,
        "of_the_model_alone": round(uncorrected, 4),
        "measured": round(after / before, 4),
        "off": round(after / before / share - 1, 4),
        "macs": round(cost.total(counts(hyper, keep)).macs / cost.total(cost.full).macs, 4),
    }
    print(found, flush=True)
    return found


def counts(hyper: HyperModel, keep: Any) -> Any:
    """Return how many units of each group stay."""
    return [int(keep[group.units].sum()) for group in hyper.coupling.groups]


def main() -> None:
    """Run one clock, and write its part of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    clock = parser.parse_args().clock
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = [row for name in NETWORKS for row in rows(clock, name, divisor=8 if name == "mobilenet_v2" else 1)]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[clock] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "torch": torch.__version__,
        "runs": RUNS,
        "rows": found,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
