"""How long ``hyperize`` takes beside ``torch.export`` alone: alternating runs in one process, medians.

python benchmarks/hyperize.py --out benchmarks/results/hyperize.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from hyperprune import hyperize
from hyperprune.coupling import build
from hyperprune.labels import flow
from hyperprune.trace import ExampleInputs, trace

MODELS = ("resnet50", "mobilenet_v2", "densenet121", "convnext_tiny")


def seconds(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> dict[str, float | str]:
    """Time export, hyperize, and labels with solving on one torchvision model at 224 x 224."""
    model, x = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 224, 224)
    traces = trace(model, ExampleInputs.of(x))
    runs: dict[str, Callable[[], object]] = {
        "export_s": lambda: torch.export.export(model, (x,), strict=False),
        "hyperize_s": lambda: hyperize(model, x),
        "labels_and_solving_s": lambda: _labels(traces, model),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in track(range(rounds), description=name):
        for key, run in runs.items():
            times[key].append(seconds(run))
    medians = {key: round(statistics.median(values), 3) for key, values in times.items()}
    ratios = [b / a for a, b in zip(times["export_s"], times["hyperize_s"], strict=True)]
    return {"model": name, **medians, "ratio": round(statistics.median(ratios), 2), "rounds": rounds}


def _labels(traces: tuple, model: nn.Module) -> object:
    return build(flow(traces), model)


def show(rows: list[dict[str, float | str]]) -> None:
    """Print the rows as a table."""
    table = Table(title="hyperize beside torch.export, 224 x 224, medians of alternating runs")
    for header in rows[0]:
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def main() -> None:
    """Measure every model, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = [measure(name, options.rounds) for name in MODELS]
    show(rows)
    if options.out:
        result = {"torch": torch.__version__, "cores": os.cpu_count(), "rows": rows}
        part = options.out.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(options.out)


if __name__ == "__main__":
    main()
