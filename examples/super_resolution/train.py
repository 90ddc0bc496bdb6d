"""Enlarge photographs with a dense network, and with slim ones at 60, 40 and 20 % of its MACs.

    python -m examples.super_resolution.train                                # a few minutes; images of scikit-image
    python -m examples.super_resolution.train --network srresnet --scale 4
    python -m examples.super_resolution.train --full --data ../shared/data   # Set5 and Set14; hours on a CPU

The training loop is an ordinary one; ``search()`` has one line more. Every row takes equally many steps after the dense
training. PSNR and SSIM are those of Y, with as many border pixels left out as the scale. Results: a table,
``results.json`` and ``pictures.png`` in ``runs/super_resolution``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from examples.common.images import (
    TEST_COLOUR,
    TRAIN_COLOUR,
    Pair,
    batches,
    in_equal_parts,
    pairs_of_scales,
    resized,
    shipped,
    zipped,
)
from examples.common.quality import Quality, quality
from examples.common.rivals import RIVALS
from examples.common.screen import Row, bar, in_words, save_picture, save_rows, shares, show
from examples.networks import EDSR, SRResNet
from hyperprune import Budget, HyperpruneError, Search, export_pruned, hyperize


@dataclass(frozen=True)
class Config:
    """What is run. Change it here, or by the flags of the same names."""

    network: str = "edsr"
    scale: int = 2  # 2 or 4
    macs: tuple[float, ...] = (0.6, 0.4, 0.2)
    patch: int = 16  # of the small image
    batch_size: int = 8
    dense_steps: int = 800
    search_steps: int = 100
    converge_steps: int = 100
    lr: float = 1e-3
    seed: int = 0
    out: str = "runs/super_resolution"


SMALL: dict[str, Callable[[int], nn.Module]] = {
    "edsr": lambda scale: EDSR(scale, 32, 3),
    "srresnet": lambda scale: SRResNet(scale, 32, 3),
}
FULL: dict[str, Callable[[int], nn.Module]] = {"edsr": EDSR, "srresnet": SRResNet}
FULL_STEPS = {"patch": 48, "batch_size": 16, "dense_steps": 300_000, "search_steps": 20_000, "converge_steps": 100_000}

Tests = dict[str, list[Pair]]  # small and large images, bytes

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
console = Console()


def patches(config: Config, pairs: Sequence[Pair], steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield small and large patches, ``(batch, 3, patch, patch)`` and ``scale`` times larger."""
    for small, large in batches(pairs, config.patch, config.batch_size, steps, seed):
        yield small.to(device), large.to(device)


def train(model: nn.Module, config: Config, pairs: Sequence[Pair], steps: int, seed: int, title: str) -> None:
    """Train ``model`` in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps)
    model.train()
    with bar(console, title, steps) as progress:
        for small, large in patches(config, pairs, steps, seed):
            loss = F.l1_loss(model(small), large)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(loss.item())


def search(dense: nn.Module, config: Config, pairs: Sequence[Pair], macs: float) -> nn.Module:
    """Return a slim network of the same class, found while training."""
    example = torch.rand(1, 3, config.patch, config.patch, device=device)
    hyper = hyperize(dense, example)
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=config.lr / 2))
    search = Search(hyper, optimizer, Budget(macs=macs), steps=config.search_steps)
    hyper.train()
    with bar(console, f"search to {macs:.0%}", config.search_steps) as progress:
        for small, large in patches(config, pairs, config.search_steps, config.seed + 1):
            loss = F.l1_loss(hyper(small), large)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            search.step()  # the one line more
            progress.advance(loss.item(), f"MACs {search.progress().macs_fraction:.0%}")
    slim = export_pruned(hyper)
    train(slim, config, pairs, config.converge_steps, config.seed + 2, f"converge at {macs:.0%}")
    return slim


@torch.no_grad()
def enlarged(model: nn.Module, small: Tensor) -> Tensor:
    """Return what ``model`` makes of a whole image, bytes ``(3, H, W)``."""
    return model.eval()(small[None].to(device) / 255)[0].cpu()


def score(model: nn.Module, config: Config, tests: Tests) -> dict[str, Quality]:
    """Return mean PSNR and SSIM on each test set."""
    return {
        title: Quality.mean([quality(enlarged(model, small), large / 255, config.scale) for small, large in pairs])
        for title, pairs in tests.items()
    }


class Bicubic(nn.Module):
    """What every network has to beat."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resized(x, self.scale)


