"""Which rule should choose the channels? ResNet-20 on CIFAR-10 as JPEG, pretrained, to half the MACs.

Every row starts from the same dense network and takes the same number of optimiser steps on the same batches
under the same learning rates; a search takes its steps out of that number. Choices are made on held-out
training images; the test images are looked at once per row, after its last step.

    python -m benchmarks.rules --data ../shared/data            # run; finished rows are not run again
    python -m benchmarks.rules --table                          # write docs/benchmarks.md from the results
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar import ARCHIVE, Cifar, accuracy, batches, load_cifar
from benchmarks.device import layout
from benchmarks.schedule import rate
from hyperprune import Budget, Fisher, HyperpruneError, L1Proximal, PublishedL1, Search, hyperize, prune
from hyperprune.cost import count_with_fvcore
from hyperprune.demo.resnet import resnet20
from hyperprune.export import export_pruned

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "rules.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- rules: begin -->", "<!-- rules: end -->")
TORCH_PRUNING_STEPS = 200  # how finely its channel ratio approaches the MACs

Batch = tuple[float, Tensor, Tensor]  # learning rate, images, labels


@dataclass(frozen=True)
class Settings:
    """What is run; rows are comparable only under equal settings."""

    macs: float = 0.5
    search_steps: int = 300
    finetune_steps: int = 150
    peak_lr: float = 0.05
    dense_steps: int = 2000
    dense_peak_lr: float = 0.2
    dense_seed: int = 0
    batch_size: int = 128
    weight_decay: float = 5e-4
    train_images: int = 45_000
    bfloat16: bool = True

    @property
    def steps(self) -> int:
        """Optimiser steps of every row after the dense training."""
        return self.search_steps + self.finetune_steps


@dataclass(frozen=True)
class Bench:
    """What every row needs."""

    settings: Settings
    cifar: Cifar
    dense: nn.Module
    seed: int
    bar: Bar

    def course(self) -> Iterator[Batch]:
        """Yield the learning rates and batches of one run: the same for every row."""
        settings = self.settings
        return course(self.cifar, settings, settings.steps, settings.peak_lr, self.seed + 1)


@dataclass(frozen=True)
class Start:
    """A network from which plain training goes on for what is left of its course."""

    model: nn.Module
    note: str = ""


class Bar:
    """Shows the loss and the steps of the run in progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._title = progress, total, ""
        self._task: TaskID | None = None

    def begin(self, title: str, total: int | None = None) -> None:
        """Start a new line for one run."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._title = title
        self._task = self._progress.add_task(title, total=total or self._total)

    def advance(self, loss: float, note: str = "") -> None:
        """Count one step."""
        assert self._task is not None
        text = f"{self._title}  loss {loss:.3f}  {note}"
        self._progress.update(self._task, advance=1, description=text)


# ---- training -------------------------------------------------------------------------------------------------


def course(cifar: Cifar, settings: Settings, steps: int, peak_lr: float, seed: int) -> Iterator[Batch]:
    """Yield the learning rate, the images and the labels of each of ``steps`` steps."""
    feed = batches(cifar, steps, settings.batch_size, seed)
    for step, (images, labels) in enumerate(feed):
        yield peak_lr * rate(step / steps), images, labels


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, bfloat16: bool) -> float:
    """Take one optimiser step and return the loss."""
    lr, images, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(model: nn.Module, feed: Iterator[Batch], settings: Settings, bar: Bar) -> None:
    """Train ``model`` in place on what is left of ``feed``."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.peak_lr, momentum=0.9, weight_decay=settings.weight_decay
    )
    model.train()
    for batch in feed:
        bar.advance(train_step(model, optimizer, batch, settings.bfloat16))


