"""Training: the same steps for every method, the step itself, and the dense networks, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar import Cifar, Split, accuracy, batches
from benchmarks.device import autocast, layout
from benchmarks.schedule import rate
from benchmarks.search.files import locked
from benchmarks.search.settings import MOMENTUM, NETWORKS, WEIGHT_DECAY, Course
from hyperprune.files import write_whole

Batch = tuple[float, Tensor, Tensor]  # learning rate, images, labels
Lesson = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, logits, the labels' loss: the loss to learn from


@dataclass
class Feed:
    """The steps of one training: learning rates and batches, the same for the same seed.

    Attributes:
        taken: steps handed out so far.
    """

    cifar: Cifar
    steps: int
    batch_size: int
    peak_lr: float
    seed: int
    taken: int = 0
    _left: Iterator[Batch] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._left = self._all()

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._left:
            self.taken += 1
            yield batch

    def first(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return images and labels of the first steps once more, without taking a step."""
        return [(images, labels) for _, images, labels in islice(self._all(), count)]

    def _all(self) -> Iterator[Batch]:
        feed = batches(self.cifar, self.steps, self.batch_size, self.seed)
        for step, (images, labels) in enumerate(feed):
            yield self.peak_lr * rate(step / self.steps), images, labels


def optimizer_of(parameters: Iterable[Tensor] | Iterable[dict]) -> torch.optim.SGD:
    """Return the optimiser of all trainings; every step brings its own learning rate."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def nothing() -> None:
    """Do nothing between a step's gradients and its update."""


def labels_alone(images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
    """Return the labels' loss as it is."""
    return loss


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    lesson: Lesson = labels_alone,
    regularize: Callable[[], None] = nothing,
) -> None:
    """Take one optimiser step; ``regularize`` may add to the gradients before it."""
    lr, images, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss_of(model, images, labels, lesson).backward()
    regularize()
    optimizer.step()


def loss_of(model: nn.Module, images: Tensor, labels: Tensor, lesson: Lesson = labels_alone) -> Tensor:
    """Return the lesson's loss from the mean cross-entropy; forward passes are in bfloat16 where that is fast."""
    with autocast(images.device):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels)
    with autocast(images.device):
        return lesson(images, logits.float(), loss)


def train(model: nn.Module, feed: Iterable[Batch], lesson: Lesson = labels_alone) -> None:
    """Train ``model`` in place on what is left of ``feed``."""
    optimizer = optimizer_of(model.parameters())
    model.train()
    for batch in feed:
        train_step(model, optimizer, batch, lesson)


def accuracy_of(model: nn.Module, cifar: Cifar, split: Split) -> float:
    """Return the share of ``split`` that ``model`` classifies correctly, in the numbers it was trained in."""
    with autocast(cifar.mean.device):
        return accuracy(model, cifar, split)


def dense_network(network: str, course: Course, seed: int, cifar: Cifar, cache: Path) -> nn.Module:
    """Return the dense network of a seed, trained by an earlier call or by this one.

    A second process that wants the same one waits for the first.
    """
    numbers = (course.dense_steps, course.batch_size, course.dense_lr, len(cifar.train), seed)
    path = cache / f"{network}-{'-'.join(map(str, numbers))}" / "dense.safetensors"
    torch.manual_seed(seed)
    model = NETWORKS[network]().to(cifar.mean.device, memory_format=layout(cifar.mean.device))
    with locked(path.parent):
        if path.exists():
            model.load_state_dict(load_file(path, device=str(cifar.mean.device)))
            return model
        train(model, Feed(cifar, course.dense_steps, course.batch_size, course.dense_lr, seed))
        write_whole(path, save({name: value.cpu().contiguous() for name, value in model.state_dict().items()}))
    return model


@dataclass(frozen=True)
class Run:
    """What a method is given.

    Attributes:
        macs: share of the dense network's MACs that may stay.
        dense: trained, on the device; not to be changed.
        lesson: what is learnt besides the labels.
    """

    network: str
    macs: float
    seed: int
    course: Course
    dense: nn.Module
    cifar: Cifar
    lesson: Lesson = labels_alone

    @property
    def example(self) -> Tensor:
        """One held-out image, ``(1, 3, 32, 32)``: only its shape matters."""
        return self.cifar.example

    def feed(self) -> Feed:
        """Return the steps that every method gets; other images than the dense training's first ones."""
        return Feed(self.cifar, self.course.steps, self.course.batch_size, self.course.lr, self.seed + 1000)
