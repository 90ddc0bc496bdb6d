"""Images: a folder of classes, or scikit-learn's digits; their order is a function of seed and epoch alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hyperprune.errors import DataError, MissingLibraryError

DIGITS = "sklearn/digits"
DIGITS_SIZE = (3, 32, 32)
TEST_FOLDERS = ("val", "valid", "validation", "test")
TEST_SHARE = 0.2  # of a folder without a part for testing
SMALLEST_CROP = 0.35  # of the image's area; ImageNet's usual 0.08 is for hundreds of epochs
MAX_SHIFT = 0.1  # of a digit's image; digits are not mirrored

Sample = tuple[Any, int]
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Preparation:
    """How images become inputs: size ``(C, H, W)``, mean and spread per channel, and the crop used for testing."""

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    interpolation: str


@dataclass(frozen=True)
class Images:
    """A part of the data: ``source[index]`` for the indices that belong to it, and the transform of an image."""

    source: Any
    indices: Sequence[int]
    transform: Transform

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class ImageData:
    """Images to train on and to test with, and the names of the classes."""

    train: Images
    test: Images
    classes: tuple[str, ...]


class _Epoch(Dataset[Sample]):
    """The images of one epoch; each draws its augmentation from (seed, epoch, index), whichever worker loads it."""

    def __init__(self, images: Images, seed: int, epoch: int) -> None:
        self.images, self.seed, self.epoch = images, seed, epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> Sample:
        index = self.images.indices[at]
        try:
            image, label = self.images.source[index]
        except OSError as error:  # PIL's errors are of this kind
            name = getattr(self.images.source, "samples", {index: (index,)})[index][0]
            raise DataError(f"image {name} cannot be read: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed(self.seed, self.epoch, index))  # the GPU's stays
            return self.images.transform(image), int(label)


def batches(
    images: Images, batch_size: int, *, seed: int, epoch: int, start: int = 0, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the shuffled batches of one epoch, from batch ``start`` on; an incomplete last one is left out.

    Yields:
        images ``(N, C, H, W)`` and labels ``(N,)``.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mixed(seed, epoch))).tolist()
    groups = [order[at * batch_size : (at + 1) * batch_size] for at in range(steps_per_epoch(images, batch_size))]
    yield from _loader(_Epoch(images, seed, epoch), workers, batch_sampler=groups[start:])


def in_order(images: Images, batch_size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, unshuffled."""
    yield from _loader(_Epoch(images, 0, 0), workers, batch_size=batch_size)


def steps_per_epoch(images: Images, batch_size: int) -> int:
    """Return the number of batches that ``batches`` yields in an epoch."""
    return max(1, len(images) // batch_size)


def mixed(*numbers: int) -> int:
    """Return one seed made of several numbers (the hash of integers is the same in every process)."""
    return hash(numbers) % 2**63


def load_data(name: str, preparation: Preparation, seed: int) -> ImageData:
    """Read ``sklearn/digits``, or a folder: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, or ``CLASS/*.jpg``.

    A folder without a part for testing is split by class, one image in five; the split depends on the seed.

    Raises:
        DataError: no such folder, no images, or classes that differ between the parts.
        MissingLibraryError: torchvision (or scikit-learn) is not installed.
    """
    if name == DIGITS:
        return _digits(preparation)
    root = Path(name)
    if not root.is_dir():
        raise DataError(f"{name} is no folder. Pass a folder of images, one folder a class, or {DIGITS}.")
    test = next((root / part for part in TEST_FOLDERS if (root / part).is_dir()), None)
    if (root / "train").is_dir() and test is None:
        raise DataError(f"{name} has train/ but no {'/, '.join(TEST_FOLDERS)}/. Add one, or pass {name}/train itself.")
    augment, plain = _transforms(preparation)
    if test is None:
        whole = _folder(root)
        train_part, test_part = _split(whole.targets, seed)
        return ImageData(Images(whole, train_part, augment), Images(whole, test_part, plain), tuple(whole.classes))
    train, held_out = _folder(root / "train"), _folder(test)
    if train.classes != held_out.classes:
        strange = sorted(set(train.classes) ^ set(held_out.classes))[:3]
        raise DataError(f"train and {test.name} in {name} have different classes: {', '.join(strange)} in one only.")
    parts = (Images(train, range(len(train)), augment), Images(held_out, range(len(held_out)), plain))
    return ImageData(*parts, tuple(train.classes))


def _folder(root: Path) -> Any:
    try:
        return _torchvision().datasets.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(f"{root} is no folder of images by class: {error}") from error


def _split(labels: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    train: list[int] = []
    test: list[int] = []
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(mixed(seed))).tolist()
    for label in sorted(set(labels)):
        members = [at for at in shuffled if labels[at] == label]
        held_out = round(TEST_SHARE * len(members))
        test += members[:held_out]
        train += members[held_out:]
    if not test:
        raise DataError("too few images to hold some out for testing: make a val/ folder beside train/.")
    return sorted(train), sorted(test)


def _transforms(preparation: Preparation) -> tuple[Transform, Transform]:
    """Return how an image becomes an input in training and in testing."""
    transforms = _torchvision().transforms
    channels, height, width = preparation.size
    if channels not in (1, 3):
        raise DataError(f"images have 1 or 3 channels, the network takes {channels}.")
    how = transforms.InterpolationMode(preparation.interpolation)
    end = [
        *([transforms.Grayscale()] if channels == 1 else []),
        transforms.ToTensor(),
        transforms.Normalize(preparation.mean[:channels], preparation.std[:channels]),
    ]
    shrunk = round(min(height, width) / preparation.crop)
    crop = transforms.RandomResizedCrop((height, width), scale=(SMALLEST_CROP, 1.0), interpolation=how)
    middle = [transforms.Resize(shrunk, interpolation=how), transforms.CenterCrop((height, width))]
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end]), transforms.Compose([*middle, *end])


def _digits(preparation: Preparation) -> ImageData:
    from hyperprune.demo.digits import load_digits

    channels, height, width = preparation.size
    if height != width:
        raise DataError(f"the digits are square, the network takes {height} x {width}. Pass --input 3x32x32.")
    try:
        digits = load_digits(height)
    except ImportError as error:
        raise MissingLibraryError("scikit-learn is not installed: pip install 'hyperprune[prune]'") from error
    margin = round(MAX_SHIFT * height)
    shift = _torchvision().transforms.RandomCrop(height, padding=margin, padding_mode="edge")
    train = TensorDataset(digits.train_images.expand(-1, channels, -1, -1), digits.train_labels)
    test = TensorDataset(digits.test_images.expand(-1, channels, -1, -1), digits.test_labels)
    parts = (Images(train, range(len(train)), shift), Images(test, range(len(test)), torch.clone))
    return ImageData(*parts, tuple("0123456789"))


def _loader(epoch: _Epoch, workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader that leaves the global random state alone."""
    return DataLoader(
        epoch, num_workers=workers, worker_init_fn=_leave_interrupts, generator=torch.Generator(), **options
    )


def _leave_interrupts(worker: int) -> None:
    """Let Ctrl-C reach the main process only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _torchvision() -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise MissingLibraryError("torchvision is not installed: pip install 'hyperprune[prune]'") from error
    return torchvision