def dense_network(settings: Settings, cifar: Cifar, cache: Path, bar: Bar) -> nn.Module:
    """Return the dense network, trained by an earlier call or by this one."""
    name = f"{settings.dense_steps}-{settings.train_images}-{settings.dense_peak_lr}-{settings.dense_seed}"
    path = cache / f"dense-{name}.safetensors"
    torch.manual_seed(settings.dense_seed)
    model = resnet20().to(memory_format=layout(torch.device("cpu")))
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    bar.begin("dense network", settings.dense_steps)
    feed = course(cifar, settings, settings.dense_steps, settings.dense_peak_lr, settings.dense_seed)
    train(model, feed, settings, bar)
    replace_file(path, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return model


# ---- rows -----------------------------------------------------------------------------------------------------

Maker = Callable[[Bench, Iterator[Batch]], Start]


def searched(sparsifier: Callable[[], Any]) -> Maker:
    """Return a maker that searches with a sparsifier while it trains."""

    def make(bench: Bench, feed: Iterator[Batch]) -> Start:
        settings = bench.settings
        hyper = hyperize(bench.dense, bench.cifar.example)
        groups = hyper.parameter_groups(lr=settings.peak_lr, weight_decay=settings.weight_decay)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        budget = Budget(macs=settings.macs)
        search = Search(hyper, optimizer, budget, steps=settings.search_steps, sparsifier=sparsifier())
        hyper.train()
        for batch in islice(feed, settings.search_steps):
            loss = train_step(hyper, optimizer, batch, settings.bfloat16)
            search.step()
            bench.bar.advance(loss, f"MACs {search.progress().macs_fraction:.0%}")
        return Start(export_pruned(hyper))

    return make


def pruned_at_once(criterion: str) -> Maker:
    """Return a maker that calls ``prune``."""

    def make(bench: Bench, feed: Iterator[Batch]) -> Start:
        torch.manual_seed(bench.seed)
        budget = Budget(macs=bench.settings.macs)
        return Start(prune(bench.dense, bench.cifar.example, budget, criterion=criterion))

    return make


def uniform_widths(bench: Bench, feed: Iterator[Batch]) -> Start:
    """Keep the same share of every group of channels, and in it channels by chance."""
    hyper = hyperize(bench.dense, bench.cifar.example)
    counts = widest_uniform(hyper.cost, bench.settings.macs)
    rng = torch.Generator().manual_seed(bench.seed)
    keep = torch.zeros(hyper.coupling.units, dtype=torch.bool)
    for group, count in zip(hyper.coupling.groups, counts, strict=True):
        keep[group.units.start + torch.randperm(group.size, generator=rng)[:count]] = True
    hyper.bank.keep_(keep)
    return Start(export_pruned(hyper), f"every group keeps {counts[0] / hyper.cost.full[0]:.0%}")


def widest_uniform(cost: Any, macs: float) -> np.ndarray:
    """Return units per group for the largest uniform share of channels whose MACs fit."""
    limit = macs * cost.total(cost.full).macs
    for share in np.linspace(1, 0, 1001):
        counts = np.maximum(np.round(share * cost.full), 1).astype(np.int64)
        if cost.total(counts).macs <= limit:
            return counts
    raise HyperpruneError(f"no uniform share of the channels costs {macs:.0%} of the MACs or less")


def torch_pruning(global_pruning: bool) -> Maker:
    """Return a maker that prunes with Torch-Pruning's group magnitude.

    Its pruner works to a ratio of channels, so channels go in small steps until the MACs are met.
    """

    def make(bench: Bench, feed: Iterator[Batch]) -> Start:
        import torch_pruning as tp

        model, example = copy.deepcopy(bench.dense).eval(), bench.cifar.example
        target = bench.settings.macs * count_with_fvcore(model, example).macs
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(),
            global_pruning=global_pruning,
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=TORCH_PRUNING_STEPS,
            ignored_layers=[model.classifier],
        )
        while count_with_fvcore(model, example).macs > target and pruner.current_step < TORCH_PRUNING_STEPS:
            pruner.step()
        for parameter in model.parameters():
            parameter.grad = None
        return Start(model, f"global_pruning={global_pruning}")

    return make


def unpruned(bench: Bench, feed: Iterator[Batch]) -> Start:
    """Go on with the dense network."""
    return Start(copy.deepcopy(bench.dense))


ROWS: dict[str, tuple[Maker, ...]] = {
    "dense, trained as long": (unpruned,),
    "search, Fisher (default)": (searched(Fisher),),
    "search, Fisher(balance=0)": (searched(partial(Fisher, balance=0.0)),),
    "search, L1Proximal": (searched(L1Proximal),),
    "search, PublishedL1": (searched(PublishedL1),),
    "prune(criterion='magnitude')": (pruned_at_once("magnitude"),),
    "prune(criterion='random')": (pruned_at_once("random"),),
    "uniform widths, random channels": (uniform_widths,),
    "Torch-Pruning, group magnitude": (torch_pruning(True), torch_pruning(False)),
}  # of several makers, the row shows the one that is best on the held-out images


