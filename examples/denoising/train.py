"""Remove noise from grey images with a dense network, and with slim ones at 60, 40 and 20 % of its MACs.

    python -m examples.denoising.train                                 # a few minutes; photographs of scikit-image
    python -m examples.denoising.train --network unet --sigma 70
    python -m examples.denoising.train --full --data ../shared/data    # Train400 -> Set12, BSD68; hours on a CPU

The training loop is an ordinary one; ``search()`` has one line more. Every row takes equally many steps on the same
patches after the dense training. Results: a table, ``results.json`` and ``pictures.png`` in ``runs/denoising``.
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

from examples.common.images import TEST_GREY, TRAIN_GREY, batches, padded, shipped, with_noise, zipped
from examples.common.quality import Quality, quality
from examples.common.rivals import RIVALS
from examples.common.screen import Row, bar, in_words, save_picture, save_rows, shares, show
from examples.networks import DnCNN, UNet
from hyperprune import Budget, HyperpruneError, Search, export_pruned, hyperize


@dataclass(frozen=True)
class Config:
    """What is run. Change it here, or by the flags of the same names."""

    network: str = "dncnn"
    sigma: float = 25.0  # noise in grey levels of 255; the paper has 70
    macs: tuple[float, ...] = (0.6, 0.4, 0.2)
    patch: int = 32
    batch_size: int = 8
    dense_steps: int = 400
    search_steps: int = 100
    converge_steps: int = 100
    lr: float = 1e-3
    seed: int = 0
    out: str = "runs/denoising"


SMALL: dict[str, Callable[[], nn.Module]] = {"dncnn": lambda: DnCNN(8, 32), "unet": lambda: UNet(16)}
FULL: dict[str, Callable[[], nn.Module]] = {"dncnn": DnCNN, "unet": UNet}
FULL_STEPS = {"patch": 64, "batch_size": 64, "dense_steps": 60_000, "search_steps": 10_000, "converge_steps": 50_000}
MULTIPLE = 16  # U-Net halves the image four times

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
console = Console()


def patches(config: Config, images: Sequence[Tensor], steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield noisy and clean patches, ``(batch, 1, patch, patch)`` each."""
    pairs = [(image, image) for image in images]
    for step, (clean, _) in enumerate(batches(pairs, config.patch, config.batch_size, steps, seed)):
        yield with_noise(clean, config.sigma, seed * 10**6 + step).to(device), clean.to(device)


