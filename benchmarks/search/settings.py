"""What is run: networks, shares of the MACs, and how long each network is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from examples.networks import ResNet, mobilenet_v2, resnet20, resnet56, vgg16_bn
from examples.networks.resnet import Basic

TARGETS = (0.7, 0.5, 0.3, 0.15)
SEEDS = (0, 1, 2)
CHOOSING_SEED = SEEDS[0]  # a method with variants runs them all under this seed; the others take the one that won
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
SHARE = 0.5  # of the steps that a method may prune in, what a search takes unless its name says otherwise

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": resnet20,
    "ResNet-56": resnet56,
    "VGG-16-BN": vgg16_bn,
    "MobileNetV2": partial(mobilenet_v2, num_classes=10, image_size=32),
    "ResNet-8": partial(ResNet, Basic, 1),
}
PUBLISHED_LAMBDA = {"ResNet-20": 2e-4, "ResNet-56": 3e-4, "MobileNetV2": 1e-4}  # of the paper; 2e-4 elsewhere


@dataclass(frozen=True)
class Course:
    """How long one network is trained, and how fast.

    Attributes:
        dense_steps: optimiser steps from scratch, once per seed.
        search_steps: of every row's steps after that, how many a method may prune in at most.
        recovery_steps: the rest.
        dense_lr: peak learning rate from scratch.
        lr: peak learning rate of every row.
    """

    dense_steps: int
    search_steps: int
    recovery_steps: int
    batch_size: int = 128
    dense_lr: float = 0.1
    lr: float = 0.05

    @property
    def steps(self) -> int:
        """Optimiser steps of every row after the dense training."""
        return self.search_steps + self.recovery_steps


PRESETS: dict[str, dict[str, Course]] = {
    "cpu": {
        "ResNet-20": Course(900, 300, 150),
        "ResNet-56": Course(600, 200, 100),
        "VGG-16-BN": Course(200, 80, 40),
        "MobileNetV2": Course(200, 80, 40, batch_size=64),
    },
    "cpu-bf16": {
        "ResNet-20": Course(1800, 600, 300),
        "ResNet-56": Course(900, 300, 150),
        "VGG-16-BN": Course(400, 160, 80, dense_lr=0.01, lr=0.005),
        "MobileNetV2": Course(400, 160, 80, batch_size=64, dense_lr=0.03, lr=0.015),
    },
    "cpu-bf16-long": {
        "ResNet-20": Course(7200, 600, 300),
        "ResNet-56": Course(3600, 300, 150),
        "VGG-16-BN": Course(1600, 160, 80, dense_lr=0.01, lr=0.005),
        "MobileNetV2": Course(1600, 160, 80, batch_size=64, dense_lr=0.03, lr=0.015),
    },
    "cpu-bf16-longer": {"ResNet-56": Course(3600, 1200, 600)},
    "gpu": {
        name: Course(16_000, 5_000, 3_000, batch_size=256, dense_lr=0.2)
        for name in ("ResNet-20", "ResNet-56", "VGG-16-BN", "MobileNetV2")
    },
    "tiny": {"ResNet-8": Course(4, 4, 2, batch_size=8)},  # for tests: it runs, it learns nothing
}