def run_row(bench: Bench, name: str) -> dict[str, Any]:
    """Run one row, choose among its makers, look at the test images, and return plain numbers."""
    started = time.perf_counter()
    tried = [run_maker(bench, name, maker) for maker in ROWS[name]]
    model, best = max(tried, key=lambda pair: pair[1]["held_out"])
    dense, slim = (count_with_fvcore(m, bench.cifar.example) for m in (bench.dense, model))
    return {
        "row": name,
        "seed": bench.seed,
        "settings": asdict(bench.settings),
        "macs_fraction": slim.macs / dense.macs,
        "params_fraction": slim.params / dense.params,
        **best,
        "test": accuracy(model, bench.cifar, bench.cifar.test),
        "others": [numbers for _, numbers in tried if numbers is not best],
        "widths": widths(model),
        "seconds": round(time.perf_counter() - started),
    }


def run_maker(bench: Bench, name: str, maker: Maker) -> tuple[nn.Module, dict[str, Any]]:
    """Prune and train once; return the model and its accuracies on the held-out images."""
    bench.bar.begin(name)
    feed = bench.course()
    start = maker(bench, feed)
    when_pruned = accuracy(start.model, bench.cifar, bench.cifar.held_out)
    train(start.model, feed, bench.settings, bench.bar)
    numbers = {
        "note": start.note,
        "held_out_when_pruned": when_pruned,
        "held_out": accuracy(start.model, bench.cifar, bench.cifar.held_out),
    }
    return start.model, numbers


def widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every convolution."""
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


# ---- results --------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """Finished rows, on disk after every one."""

    path: Path
    machine: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what earlier calls wrote, if anything."""
        content = json.loads(path.read_text()) if path.exists() else {}
        return cls(path, content.get("machine", {}), content.get("rows", []))

    def has(self, name: str, seed: int) -> bool:
        """Say whether a row is finished."""
        return any((row["row"], row["seed"]) == (name, seed) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Take one row in, in place of an earlier one of its name and seed, and write the file.

        The file is read again first: another process may have finished other rows meanwhile.
        """
        present = Results.read(self.path).rows
        self.rows = [r for r in present if (r["row"], r["seed"]) != (row["row"], row["seed"])] + [row]
        self.machine = machine()
        content = {"machine": self.machine, "rows": self.rows}
        replace_file(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def require(self, settings: Settings) -> None:
        """Make sure that the rows of the file can be compared with new ones.

        Raises:
            HyperpruneError: they were run under other settings.
        """
        if any(row["settings"] != asdict(settings) for row in self.rows):
            raise HyperpruneError(f"{self.path} holds rows of other settings: name another file with --results.")


def machine() -> dict[str, str]:
    """Return what the numbers were measured with."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"CPU, {torch.get_num_threads()} thread(s)",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)


# ---- table ----------------------------------------------------------------------------------------------------


def cells_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells of one line of the table: the mean over seeds, and the spread where there is one."""
    notes = {row["note"] for row in rows}
    note = f" ({notes.pop()})" if len(notes) == 1 and rows[0]["note"] else ""
    whole = rows[0]["macs_fraction"] == 1
    return [
        rows[0]["row"] + note,
        f"{mean(row['macs_fraction'] for row in rows):.3f}",
        f"{mean(row['params_fraction'] for row in rows):.3f}",
        "" if whole else _percent([row["held_out_when_pruned"] for row in rows]),
        _percent([row["held_out"] for row in rows]),
        _percent([row["test"] for row in rows]),
    ]


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


HEAD = ["row", "MACs kept", "params kept", "right after pruning, held out", "last step, held out", "last step, test"]


def lines_of_table(results: Results) -> list[list[str]]:
    """Return the cells of every line, in the order of ``ROWS``."""
    grouped = {name: [r for r in results.rows if r["row"] == name] for name in ROWS}
    return [cells_of(rows) for rows in grouped.values() if rows]


def page(results: Results) -> str:
    """Return the benchmark as markdown: what was run, the table, and what it does not show."""
    settings = Settings(**results.rows[0]["settings"])
    table = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1), *lines_of_table(results)]
    paragraphs = [
        MARKS[0],
        "## Which rule chooses the channels?",
        what_was_run(settings),
        "\n".join(f"| {' | '.join(cells)} |" for cells in table),
        how_to_read(settings, results),
        "Mind: a short training far from convergence, a small network, few seeds; differences of less than a point say "
        "little. Repeat with `make bench-rules`.",
        MARKS[1],
    ]
    return "\n\n".join(paragraphs)


def what_was_run(settings: Settings) -> str:
    """Say in words what the settings say."""
    return (
        "ResNet-20 on CIFAR-10 as strongly compressed JPEG, pruned from pretrained weights to "
        f"{settings.macs:.0%} of its MACs. The dense network was trained for {settings.dense_steps:,} steps on "
        f"{settings.train_images:,} images. Then every row takes {settings.steps} steps of batch {settings.batch_size} "
        f"on the same batches, under the same learning rates (SGD, momentum 0.9, weight decay "
        f"{settings.weight_decay:g}; peak {settings.peak_lr:g}, cosine to zero), with mirrored and shifted images: a "
        f"search takes {settings.search_steps} of them and leaves {settings.finetune_steps} to the slim network; all "
        "others are cut at once and take all of them afterwards."
    )


def how_to_read(settings: Settings, results: Results) -> str:
    """Say what the numbers of the table are."""
    seeds = sorted({row["seed"] for row in results.rows})
    spread = "; mean ± standard deviation" if len(seeds) > 1 else ""
    numbers = "bfloat16 autocast" if settings.bfloat16 else "float32"
    machine = results.machine
    return (
        f"Accuracies in percent, after the last step (not the best one). Seeds: {', '.join(map(str, seeds))} (order of "
        f"the batches, augmentation, random channels; one and the same dense network){spread}. Held out: the last "
        "5,000 training images, by which choices were made; test: 10,000 images, looked at once per row. MACs and "
        "parameters are fvcore's count. A search trains while it prunes, so its accuracy right after pruning includes "
        "that training. PublishedL1 at the paper's lambda moves the latents by less than 0.01 in so few steps: its cut "
        "at the last step decides. Torch-Pruning shows the better of global and uniform pruning by the held-out "
        "images; its uniform ratio jumps over the target, so it keeps fewer MACs than the others. One "
        f"machine ({machine['system']}, {machine['device']}, torch {machine['torch']}), training in {numbers}."
    )


def write_page(results: Results, path: Path) -> None:
    """Put the table between its marks in the page, or at the page's end."""
    text = path.read_text() if path.exists() else "# Benchmarks\n"
    before, begin, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2] if begin else "\n"
    replace_file(path, (before.rstrip() + "\n\n" + page(results) + after).encode())


