"""The story of ``hyperprune prune``, from a name and a folder of images to a slim network and its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from hyperprune.checkpoint import save_pruned
from hyperprune.errors import TrainingError
from hyperprune.files import write_whole
from hyperprune.recovery import Distillation
from hyperprune.reporting import ModelReport, comparison_table, report
from hyperprune.training.data import load_data, mixed
from hyperprune.training.job import DENSE, REPORT, SEARCHED, SLIM, STATE, Job, Machine
from hyperprune.training.networks import DenseNetwork, fit_to_data, load_network
from hyperprune.training.phases import Searched, dense_phase, finetune_phase, search_phase, searchable
from hyperprune.training.screen import Screen
from hyperprune.training.settings import TrainingSettings
from hyperprune.training.spending import spending
from hyperprune.training.stopping import Stop, stoppable


def run_prune(
    settings: TrainingSettings, out: Path, screen: Screen, machine: Machine, *, resume: bool = False
) -> dict[str, Any]:
    """Prune a network by name on a folder of images; return what ``report.json`` holds.

    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; with ``resume``, the run in ``out`` goes on to the
    same result (on a CPU with as many threads: bit for bit).

    Raises:
        TrainingError: ``out`` holds another run, the device cannot be used, or the training diverged.
        HyperpruneError: as the steps on the way (data, model, budget, search, proof).
    """
    if resume and (out / REPORT).exists():
        return dict(json.loads((out / REPORT).read_text()))
    if not resume and any((out / name).exists() for name in (DENSE, SEARCHED, STATE, REPORT)):
        raise TrainingError(f"{out} holds a run already. Go on with --resume, or name another folder.")
    with stoppable(screen) as stop:
        job, network = _prepare(settings, out, screen, machine, stop)
        settings.write(out)
        dense = dense_phase(job, network.model)
        accuracies = {"dense": job.test(dense)}
        screen.note(f"dense network: accuracy {accuracies['dense']:.1%}")
        distill = Distillation(dense) if settings.distill and (network.trained or job.dense_steps) else None
        searched = search_phase(job, dense, distill)
        slim = finetune_phase(job, searched, distill)
        accuracies |= {"searched": searched.accuracy, "slim": job.test(slim)}
        return _finish(job, network, dense, searched, slim, accuracies)


def _prepare(
    settings: TrainingSettings, out: Path, screen: Screen, machine: Machine, stop: Stop
) -> tuple[Job, DenseNetwork]:
    """Load data and network, and refuse now what would fail after hours."""
    settings.budget()
    device = machine.torch_device()
    if settings.amp == "fp16" and device.type != "cuda":
        raise TrainingError("--amp fp16 needs a CUDA device; use bf16, or leave it off.")
    torch.manual_seed(mixed(settings.seed, 0))
    model, preparation = load_network(settings)
    data = load_data(settings.data, preparation, settings.seed)
    network = fit_to_data(model, settings, preparation.size, len(data.classes))
    model.to(device)
    epochs = settings.epochs_dense
    epochs = (0 if network.trained else settings.epochs) if epochs is None else epochs
    job = Job(settings, out, data, machine, device, screen, stop, epochs)
    _tell(job, network, preparation.size)
    if not (out / DENSE).exists():
        searchable(job, model, steps=1)
    return job, network


def _tell(job: Job, network: DenseNetwork, size: tuple[int, ...]) -> None:
    data, screen = job.data, job.screen
    screen.note(
        f"{job.settings.data}: {len(data.train)} images to train on, {len(data.test)} to test with, "
        f"{len(data.classes)} classes, as {'x'.join(map(str, size))} on {job.device}"
    )
    screen.note(f"{job.settings.model}: {network.story}")
    if network.trained or (job.out / DENSE).exists():
        return
    if job.dense_epochs:
        screen.warn(
            f"the dense network is not trained on these classes yet, so it is first, for {job.dense_epochs} epochs "
            "(--epochs-dense). Pass --weights FILE to start from your own."
        )
    else:
        screen.warn(
            "the dense network is not trained on these classes, and --epochs-dense 0 leaves it so: the search starts "
            "from random weights, without distillation."
        )


def _finish(
    job: Job, network: DenseNetwork, dense: nn.Module, searched: Searched, slim: nn.Module, accuracies: dict[str, float]
) -> dict[str, Any]:
    """Write the slim network and the numbers."""
    found = report(
        dense, slim, job.example(), history=searched.history, proof=searched.proof, name=job.settings.model,
        accuracy={0: accuracies["dense"], searched.history[-1].step: searched.accuracy},
    )  # fmt: skip
    path = save_pruned(slim, job.out / SLIM, metadata={"model": job.settings.model, "built by": network.recipe})
    content = {
        "format": "hyperprune.run",
        "version": 1,
        "settings": job.settings.to_json(),
        "images": {"train": len(job.data.train), "test": len(job.data.test)},
        "classes": list(job.data.classes),
        "accuracy": accuracies,
        "budget": spending(job.settings.budget(), found, dense, slim, job.example()),
        "bytes": {name: (job.out / name).stat().st_size for name in (DENSE, SLIM)},
        "load": f'load_pruned({network.recipe}, "{path}")',
        "pruning": found.to_json(),
    }
    write_whole(job.out / REPORT, json.dumps(content, indent=2) + "\n")
    (job.out / STATE).unlink(missing_ok=True)
    return content


def summary(content: Mapping[str, Any]) -> Table:
    """Return the table of a run that is complete, from what its ``report.json`` holds."""
    pruning, accuracies = content["pruning"], content["accuracy"]
    spent = content.get("budget", {})  # absent from what older versions wrote
    (proof,) = pruning["proofs"].values()
    dense, slim = (
        ModelReport(
            name, pruning["macs"][name], pruning["params"][name],
            accuracy=accuracies[name], file_bytes=content["bytes"][file],
            latency_ms={1: 1e-6 * spent["latency_ns"][name]} if "latency_ns" in spent else {},
        )
        for name, file in (("dense", DENSE), ("slim", SLIM))
    )  # fmt: skip
    slim = replace(slim, accuracy_when_cut=accuracies["searched"], proof_error=proof["relative_error"])
    table = comparison_table([dense, slim], title=f"{content['settings']['model']} on {content['settings']['data']}")
    if "activation_bytes" in spent:
        table.add_row("activations, at most", *_in_kilobytes(spent["activation_bytes"]))
    return table


def _in_kilobytes(spent: Mapping[str, Any]) -> tuple[str, str]:
    dense, slim = spent["dense"], spent["slim"]
    return f"{dense / 1e3:.1f} kB", f"{slim / 1e3:.1f} kB ({slim / dense:.1%})"
