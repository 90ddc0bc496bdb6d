"""The three phases: train the dense network if need be, search, fine-tune.

Each phase leaves a file in the run's folder. A run that goes on skips the phases whose files are there, and takes up
the one it was in from ``state.safetensors``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from hyperprune.checkpoint import load_pruned, read_document, save_pruned
from hyperprune.export import export_with_proof
from hyperprune.hyper import HyperModel, hyperize
from hyperprune.recovery import Distillation, recalibrate_
from hyperprune.search import Search, SearchProgress
from hyperprune.training.data import batches, mixed
from hyperprune.training.job import DENSE, SEARCHED, STATE, Job
from hyperprune.training.learner import Learner, optimizer_for, weights_of
from hyperprune.training.settings import WEIGHT_DECAY, rate_at
from hyperprune.training.states import load_state, save_state
from hyperprune.verify import Proof

RECALIBRATION_BATCHES = 50


@dataclass(frozen=True)
class Searched:
    """What the search hands on: the slim network, the step it was found at, its accuracy, proof and course."""

    slim: nn.Module
    at: int
    accuracy: float
    proof: Proof
    history: tuple[SearchProgress, ...]


def dense_phase(job: Job, model: nn.Module) -> nn.Module:
    """Return the dense network, trained if need be."""
    path = job.out / DENSE
    if path.exists():
        return load_pruned(model, path)
    if job.dense_steps:
        torch.manual_seed(mixed(job.settings.seed, 1))
        learner = Learner(model, optimizer_for(weights_of(model, job.settings), job.settings), job.settings)
        _train(job, learner, Phase("dense", 0, job.dense_steps, 0, job.dense_steps))
    save_pruned(model, path)
    return model


def search_phase(job: Job, dense: nn.Module, distill: Distillation | None) -> Searched:
    """Search down to the budget, export, prove, recalibrate."""
    path = job.out / SEARCHED
    if path.exists():
        return _searched(load_pruned(dense, path), path)
    torch.manual_seed(mixed(job.settings.seed, 2))
    hyper, optimizer, search = searchable(job, dense, job.search_steps)
    learner = Learner(hyper, optimizer, job.settings, at=job.dense_steps, distill=distill, search=search)
    _train(job, learner, Phase("search", job.dense_steps, job.search_steps, job.dense_steps, job.steps))
    slim, proof = export_with_proof(hyper)
    job.screen.note(f"exported, and proved equal to the searched network: {proof}")
    notes = {
        "at": learner.at,
        "accuracy": job.test(_recalibrate_(job, slim)),
        "proof": vars(proof),
        "history": learner.history,
    }
    save_pruned(slim, path, metadata={"run": json.dumps(notes)})
    return _searched(slim, path)


def finetune_phase(job: Job, searched: Searched, distill: Distillation | None) -> nn.Module:
    """Train the slim network for what is left of the steps (its optimiser starts anew), and recalibrate it."""
    slim, end = searched.slim, job.dense_steps + job.steps
    job.screen.note(f"slim network: accuracy {searched.accuracy:.1%} before fine-tuning")
    torch.manual_seed(mixed(job.settings.seed, 3))
    optimizer = optimizer_for(weights_of(slim, job.settings), job.settings)
    learner = Learner(slim, optimizer, job.settings, at=searched.at, distill=distill)
    _train(job, learner, Phase("fine-tuning", searched.at, end - searched.at, job.dense_steps, job.steps))
    return _recalibrate_(job, slim)


def _recalibrate_(job: Job, slim: nn.Module) -> nn.Module:
    """Re-estimate the statistics on training images, prepared as those for testing are."""
    plain = replace(job.data.train, transform=job.data.test.transform)
    some = batches(plain, job.settings.batch_size, seed=job.settings.seed, epoch=-1, workers=job.machine.workers)
    return recalibrate_(slim, islice(some, RECALIBRATION_BATCHES))


def searchable(job: Job, dense: nn.Module, steps: int) -> tuple[HyperModel, torch.optim.Optimizer, Search]:
    """Hyperize a network, and set up a search of so many steps that its optimiser drives."""
    settings = job.settings
    if "latency_ns" in settings.budget().asked():
        job.screen.note("timing layers and networks for --latency, up to a minute; best while the machine does no more")
    hyper = hyperize(dense, job.example())
    groups = hyper.parameter_groups(lr=settings.peak_rate(), weight_decay=WEIGHT_DECAY[settings.optimizer])
    optimizer = optimizer_for(groups, settings)
    return hyper, optimizer, Search(hyper, optimizer, settings.budget(), steps).attach(optimizer)


def _searched(slim: nn.Module, path: Path) -> Searched:
    notes = json.loads(read_document(path).metadata["run"])
    history = tuple(SearchProgress(**record) for record in notes["history"])
    return Searched(slim, notes["at"], notes["accuracy"], Proof(**notes["proof"]), history)


@dataclass(frozen=True)
class Phase:
    """A stretch of steps, counted over the whole run, and the course of the learning rate that it is a part of.

    Attributes:
        start: its first step, of about ``steps`` (a search waits for steps that AMP's scaler skipped).
        origin: first step of the learning rate's course, which is ``length`` steps long.
    """

    title: str
    start: int
    steps: int
    origin: int
    length: int

    def rate(self, at: int) -> float:
        """Return the share of the peak learning rate."""
        return rate_at(at - self.origin, self.length)

    def over(self, learner: Learner) -> bool:
        """Say whether the phase is."""
        return learner.at >= self.start + self.steps if learner.search is None else learner.search.done


def _train(job: Job, learner: Learner, phase: Phase) -> None:
    """Take the phase's steps, from the state on disk if there is one, and keep states on the way.

    Raises:
        KeyboardInterrupt: the user asked to stop; the state is on disk.
    """
    _restore(job, learner, phase)
    settings, every = job.settings, job.machine.save_every or job.per_epoch
    with job.screen.bar(phase.title, learner.at - phase.start, phase.steps, job.per_epoch) as bar:
        while not phase.over(learner):
            epoch, start = divmod(learner.at, job.per_epoch)
            for images, labels in batches(
                job.data.train, settings.batch_size,
                seed=settings.seed, epoch=epoch, start=start, workers=job.machine.workers,
            ):  # fmt: skip
                loss = learner.learn(images, labels, settings.peak_rate() * phase.rate(learner.at))
                bar.advance(learner.at - phase.origin, loss, learner.note())
                if phase.over(learner):
                    break
                if learner.at % every == 0 or job.stop.requested:
                    _keep(job, learner, phase)
                if job.stop.requested:
                    raise KeyboardInterrupt
    _keep(job, learner, phase)


def _keep(job: Job, learner: Learner, phase: Phase) -> None:
    save_state(job.out / STATE, {"phase": phase.title, "learner": learner.state()})


def _restore(job: Job, learner: Learner, phase: Phase) -> None:
    if not (job.out / STATE).exists():
        return
    state = load_state(job.out / STATE)
    if state["phase"] == phase.title:
        learner.restore(state["learner"])
        job.screen.note(f"{phase.title}: going on after step {learner.at - phase.start} of {phase.steps}")
