"""Small images with labels: scikit-learn's handwritten digits, or CIFAR-10 as JPEG."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Split = tuple[Tensor, Tensor]  # images, float (N, 3, 32, 32), and labels, int64 (N,)
TEST_DIGITS = 500


def digits() -> tuple[Split, Split]:
    """Return 1,297 digits for training and 500 for the test, enlarged to 32 x 32 and given three equal channels."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=TEST_DIGITS, stratify=labels, random_state=0)
    images = [torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2]]
    large = [F.interpolate(image, (32, 32), mode="bilinear").expand(-1, 3, -1, -1) for image in images]
    return _normalised(large[0], parts[2], large[1], parts[3])


def cifar10(folder: Path) -> tuple[Split, Split]:
    """Return the training and the test images of ``cifar10_jpeg.npz`` (its README says how they are stored)."""
    with np.load(folder / "cifar10_jpeg.npz") as arrays:
        header = arrays["jpeg_header"].tobytes()
        train, test = (
            _decoded(header, arrays[f"{name}_scan"].tobytes(), arrays[f"{name}_offset"]) for name in ("train", "test")
        )
        return _normalised(train, arrays["train_label"], test, arrays["test_label"])


def _decoded(header: bytes, scan: bytes, offsets: np.ndarray) -> Tensor:
    from PIL import Image

    images = np.empty((len(offsets) - 1, 32, 32, 3), dtype=np.uint8)
    for at, (start, stop) in enumerate(itertools.pairwise(offsets.astype(np.int64))):
        with Image.open(io.BytesIO(header + scan[start:stop])) as picture:
            images[at] = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _normalised(train: Tensor, train_labels: object, test: Tensor, test_labels: object) -> tuple[Split, Split]:
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    labels = [torch.as_tensor(part, dtype=torch.int64) for part in (train_labels, test_labels)]
    return ((train - mean) / deviation, labels[0]), ((test - mean) / deviation, labels[1])
