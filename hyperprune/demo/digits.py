"""Real images without a download: scikit-learn's handwritten digits, enlarged to 32 x 32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEST_IMAGES = 500
PIXEL_RANGE = 16.0  # the scanned digits count ink from 0 to 16
MAX_SHIFT = 0.15  # of half the image: about 2 pixels of 32


@dataclass(frozen=True)
class Digits:
    """Images as float tensors ``(N, 1, 32, 32)`` and labels as int64 tensors ``(N,)``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(size: int = 32) -> Digits:
    """Return the 1797 digits of 8 x 8 pixels, enlarged to ``size`` and split 1297 / 500.

    The split is stratified by digit and always the same. The images are normalised with the
    mean and the standard deviation of the training part.

    Example:
        >>> digits = load_digits()
        >>> digits.train_images.shape, digits.test_labels.shape
        (torch.Size([1297, 1, 32, 32]), torch.Size([500]))
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    train_images, test_images = _enlarge(train_x, size), _enlarge(test_x, size)
    std, mean = torch.std_mean(train_images)
    return Digits((train_images - mean) / std, _as_labels(train_y), (test_images - mean) / std, _as_labels(test_y))


def _enlarge(pixels: object, size: int) -> Tensor:
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / PIXEL_RANGE
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _as_labels(labels: object) -> Tensor:
    return torch.as_tensor(labels, dtype=torch.int64)


def batches(digits: Digits, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` shuffled training batches, each image shifted by up to two pixels.

    The order and the shifts depend on ``seed`` alone, not on the global random state.

    Yields:
        images ``(batch_size, 1, 32, 32)`` and labels ``(batch_size,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    for indices in _shuffled_indices(len(digits.train_images), steps, batch_size, generator):
        yield _shift(digits.train_images[indices], generator), digits.train_labels[indices]


def _shuffled_indices(count: int, steps: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    pool = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(pool) < batch_size:
            pool = torch.cat([pool, torch.randperm(count, generator=generator)])
        yield pool[:batch_size]
        pool = pool[batch_size:]


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image of ``(N, 1, H, W)`` by its own random offset; the border repeats."""
    transform = torch.eye(2, 3).repeat(len(images), 1, 1)
    transform[:, :, 2] = (2 * torch.rand(len(images), 2, generator=generator) - 1) * MAX_SHIFT
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