def train(model: nn.Module, config: Config, images: Sequence[Tensor], steps: int, seed: int, title: str) -> None:
    """Train ``model`` in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps)
    model.train()
    with bar(console, title, steps) as progress:
        for noisy, clean in patches(config, images, steps, seed):
            loss = F.mse_loss(model(noisy), clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(loss.item())


def search(dense: nn.Module, config: Config, images: Sequence[Tensor], macs: float) -> nn.Module:
    """Return a slim network of the same class, found while training."""
    example = torch.rand(1, 1, config.patch, config.patch, device=device)
    hyper = hyperize(dense, example)
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=config.lr / 2))
    search = Search(hyper, optimizer, Budget(macs=macs), steps=config.search_steps)
    hyper.train()
    with bar(console, f"search to {macs:.0%}", config.search_steps) as progress:
        for noisy, clean in patches(config, images, config.search_steps, config.seed + 1):
            loss = F.mse_loss(hyper(noisy), clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            search.step()  # the one line more
            progress.advance(loss.item(), f"MACs {search.progress().macs_fraction:.0%}")
    slim = export_pruned(hyper)
    train(slim, config, images, config.converge_steps, config.seed + 2, f"converge at {macs:.0%}")
    return slim


@torch.no_grad()
def denoised(model: nn.Module, noisy: Tensor) -> Tensor:
    """Return what ``model`` makes of a whole image ``(1, H, W)``."""
    model.eval()
    height, width = noisy.shape[-2:]
    return model(padded(noisy[None].to(device), MULTIPLE))[0, :, :height, :width].cpu()


def score(model: nn.Module, config: Config, tests: dict[str, dict[str, Tensor]]) -> dict[str, Quality]:
    """Return mean PSNR and SSIM on each test set; the same noise for every network."""
    found = {}
    for title, images in tests.items():
        clean = [image / 255 for image in images.values()]
        noisy = [with_noise(image, config.sigma, seed) for seed, image in enumerate(clean)]
        found[title] = Quality.mean([quality(denoised(model, n), c) for n, c in zip(noisy, clean, strict=True)])
    return found


def rows(
    dense: nn.Module, config: Config, images: Sequence[Tensor], tests: dict[str, dict[str, Tensor]]
) -> Iterator[tuple[Row, nn.Module | None]]:
    """Yield each row of the table and its network."""
    example = torch.rand(1, 1, config.patch, config.patch, device=device)
    steps = config.search_steps + config.converge_steps
    yield Row("noisy image", quality=score(nn.Identity(), config, tests)), None
    longer = copy.deepcopy(dense)
    train(longer, config, images, steps, config.seed + 1, "dense, as many steps")
    yield Row("dense", 1.0, 1.0, score(longer, config, tests)), longer
    for macs in config.macs:
        slim = search(dense, config, images, macs)
        yield Row(f"hyperprune, {macs:.0%}", *shares(slim, dense, example), score(slim, config, tests)), slim
        for name, rival in RIVALS.items():
            try:
                other = rival(dense, example, macs, config.seed)
            except HyperpruneError as error:
                yield Row(f"{name}, {macs:.0%}", note=str(error)), None
                continue
            train(other, config, images, steps, config.seed + 1, f"{name} at {macs:.0%}")
            yield Row(f"{name}, {macs:.0%}", *shares(other, dense, example), score(other, config, tests)), other


def picture(config: Config, found: list[tuple[Row, nn.Module | None]], clean: Tensor) -> dict[str, Tensor]:
    """Return the noisy image and what the dense and the slim networks make of it, by title."""
    noisy = with_noise(clean / 255, config.sigma, 0)
    images = {"noisy": noisy}
    for row, model in found:
        if model is not None and row.name.startswith(("dense", "hyperprune")):
            images[row.name] = denoised(model, noisy)
    titled = {f"{name}: {quality(image, clean / 255).psnr:.2f} dB": image for name, image in images.items()}
    return {title: _middle(image) for title, image in titled.items()}


def _middle(image: Tensor, side: int = 160) -> Tensor:
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def run(config: Config, network: nn.Module, data: Path | None) -> list[Row]:
    """Train, search, compare; show a table and write results and a picture."""
    if data is None:
        images, tests = shipped(TRAIN_GREY, 1), {"camera": shipped(TEST_GREY, 1)}
    else:
        images = zipped(data / "Train400.zip", 1)
        tests = {name: zipped(data / f"{name}.zip", 1) for name in ("Set12", "BSD68")}
    dense = network.to(device)
    train(dense, config, list(images.values()), config.dense_steps, config.seed, f"dense {config.network}")
    found = []
    for row, model in rows(dense, config, list(images.values()), tests):
        found.append((row, model))
        console.print(f"{row.name}: {row.note or in_words(row.quality)}", highlight=False, style="dim")
    table = [row for row, _ in found]
    show(table, f"{config.network}, sigma {config.sigma:g}", console)
    out = Path(config.out)
    first = next(iter(next(iter(tests.values())).values()))
    save_picture(picture(config, found, first), out / "pictures.png")
    save_rows(table, asdict(config), out / "results.json")
    console.print(f"written: {out / 'pictures.png'}, {out / 'results.json'}", highlight=False)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=FULL, default=Config.network)
    parser.add_argument("--sigma", type=float, default=Config.sigma)
    parser.add_argument("--data", type=Path, help="folder of Train400.zip, Set12.zip and BSD68.zip")
    parser.add_argument("--full", action="store_true", help="the paper's network and a long training")
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--out", default=Config.out)
    options = parser.parse_args(arguments)
    config = Config(network=options.network, sigma=options.sigma, seed=options.seed, out=options.out)
    torch.manual_seed(config.seed)
    if options.full:
        run(replace(config, **FULL_STEPS), FULL[config.network](), options.data)
    else:
        run(config, SMALL[config.network](), options.data)


if __name__ == "__main__":
    main()
