"""CIFAR-10 as JPEG, decoded once and kept as ``.npy``: batches with light augmentation, and accuracy.

The data set is not part of this repository: see ``--data`` of the benchmarks that use it.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device import layout

ARCHIVE = "cifar10_jpeg.npz"
HELD_OUT = 5_000  # the last training images: for every choice, never for training
SHIFT = 4  # pixels by which a training image may move
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Split:
    """Images, uint8 of shape ``(N, 3, 32, 32)``, and their labels, int64 of shape ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int | None, stop: int | None) -> Split:
        """Return the images from ``start`` to ``stop``, without a copy."""
        return Split(self.images[start:stop], self.labels[start:stop])

    def to(self, device: torch.device) -> Split:
        """Return the split with its images and labels on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Cifar:
    """What to train on, what to choose by, and what to look at once; with the statistics of the first."""

    train: Split
    held_out: Split
    test: Split
    mean: Tensor
    deviation: Tensor

    @property
    def example(self) -> Tensor:
        """One image, normalised, ``(1, 3, 32, 32)``."""
        return self.normalised(self.held_out.images[:1])

    def to(self, device: torch.device) -> Cifar:
        """Return everything on ``device``; batches are then drawn from there, the same ones as on the CPU."""
        parts = (part.to(device) for part in (self.train, self.held_out, self.test, self.mean, self.deviation))
        return Cifar(*parts)

    def normalised(self, images: Tensor) -> Tensor:
        """Return bytes ``(N, 3, 32, 32)`` as floats of zero mean and unit deviation, as they are to lie in memory."""
        scaled = (images.float() - self.mean) / self.deviation
        return scaled.contiguous(memory_format=layout(scaled.device))


def load_cifar(data: Path, cache: Path, train_images: int | None = None) -> Cifar:
    """Decode the archive in ``data``, or read what an earlier call left in ``cache``.

    Args:
        data: folder of ``cifar10_jpeg.npz``.
        cache: folder for the decoded arrays.
        train_images: use only so many of the first training images; all but the held-out ones by default.

    Raises:
        FileNotFoundError: the archive is not there and nothing is cached.
    """
    train, test = (_load_split(name, data / ARCHIVE, cache) for name in ("train", "test"))
    kept, held_out = train.part(None, -HELD_OUT).part(None, train_images), train.part(-HELD_OUT, None)
    sample = kept.images[:10_000].double()
    mean = sample.mean((0, 2, 3)).float().view(1, 3, 1, 1)
    deviation = sample.std((0, 2, 3)).float().view(1, 3, 1, 1)
    return Cifar(kept, held_out, test, mean, deviation)


def batches(cifar: Cifar, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` shuffled and augmented batches; the same ones for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(cifar.train), generator=rng)
        chosen, order = order[:batch_size].to(cifar.train.labels.device), order[batch_size:]
        images = _augmented(cifar.train.images[chosen], rng)
        yield cifar.normalised(images), cifar.train.labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, cifar: Cifar, split: Split) -> float:
    """Return the share of ``split`` that ``model`` classifies correctly; keeps the model's mode."""
    was_training = model.training
    model.eval()
    hits = 0
    for images, labels in zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True):
        hits += int((model(cifar.normalised(images)).argmax(1) == labels).sum())
    model.train(was_training)
    return hits / len(split)


def _augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return each image moved by up to ``SHIFT`` pixels and mirrored by chance."""
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, [SHIFT] * 4)
    across, down = (torch.randint(2 * SHIFT + 1, (count, 1), generator=rng) for _ in range(2))
    columns, rows = across + torch.arange(size), down + torch.arange(size)
    mirrored = torch.rand(count, 1, generator=rng) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    at = torch.arange(count).view(-1, 1, 1, 1)
    index = (at, torch.arange(3).view(1, -1, 1, 1), rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(part.to(images.device) for part in index)]


def _load_split(name: str, archive: Path, cache: Path) -> Split:
    images, labels = cache / f"cifar10_{name}_images.npy", cache / f"cifar10_{name}_labels.npy"
    if not (images.exists() and labels.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        decoded = _decode(name, archive)
        _save(labels, decoded[1])
        _save(images, decoded[0])
    return Split(torch.from_numpy(np.load(images)), torch.from_numpy(np.load(labels)))


def _decode(name: str, archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 ``(N, 3, 32, 32)``, and labels of one split of the archive."""
    from PIL import Image

    with np.load(archive) as arrays:
        header = arrays["jpeg_header"].tobytes()
        scan, offset = arrays[f"{name}_scan"].tobytes(), arrays[f"{name}_offset"].astype(np.int64)
        labels = arrays[f"{name}_label"].astype(np.int64)
    images = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
    for index, (start, stop) in enumerate(itertools.pairwise(offset)):
        with Image.open(io.BytesIO(header + scan[start:stop])) as picture:
            images[index] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    return images, labels


def _save(path: Path, array: np.ndarray) -> None:
    """Write ``array`` whole or not at all."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    np.save(draft, array)
    os.replace(draft, path)
