"""What must be there before the code of a page runs: names the page takes for granted, images, weights on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 64  # pixels
SMALLEST = 32

Space = dict[str, Any]


class Net(nn.Module):
    """A small classifier with a shortcut, for pages that say ``model`` and ``x`` only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        return self.head(F.relu(x + self.conv2(x)).mean((2, 3)))


def batches(count: int, classes: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of four random images with labels."""
    return [(torch.randn(4, 3, size, size), torch.randint(0, classes, (4,))) for _ in range(count)]


def ordinary(folder: Path) -> Space:
    """A model, an example input, a loader: what any page may take for granted."""
    return {
        "torch": torch,
        "nn": nn,
        "F": F,
        "Net": Net,
        "MyNet": Net,
        "model": Net().eval(),
        "x": torch.randn(1, 3, 16, 16),
        "loader": batches(4, 10, 16),
        "criterion": nn.CrossEntropyLoss(),
        "test_accuracy": lambda network: 0.5,
    }


def with_loader(folder: Path) -> Space:
    """The README's own loop: a loader and a loss."""
    return {"loader": batches(2, 1000, SMALL), "criterion": nn.CrossEntropyLoss()}


def with_photos(folder: Path) -> Space:
    """Two classes of pictures in folders: bright ones and dark ones."""
    for part, count in (("train", 32), ("val", 4)):
        for kind, grey in (("daisy", 180), ("tulip", 60)):
            place = folder / "photos" / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (80, 72), (grey + number % 16, grey, grey)).save(place / f"{number:03}.jpg")
    return {}


def nothing(folder: Path) -> Space:
    """The page brings everything itself."""
    return {}


WORLDS: dict[str, Callable[[Path], Space]] = {
    "README.md": with_loader,
    "docs/tutorials/first-prune.md": nothing,
    "docs/tutorials/how-it-works.md": nothing,
    "docs/tutorials/own-rule.md": nothing,
    "docs/tutorials/timm-images.md": with_photos,
}


def use_weights_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm's real loading code read a weights file made here instead of a download, for small images."""
    create = timm.create_model

    def create_from_file(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        file = folder / f"{name}.pth"
        if pretrained and not file.exists():
            torch.save(create(name).state_dict(), file)
        overlay = {"file": str(file), "input_size": (3, SMALLEST, SMALLEST)}
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", create_from_file)
