"""What every phase of a run needs: what is asked, on which data, by which means, in which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperprune.errors import TrainingError
from hyperprune.training.data import ImageData, in_order, steps_per_epoch
from hyperprune.training.learner import accuracy
from hyperprune.training.screen import Screen
from hyperprune.training.settings import TrainingSettings
from hyperprune.training.stopping import Stop

DENSE, SEARCHED, SLIM = "dense.safetensors", "searched.safetensors", "slim.safetensors"
STATE, REPORT = "state.safetensors", "report.json"


@dataclass(frozen=True)
class Machine:
    """How a run is carried out; none of it changes what comes out, up to rounding.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, ...; ``"auto"`` takes a GPU if there is one.
        workers: processes that load images.
        save_every: steps between two saved states; None: an epoch.
    """

    device: str = "auto"
    workers: int = 0
    save_every: int | None = None

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            TrainingError: there is no such device here.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            return torch.zeros(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise TrainingError(f"device {name!r} cannot be used: {error}") from error


@dataclass(frozen=True)
class Job:
    """What every phase of a run needs."""

    settings: TrainingSettings
    out: Path
    data: ImageData
    machine: Machine
    device: torch.device
    screen: Screen
    stop: Stop
    dense_epochs: int

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(self.data.train, self.settings.batch_size)

    @property
    def dense_steps(self) -> int:
        """Steps of the dense network before the search."""
        return self.dense_epochs * self.per_epoch

    @property
    def steps(self) -> int:
        """Steps of search and fine-tuning together."""
        return self.settings.epochs * self.per_epoch

    @property
    def search_steps(self) -> int:
        """Steps of the search."""
        return max(1, round(self.settings.search_fraction * self.steps))

    def example(self) -> Tensor:
        """Return one test image, ``(1, C, H, W)``."""
        return next(in_order(self.data.test, 1))[0].to(self.device)

    def test(self, model: nn.Module) -> float:
        """Return the accuracy on the test images."""
        images = in_order(self.data.test, self.settings.batch_size, self.machine.workers)
        return accuracy(model, self.stop.between(images), self.settings)