def show(results: Results, console: Console) -> None:
    """Print the table."""
    table = Table()
    for title in HEAD:
        table.add_column(title, overflow="fold")
    for cells in lines_of_table(results):
        table.add_row(*cells)
    console.print(table)


# ---- command line ---------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, settings: Settings, console: Console) -> Results:
    """Run every row that is not finished yet."""
    torch.set_num_threads(options.threads)
    results = Results.read(options.results)
    results.require(settings)
    cifar = load_cifar(options.data, options.cache, settings.train_images)
    parts = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True) as progress:
        bar = Bar(progress, settings.steps)
        dense = dense_network(settings, cifar, options.cache, bar)
        console.print(f"dense: {accuracy(dense, cifar, cifar.held_out):.1%} of the held-out images", highlight=False)
        for seed in options.seeds:
            bench = Bench(settings, cifar, dense, seed, bar)
            run_rows(bench, options.rows, results, console)
    return results


def run_rows(bench: Bench, names: Sequence[str], results: Results, console: Console) -> None:
    """Run the rows of one seed; one that fails is reported and left out."""
    for name in names:
        if results.has(name, bench.seed):
            continue
        try:
            results.add(run_row(bench, name))
        except HyperpruneError as error:
            console.print(f"[red]{name}, seed {bench.seed}: {error}")
            continue
        row = results.rows[-1]
        console.print(
            f"{name}, seed {bench.seed}: {row['macs_fraction']:.3f} of the MACs, held out "
            f"{row['held_out_when_pruned']:.1%} right after pruning, {row['held_out']:.1%} at the end "
            f"({row['seconds']} s)",
            highlight=False,
            soft_wrap=True,
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help=f"folder of {ARCHIVE}")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cifar10", help="decoded images, dense network")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="only render the results into the page")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="train in float32 instead of bfloat16 autocast")
    for name in ("dense_steps", "search_steps", "finetune_steps", "train_images"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(Settings, name))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or render its table."""
    options, console = parse(arguments), Console()
    if not options.table and not (options.data / ARCHIVE).exists():
        console.print(f"skipped: {options.data / ARCHIVE} is not there. Name its folder with --data.", highlight=False)
        return
    if options.table:
        results = Results.read(options.results)
    else:
        names = ("dense_steps", "search_steps", "finetune_steps", "train_images")
        chosen = {name: getattr(options, name) for name in names}
        try:
            results = run(options, Settings(bfloat16=not options.float32, **chosen), console)
        except HyperpruneError as error:
            raise SystemExit(f"rules: {error}") from None
    if not results.rows:
        console.print(f"no results in {options.results}", highlight=False)
        return
    show(results, console)
    if options.table:
        write_page(results, options.page)
        console.print(f"written: {options.page}", highlight=False)


if __name__ == "__main__":
    main()
