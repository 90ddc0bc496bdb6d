"""Prune a timm model on a folder of images, one folder a class.

    python -m examples.classification.timm_folder photos/ --model resnet18 --pretrained --macs 0.5

Without a folder it writes scikit-learn's handwritten digits into ``runs/digits`` as PNG files and takes those.
``--pretrained`` downloads weights by way of timm. The slim weights go to ``runs/timm_folder/slim.safetensors``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder

from examples.common.screen import bar, shares
from hyperprune import Budget, Search, export_pruned, hyperize, save_pruned


@dataclass(frozen=True)
class Config:
    """What is run. Change it here, or by the flags of the same names."""

    model: str = "resnet10t"
    pretrained: bool = False
    image_size: int = 64
    macs: float = 0.5
    batch_size: int = 32
    dense_epochs: int = 4
    search_epochs: int = 3
    converge_epochs: int = 3
    lr: float = 1e-3
    held_out: float = 0.2
    seed: int = 0
    out: str = "runs/timm_folder"


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
console = Console()


def train(model: nn.Module, config: Config, loader: DataLoader, epochs: int, title: str) -> None:
    """Train ``model`` in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=epochs * len(loader))
    model.train()
    with bar(console, title, epochs * len(loader)) as progress:
        for _ in range(epochs):
            for images, labels in loader:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.advance(loss.item())


def search(dense: nn.Module, config: Config, loader: DataLoader) -> nn.Module:
    """Return a slim model of the same class, found while training."""
    hyper = hyperize(dense, next(iter(loader))[0][:1].to(device))
    optimizer = torch.optim.AdamW(hyper.parameter_groups(lr=config.lr / 2, weight_decay=0.01))
    search = Search(hyper, optimizer, Budget(macs=config.macs), steps=config.search_epochs * len(loader))
    hyper.train()
    with bar(console, "search", search.steps) as progress:
        for _ in range(config.search_epochs):
            for images, labels in loader:
                loss = F.cross_entropy(hyper(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                search.step()  # the one line more
                progress.advance(loss.item(), f"MACs {search.progress().macs_fraction:.0%}")
    return export_pruned(hyper)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Return the share of right answers."""
    model.eval()
    hits = [(model(images.to(device)).argmax(1).cpu() == labels).float() for images, labels in loader]
    return torch.cat(hits).mean().item()


def datasets(config: Config, folder: Path, model: nn.Module) -> tuple[Dataset, Dataset]:
    """Return training images (augmented) and held-out ones, as the model wants them."""
    options = timm.data.resolve_model_data_config(model) | {"input_size": (3, config.image_size, config.image_size)}
    augmented, plain = (
        ImageFolder(folder, timm.data.create_transform(**options, is_training=training, no_aug=not training))
        for training in (True, False)
    )
    rng = torch.Generator().manual_seed(config.seed)
    train, held_out = random_split(range(len(plain)), [1 - config.held_out, config.held_out], generator=rng)
    return Subset(augmented, train.indices), Subset(plain, held_out.indices)


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as 32 x 32 PNG files, one folder a digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    for at, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        path = folder / str(label) / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15.9).astype("uint8")).resize((32, 32)).save(path)
    return folder


def run(config: Config, folder: Path) -> dict[str, float]:
    """Train, search, converge, train the dense model as long; print and return MACs and accuracies."""
    torch.manual_seed(config.seed)
    classes = len(ImageFolder(folder).classes)
    model = timm.create_model(config.model, pretrained=config.pretrained, num_classes=classes).to(device)
    train_set, held_out_set = datasets(config, folder, model)
    loader = DataLoader(train_set, config.batch_size, shuffle=True, drop_last=True)
    held_out = DataLoader(held_out_set, config.batch_size)
    train(model, config, loader, config.dense_epochs, f"dense {config.model}")
    slim = search(model, config, loader)
    train(slim, config, loader, config.converge_epochs, "converge")
    train(model, config, loader, config.search_epochs + config.converge_epochs, "dense, as many epochs")
    macs, params = shares(slim, model, next(iter(loader))[0][:1].to(device))
    found = {"dense": accuracy(model, held_out), "slim": accuracy(slim, held_out), "macs": macs, "params": params}
    console.print(
        f"{config.model}: {found['dense']:.1%} held out; slim, {macs:.1%} of the MACs and {params:.1%} of the "
        f"parameters: {found['slim']:.1%}",
        highlight=False,
    )
    path = Path(config.out) / "slim.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pruned(slim, path)
    console.print(f"written: {path}", highlight=False)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="one folder a class")
    parser.add_argument("--model", default=Config.model, help="any name timm knows")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--image-size", type=int, default=Config.image_size)
    parser.add_argument("--macs", type=float, default=Config.macs)
    parser.add_argument("--out", default=Config.out)
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder") or write_digits(Path("runs") / "digits")
    run(Config(**options), folder)


if __name__ == "__main__":
    main()