def rows(
    dense: nn.Module, config: Config, pairs: Sequence[Pair], tests: Tests
) -> Iterator[tuple[Row, nn.Module | None]]:
    """Yield each row of the table and its network."""
    example = torch.rand(1, 3, config.patch, config.patch, device=device)
    steps = config.search_steps + config.converge_steps
    bicubic, longer = Bicubic(config.scale), copy.deepcopy(dense)
    yield Row("bicubic", quality=score(bicubic, config, tests)), bicubic
    train(longer, config, pairs, steps, config.seed + 1, "dense, as many steps")
    yield Row("dense", 1.0, 1.0, score(longer, config, tests)), longer
    for macs in config.macs:
        slim = search(dense, config, pairs, macs)
        yield Row(f"hyperprune, {macs:.0%}", *shares(slim, dense, example), score(slim, config, tests)), slim
        for name, rival in RIVALS.items():
            try:
                other = rival(dense, example, macs, config.seed)
            except HyperpruneError as error:
                yield Row(f"{name}, {macs:.0%}", note=str(error)), None
                continue
            train(other, config, pairs, steps, config.seed + 1, f"{name} at {macs:.0%}")
            yield Row(f"{name}, {macs:.0%}", *shares(other, dense, example), score(other, config, tests)), other


def picture(config: Config, found: list[tuple[Row, nn.Module | None]], pair: Pair) -> dict[str, Tensor]:
    """Return what bicubic, the dense and the slim networks make of an image, by title."""
    small, large = pair
    images = {}
    for row, model in found:
        if model is not None and row.name.startswith(("bicubic", "dense", "hyperprune")):
            image = enlarged(model, small)
            images[f"{row.name}: {quality(image, large / 255, config.scale).psnr:.2f} dB"] = _middle(image)
    return {**images, "original": _middle(large / 255)}


def _middle(image: Tensor, side: int = 128) -> Tensor:
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def load(config: Config, data: Path | None) -> tuple[list[Pair], Tests]:
    """Return training pairs and test sets. Train400 is grey, so every second patch is of a colour photograph."""
    colour = pairs_of_scales(shipped(TRAIN_COLOUR, 3), config.scale)
    if data is None:
        training, tests = list(colour.values()), {name: shipped([name], 3) for name in TEST_COLOUR}
    else:
        training = in_equal_parts(colour, pairs_of_scales(zipped(data / "Train400.zip", 3), config.scale))
        tests = {name: zipped(data / f"{name}.zip", 3) for name in ("Set5", "Set14")}
    return training, {title: list(pairs_of_scales(images, config.scale).values()) for title, images in tests.items()}


def run(config: Config, network: nn.Module, data: Path | None) -> list[Row]:
    """Train, search, compare; show a table and write results and a picture."""
    pairs, tests = load(config, data)
    dense = network.to(device)
    train(dense, config, pairs, config.dense_steps, config.seed, f"dense {config.network}")
    found = []
    for row, model in rows(dense, config, pairs, tests):
        found.append((row, model))
        console.print(f"{row.name}: {row.note or in_words(row.quality)}", highlight=False, style="dim")
    table = [row for row, _ in found]
    show(table, f"{config.network} x{config.scale}", console)
    out = Path(config.out)
    save_picture(picture(config, found, next(iter(tests.values()))[0]), out / "pictures.png")
    save_rows(table, asdict(config), out / "results.json")
    console.print(f"written: {out / 'pictures.png'}, {out / 'results.json'}", highlight=False)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=FULL, default=Config.network)
    parser.add_argument("--scale", type=int, choices=(2, 4), default=Config.scale)
    parser.add_argument("--data", type=Path, help="folder of Train400.zip, Set5.zip and Set14.zip")
    parser.add_argument("--full", action="store_true", help="the paper's network and a long training")
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--out", default=Config.out)
    options = parser.parse_args(arguments)
    config = Config(network=options.network, scale=options.scale, seed=options.seed, out=options.out)
    torch.manual_seed(config.seed)
    if options.full:
        run(replace(config, **FULL_STEPS), FULL[config.network](config.scale), options.data)
    else:
        run(config, SMALL[config.network](config.scale), options.data)


if __name__ == "__main__":
    main()
