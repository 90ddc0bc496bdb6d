"""A network with its optimiser: takes one step after another, and can be kept and brought back between any two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune.errors import ModelError
from hyperprune.recovery import Distillation
from hyperprune.search import Search
from hyperprune.training.settings import PRECISIONS, WEIGHT_DECAY, TrainingSettings


class Learner:
    """Takes optimiser steps of one phase of a run.

    Attributes:
        at: steps of the whole run so far.
        history: the search's course, one record per decision.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        *,
        at: int = 0,
        distill: Distillation | None = None,
        search: Search | None = None,
    ) -> None:
        self.model, self.optimizer, self.search = model.train(), optimizer, search
        self.at = at
        self.history: list[dict[str, Any]] = []
        self._distill = distill
        self._device = next(model.parameters()).device
        self._precision = PRECISIONS[settings.amp]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.amp == "fp16")

    def learn(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Take one step on images ``(N, C, H, W)`` and labels ``(N,)`` at a learning rate; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = (part.to(self._device, non_blocking=True) for part in (images, labels))
        loss = self._loss(images, labels)
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.at += 1
        self._look_at_search()
        return loss.detach()

    def note(self) -> str:
        """Say how far the search is, in a few words."""
        return f"MACs {self.history[-1]['macs_fraction']:.0%}" if self.history else ""

    def _look_at_search(self) -> None:
        if self.search is None or (self.history and self.history[-1]["step"] == self.search.step_count):
            return
        if self.search.done or self.search.step_count % self.search.every == 0:
            self.history.append(asdict(self.search.progress()))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, self._precision, enabled=self._precision is not None):
            logits = self.model(images)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"{type(self.model).__name__} answers with {type(logits).__name__} in train mode, not with logits. "
                    "A network with auxiliary answers needs a loop of its own: see Search."
                )
            loss = F.cross_entropy(logits, labels)
            return loss if self._distill is None else self._distill(images, logits, loss)

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "at": self.at,
            "history": self.history,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "search": None if self.search is None else self.search.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        self.at, self.history = state["at"], state["history"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.search is not None:
            self.search.load_state_dict(state["search"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)


def optimizer_for(groups: Any, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.peak_rate())
    return torch.optim.SGD(groups, lr=settings.peak_rate(), momentum=0.9, nesterov=True)


def weights_of(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the parameter groups of a plain network."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [{"params": weights, "weight_decay": WEIGHT_DECAY[settings.optimizer]}]


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], settings: TrainingSettings) -> float:
    """Return the share of images that are classified correctly, in eval mode (and leave the network in it)."""
    device, precision = next(model.parameters()).device, PRECISIONS[settings.amp]
    model.eval()
    hits, total = torch.zeros((), device=device), 0
    for images, labels in batches:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            answers = model(images.to(device, non_blocking=True)).argmax(1)
        hits += (answers == labels.to(device)).sum()
        total += len(labels)
    return float(hits) / total
