"""What a run is asked to do; written to its folder, so that it can go on later."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from hyperprune.budget import Budget
from hyperprune.errors import TrainingError
from hyperprune.files import write_whole

FILE = "settings.json"
PEAK_RATES = {"sgd": 0.02, "adamw": 5e-4}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
WARMUP = 0.05  # share of a phase's steps
PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the outcome of a run.

    Attributes:
        model: name of the network, as for ``load_model``.
        data: folder of images, or ``"sklearn/digits"``.
        macs: this and the next nine are the fields of ``Budget``.
        epochs: passes over the data for search and fine-tuning together.
        epochs_dense: passes for the dense network before; None: none if trained weights fit, else ``epochs``.
        search_fraction: share of ``epochs`` that the search takes; about a third by default, as in the benchmark.
        lr: peak learning rate; None: the optimiser's usual one.
        amp: ``"off"``, ``"bf16"`` or ``"fp16"``.
        distill: let the slim network learn from the dense one, too.
        pretrained: start from the library's weights.
        weights: start from a safetensors file.
        input_size: channels, height, width; None: the network's own.
    """

    model: str
    data: str
    macs: float | int | None = None
    params: float | int | None = None
    activation_bytes: float | int | None = None
    latency: float | None = None
    latency_ms: float | int | None = None
    divisor: int = 1
    floor: int = 1
    floors: dict[str, int] = field(default_factory=dict, hash=False)
    ceilings: dict[str, int] = field(default_factory=dict, hash=False)
    depth: bool = False
    epochs: int = 5
    epochs_dense: int | None = None
    search_fraction: float = 0.33
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float | None = None
    amp: str = "off"
    distill: bool = True
    pretrained: bool = False
    weights: str | None = None
    input_size: tuple[int, ...] | None = None
    seed: int = 0

    def budget(self) -> Budget:
        """Return the budget.

        Raises:
            BudgetError: no resource is limited, or a value is out of range.
        """
        return Budget(**{part.name: getattr(self, part.name) for part in fields(Budget)})

    def peak_rate(self) -> float:
        """Return the peak learning rate."""
        return PEAK_RATES[self.optimizer] if self.lr is None else self.lr

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "input_size": None if self.input_size is None else list(self.input_size)}

    def write(self, folder: Path) -> None:
        """Write the settings to a run's folder."""
        write_whole(folder / FILE, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> TrainingSettings:
        """Read the settings of a run that was begun; those that its version did not know yet have their defaults.

        Raises:
            TrainingError: there is none, or its settings cannot be read.
        """
        try:
            found = json.loads((folder / FILE).read_text())
            size = found["input_size"]
            return cls(**{**found, "input_size": None if size is None else tuple(size)})
        except FileNotFoundError:
            raise TrainingError(f"{folder} holds no run to go on with; leave --resume out to start one.") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(f"{folder / FILE} cannot be read: {error}. Start the run anew elsewhere.") from error


def started(folder: Path) -> bool:
    """Say whether a folder holds a run."""
    return (folder / FILE).exists()


def rate_at(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a linear warm-up, then half a cosine.

    Example:
        >>> [round(rate_at(step, 40), 2) for step in (0, 1, 2, 21, 39)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
