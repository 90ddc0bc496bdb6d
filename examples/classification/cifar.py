"""Prune a CIFAR network in your own loop.

    python -m examples.classification.cifar                                         # handwritten digits, minutes
    python -m examples.classification.cifar --network densenet_12_40
    python -m examples.classification.cifar --data ../shared/data --full            # CIFAR-10, 160 epochs

After the dense training every row takes equally many steps. Results: a table and ``results.json`` in
``runs/classification``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples import networks
from examples.classification.data import cifar10, digits
from examples.common.rivals import RIVALS
from examples.common.screen import bar, shares
from hyperprune import Budget, HyperpruneError, Search, export_pruned, hyperize
from hyperprune.files import write_whole


@dataclass(frozen=True)
class Config:
    """What is run. Change it here, or by the flags of the same names."""

    network: str = "resnet20"
    macs: tuple[float, ...] = (0.5,)
    batch_size: int = 64
    dense_epochs: int = 8
    search_epochs: int = 4
    converge_epochs: int = 6
    lr: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    out: str = "runs/classification"


FULL_EPOCHS = {"dense_epochs": 160, "search_epochs": 20, "converge_epochs": 140}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": networks.resnet20,
    "resnet56": networks.resnet56,
    "resnet110": networks.resnet110,
    "resnet164": networks.resnet164,
    "densenet_12_40": networks.densenet_12_40,
    "vgg16_bn": networks.vgg16_bn,
    "mobilenet_v1": lambda: networks.mobilenet_v1(10, 32),
    "mobilenet_v2": lambda: networks.mobilenet_v2(10, 32),
}

Split = tuple[Tensor, Tensor]  # images (N, 3, 32, 32) and labels (N,)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
console = Console()


def shuffled(config: Config, split: Split) -> DataLoader[tuple[Tensor, ...]]:
    """Return batches in a new order every epoch."""
    return DataLoader(TensorDataset(*split), batch_size=config.batch_size, shuffle=True, drop_last=True)


def moved(images: Tensor, shift: int = 4) -> Tensor:
    """Return the batch moved by up to ``shift`` pixels."""
    top, left = torch.randint(2 * shift + 1, (2,)).tolist()
    return F.pad(images, [shift] * 4)[..., top : top + images.shape[-2], left : left + images.shape[-1]]


def train(model: nn.Module, config: Config, split: Split, epochs: int, title: str) -> None:
    """Train ``model`` in place."""
    loader = shuffled(config, split)
    optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=epochs * len(loader))
    model.train()
    with bar(console, title, epochs * len(loader)) as progress:
        for _ in range(epochs):
            for images, labels in loader:
                loss = F.cross_entropy(model(moved(images).to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.advance(loss.item())


def search(dense: nn.Module, config: Config, split: Split, macs: float) -> nn.Module:
    """Return a slim network of the same class, found while training."""
    loader = shuffled(config, split)
    hyper = hyperize(dense, split[0][:1].to(device))
    groups = hyper.parameter_groups(lr=config.lr / 5, weight_decay=config.weight_decay)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=macs), steps=config.search_epochs * len(loader))
    hyper.train()
    with bar(console, f"search to {macs:.0%}", search.steps) as progress:
        for _ in range(config.search_epochs):
            for images, labels in loader:
                loss = F.cross_entropy(hyper(moved(images).to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                search.step()  # the one line more
                progress.advance(loss.item(), f"MACs {search.progress().macs_fraction:.0%}")
    slim = export_pruned(hyper)
    train(slim, config, split, config.converge_epochs, f"converge at {macs:.0%}")
    return slim


@torch.no_grad()
def error(model: nn.Module, split: Split) -> float:
    """Return the share of wrong answers."""
    model.eval()
    parts = zip(split[0].split(250), split[1].split(250), strict=True)
    wrong = sum(int((model(images.to(device)).argmax(1).cpu() != labels).sum()) for images, labels in parts)
    return wrong / len(split[1])


def rows(config: Config, dense: nn.Module, training: Split, test: Split) -> Iterator[dict[str, object]]:
    """Yield each row of the table: name, shares of the dense cost, error."""
    example = training[0][:1].to(device)
    epochs = config.search_epochs + config.converge_epochs

    def row(name: str, model: nn.Module) -> dict[str, object]:
        macs, params = shares(model, dense, example)
        return {"network": name, "macs": macs, "params": params, "error": error(model, test)}

    longer = copy.deepcopy(dense)
    train(longer, config, training, epochs, "dense, as many epochs")
    yield row("dense", longer)
    for macs in config.macs:
        yield row(f"hyperprune, {macs:.0%}", search(dense, config, training, macs))
        for name, rival in RIVALS.items():
            try:
                other = rival(dense, example, macs, config.seed)
            except HyperpruneError as fault:
                yield {"network": f"{name}, {macs:.0%}", "note": str(fault)}
                continue
            train(other, config, training, epochs, f"{name} at {macs:.0%}")
            yield row(f"{name}, {macs:.0%}", other)


def run(config: Config, training: Split, test: Split) -> list[dict[str, object]]:
    """Train, search, compare; show a table and write the results."""
    torch.manual_seed(config.seed)
    dense = NETWORKS[config.network]().to(device)
    train(dense, config, training, config.dense_epochs, f"dense {config.network}")
    found = []
    table = Table("network", "MACs", "params", "error", title=config.network)
    for row in rows(config, dense, training, test):
        found.append(row)
        numbers = [f"{row[key]:.1%}" for key in ("macs", "params", "error") if key in row]
        table.add_row(str(row["network"]), *(numbers or [str(row["note"])]))
        console.print(f"{row['network']}: {' '.join(numbers)}", highlight=False, style="dim")
    console.print(table)
    path = Path(config.out) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"settings": asdict(config), "rows": found}, indent=1) + "\n")
    console.print(f"written: {path}", highlight=False)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default=Config.network)
    parser.add_argument("--macs", type=float, nargs="+", default=list(Config.macs))
    parser.add_argument("--data", type=Path, help="folder of cifar10_jpeg.npz; by default scikit-learn's digits")
    parser.add_argument("--full", action="store_true", help="160 epochs")
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--out", default=Config.out)
    options = parser.parse_args(arguments)
    config = Config(network=options.network, macs=tuple(options.macs), seed=options.seed, out=options.out)
    training, test = digits() if options.data is None else cifar10(options.data)
    run(replace(config, **FULL_EPOCHS) if options.full else config, training, test)


if __name__ == "__main__":
    main()
