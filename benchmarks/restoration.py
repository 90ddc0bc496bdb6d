"""Super-resolution and denoising at 40 % of the MACs: a short training, equal for all rows.

Every row starts from the same dense network and takes the same number of optimiser steps on the same batches under the
same learning rates; a search takes its steps out of that number. The test images are looked at once per row, after its
last step. Whatever is chosen (steps, learning rates, rules) is chosen by the held-out images, which nothing trains on.
Two exceptions are known: that super-resolution trains on colour as much as on grey was decided after an early look at
Set5, where grey alone taught grey; and that colours may come in any order (``recoloured``) after a later look at it,
where a green bird had become too red.

    python -m benchmarks.restoration                      # run; finished rows are not run again
    python -m benchmarks.restoration --tasks dncnn --seeds 0
    python -m benchmarks.restoration --table              # write docs/restoration.md from the results
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device import autocast, layout, precision
from benchmarks.schedule import rate
from examples.common.images import (
    TEST_COLOUR,
    TRAIN_COLOUR,
    Pair,
    batches,
    in_equal_parts,
    pairs_of_scales,
    recoloured,
    resized,
    shipped,
    with_noise,
    zipped,
)
from examples.common.quality import Quality, quality
from examples.common.rivals import random_channels, torch_pruning, torch_pruning_by_hand, uniform_widths
from examples.networks import EDSR, DnCNN, SRResNet
from hyperprune import Budget, Fisher, HyperpruneError, Search, export_pruned, hyperize
from hyperprune.cost import count_with_fvcore
from hyperprune.files import write_whole
from hyperprune.sparsifiers import Sparsifier

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "restoration.json"
PAGE = ROOT / "docs" / "restoration.md"
MARKS = ("<!-- restoration: begin -->", "<!-- restoration: end -->")
MACS = 0.4
CPU = torch.device("cpu")
HELD_OUT = 20  # of Train400's images, the last ones

TestSets = dict[str, list[Pair]]  # what the network gets and what it should make, floats (1, C, H, W)


@dataclass(frozen=True)
class Task:
    """One network and what it learns; rows are comparable only under equal tasks.

    Attributes:
        name: on the command line and in the results.
        network: one of ``NETWORKS``.
        sigma: noise in grey levels of 255 that is to be removed, or None.
        scale: factor by which images are to be enlarged (1: none).
        patch: side of a training patch, in pixels of what the network gets.
        recoloured: whether the colours of a training patch come in an order drawn by chance.
    """

    name: str
    network: str
    sigma: float | None
    scale: int
    patch: int
    batch_size: int
    dense_steps: int
    search_steps: int
    converge_steps: int
    dense_lr: float
    lr: float
    macs: float = MACS
    recoloured: bool = False

    @property
    def channels(self) -> int:
        """Grey for denoising, colour for super-resolution."""
        return 1 if self.scale == 1 else 3

    @property
    def steps(self) -> int:
        """Optimiser steps of every row after the dense training."""
        return self.search_steps + self.converge_steps

    @property
    def example(self) -> Tensor:
        """A patch of noise, ``(1, channels, patch, patch)``: only its shape matters."""
        return torch.rand(1, self.channels, self.patch, self.patch, generator=torch.Generator().manual_seed(0))

    def loss(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Squares for denoising, absolute values for super-resolution, as the networks' papers."""
        return F.mse_loss(made, wanted) if self.scale == 1 else F.l1_loss(made, wanted)


TASKS = {
    task.name: task
    for task in (
        Task("dncnn", "dncnn", 25.0, 1, 32, 16, 1000, 200, 2000, 1e-3, 1e-3),
        Task("srresnet", "srresnet", None, 4, 12, 8, 1000, 200, 2000, 1e-3, 1e-3),
        Task("edsr", "edsr", None, 4, 12, 8, 1000, 200, 2000, 5e-4, 5e-4),
        Task("dncnn-twice", "dncnn", 25.0, 1, 32, 16, 2000, 400, 4000, 1e-3, 1e-3),
        Task("srresnet-twice", "srresnet", None, 4, 12, 8, 2000, 400, 4000, 1e-3, 1e-3),
        Task("srresnet-24px", "srresnet", None, 4, 24, 8, 1000, 200, 2000, 1e-3, 1e-3),
        Task("edsr-twice", "edsr", None, 4, 12, 8, 2000, 400, 4000, 5e-4, 5e-4),
        Task("srresnet-recoloured", "srresnet", None, 4, 12, 8, 2000, 400, 4000, 1e-3, 1e-3, recoloured=True),
        Task("srresnet-recoloured-twice", "srresnet", None, 4, 12, 8, 4000, 800, 8000, 1e-3, 1e-3, recoloured=True),
    )
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {"dncnn": DnCNN, "srresnet": SRResNet, "edsr": EDSR}


# ---- data -----------------------------------------------------------------------------------------------------


def training_pairs(task: Task, data: Path) -> list[Pair]:
    """Return aligned bytes of what the network gets (before noise) and what it should make."""
    grey = pairs_of_scales(dict(_train400(data, task.channels)[:-HELD_OUT]), task.scale)
    if task.scale == 1:
        return list(grey.values())
    return in_equal_parts(pairs_of_scales(shipped(TRAIN_COLOUR, task.channels), task.scale), grey)


def test_sets(task: Task, data: Path) -> TestSets:
    """Return the held-out images and the standard test sets of the task, noise already added (one seed per image)."""
    if task.sigma is None:
        sets = {name: zipped(data / f"{name}.zip", 3) for name in ("Set5", "Set14")}
        return {
            name: _reduced(images, task.scale) for name, images in {"held out": shipped(TEST_COLOUR, 3), **sets}.items()
        }
    held_out = dict(_train400(data, 1)[-HELD_OUT:])
    sets = {name: zipped(data / f"{name}.zip", 1) for name in ("Set12", "BSD68")}
    return {name: _noisy(images, task.sigma) for name, images in {"held out": held_out, **sets}.items()}


def _train400(data: Path, channels: int) -> list[tuple[str, Tensor]]:
    return list(zipped(data / "Train400.zip", channels).items())


def _noisy(images: dict[str, Tensor], sigma: float) -> list[Pair]:
    clean = [image[None] / 255 for image in images.values()]
    return [(with_noise(image, sigma, seed), image) for seed, image in enumerate(clean)]


def _reduced(images: dict[str, Tensor], scale: int) -> list[Pair]:
    return [(small[None] / 255, large[None] / 255) for small, large in pairs_of_scales(images, scale).values()]


# ---- training -------------------------------------------------------------------------------------------------

Batch = tuple[float, Tensor, Tensor]  # learning rate, what goes in, what should come out


def course(task: Task, pairs: Sequence[Pair], steps: int, peak_lr: float, seed: int) -> Iterator[Batch]:
    """Yield the learning rate and the patches of each of ``steps`` steps; the same ones for the same seed."""
    drawn = batches(pairs, task.patch, task.batch_size, steps, seed)
    for step, (small, large) in enumerate(recoloured(drawn, seed) if task.recoloured else drawn):
        given = small if task.sigma is None else with_noise(small, task.sigma, seed * 10**6 + step)
        yield peak_lr * rate(step / steps), given.contiguous(memory_format=layout(CPU)), large


def train_step(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Take one optimiser step, in bfloat16 where that is fast, and return the loss."""
    lr, given, wanted = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    with autocast(CPU):
        made = model(given)
    loss = task.loss(made.float(), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(task: Task, model: nn.Module, feed: Iterator[Batch]) -> None:
    """Train ``model`` in place on what is left of ``feed``."""
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    for batch in feed:
        train_step(task, model, optimizer, batch)


def dense_network(task: Task, pairs: Sequence[Pair], cache: Path, seed: int) -> nn.Module:
    """Return the dense network of a seed, trained by an earlier call or by this one."""
    numbers = (task.patch, task.batch_size, task.dense_steps, task.dense_lr, seed, precision(CPU))
    path = cache / f"{task.network}-{'-'.join(map(str, numbers))}{'-recoloured' * task.recoloured}.safetensors"
    torch.manual_seed(seed)
    model = NETWORKS[task.network]().to(memory_format=layout(CPU))
    if path.exists():
        model.load_state_dict(load_file(path), strict=True)
        return model
    train(task, model, course(task, pairs, task.dense_steps, task.dense_lr, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return model


# ---- rows -----------------------------------------------------------------------------------------------------

Maker = Callable[[Task, nn.Module, Iterator[Batch], int], nn.Module]


def searched(rule: Callable[[], Sparsifier]) -> Maker:
    """Return a maker that searches while training."""

    def make(task: Task, dense: nn.Module, feed: Iterator[Batch], seed: int) -> nn.Module:
        hyper = hyperize(dense, task.example)
        optimizer = torch.optim.Adam(hyper.parameter_groups(lr=task.lr))
        search = Search(hyper, optimizer, Budget(macs=task.macs), steps=task.search_steps, sparsifier=rule())
        hyper.train()
        for batch in islice(feed, task.search_steps):
            train_step(task, hyper, optimizer, batch)
            search.step()
        return export_pruned(hyper)

    return make


def unpruned(task: Task, dense: nn.Module, feed: Iterator[Batch], seed: int) -> nn.Module:
    """Go on with the dense network."""
    return copy.deepcopy(dense)


def cut_at_once(rival: Callable[[nn.Module, Tensor, float, int], nn.Module]) -> Maker:
    """Return a maker that prunes before any training."""

    def make(task: Task, dense: nn.Module, feed: Iterator[Batch], seed: int) -> nn.Module:
        return rival(dense, task.example, task.macs, seed)

    return make


BY_HAND = "Torch-Pruning, layers before PixelShuffle kept by hand"
ROWS: dict[str, Maker] = {
    "dense, trained as long": unpruned,
    "hyperprune, search": searched(Fisher),
    "hyperprune, search without balance": searched(partial(Fisher, balance=0.0)),
    "uniform widths, random channels": cut_at_once(uniform_widths),
    "Torch-Pruning, group magnitude": cut_at_once(torch_pruning),
    "random channels": cut_at_once(random_channels),
    BY_HAND: cut_at_once(torch_pruning_by_hand),
}


def rows_of(task: Task) -> list[str]:
    """Return the rows that make sense for a task: without PixelShuffle nothing is to be kept by hand."""
    return [name for name in ROWS if name != BY_HAND or task.scale > 1]


def run_row(
    task: Task, name: str, seed: int, dense: nn.Module, pairs: Sequence[Pair], sets: TestSets
) -> dict[str, Any]:
    """Make a network, train it for what is left of its course, look at the test sets; plain numbers."""
    started = time.process_time()
    feed = course(task, pairs, task.steps, task.lr, seed + 1)
    model = ROWS[name](task, dense, feed, seed).to(memory_format=layout(CPU))
    train(task, model, feed)
    full, slim = (count_with_fvcore(m.eval(), task.example) for m in (dense, model))
    return {
        "macs_fraction": slim.macs / full.macs,
        "params_fraction": slim.params / full.params,
        "quality": {title: asdict(evaluate(task, model, pairs)) for title, pairs in sets.items()},
        "widths": {path: m.out_channels for path, m in model.named_modules() if isinstance(m, nn.Conv2d)},
        "seconds": round(time.process_time() - started),
    }


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, pairs: Sequence[Pair]) -> Quality:
    """Return the mean quality over whole images, in float32."""
    model.eval()
    border = task.scale if task.scale > 1 else 0
    made = ((model(given.contiguous(memory_format=layout(CPU))), wanted) for given, wanted in pairs)
    return Quality.mean([quality(image[0], wanted[0], border) for image, wanted in made])


def before_any_network(task: Task, sets: TestSets) -> dict[str, Any]:
    """Return the quality of what the network gets: the noisy images, or bicubic enlargements."""
    border = task.scale if task.scale > 1 else 0
    found = {}
    for title, pairs in sets.items():
        plain = [(resized(given, task.scale) if task.scale > 1 else given, wanted) for given, wanted in pairs]
        found[title] = asdict(Quality.mean([quality(image[0], wanted[0], border) for image, wanted in plain]))
    return found


# ---- results --------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """Return what earlier runs found."""
    if path.exists():
        return json.loads(path.read_text())
    return {"machine": {}, "tasks": {}, "rows": []}


def keep(results: dict[str, Any], path: Path) -> None:
    """Write the results, whole or not at all."""
    results["machine"] = {
        "platform": f"{platform.system()} {platform.machine()}, CPU, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


def require_same(results: dict[str, Any], task: Task) -> None:
    """Make sure that rows already there are of the same task.

    Raises:
        SystemExit: they are not.
    """
    known = results["tasks"].setdefault(task.name, {"settings": asdict(task), "precision": precision(CPU)})
    if (Task(**known["settings"]), known["precision"]) != (task, precision(CPU)):
        raise SystemExit(
            f"the results hold rows of {task.name} under other settings, or in other numbers than {precision(CPU)}; "
            "name another file with --results"
        )


def run_task(task: Task, options: argparse.Namespace, results: dict[str, Any], console: Console) -> None:
    """Run every row of a task that is not finished yet."""
    require_same(results, task)
    pairs, sets = training_pairs(task, options.data), test_sets(task, options.data)
    results["tasks"][task.name]["before"] = before_any_network(task, sets)
    done = {(row["task"], row["row"], row["seed"]) for row in results["rows"]}
    for seed in options.seeds:
        rows = [name for name in rows_of(task) if name in options.rows]
        missing = [name for name in rows if (task.name, name, seed) not in done]
        if not missing:
            continue
        started = time.perf_counter()
        dense = dense_network(task, pairs, options.cache, seed)
        console.print(f"{task.name}, seed {seed}: dense network ready ({time.perf_counter() - started:.0f} s)")
        for name in missing:
            row = {"task": task.name, "row": name, "seed": seed, **attempt(task, name, seed, dense, pairs, sets)}
            results["rows"].append(row)
            keep(results, options.results)
            console.print(f"  {name}: {cells(row)}", highlight=False, soft_wrap=True)


def attempt(
    task: Task, name: str, seed: int, dense: nn.Module, pairs: Sequence[Pair], sets: TestSets
) -> dict[str, Any]:
    """Run a row; one that fails says why in place of numbers."""
    try:
        return run_row(task, name, seed, dense, pairs, sets)
    except HyperpruneError as error:
        return {"failed": str(error)}


def cells(row: dict[str, Any]) -> list[str]:
    """Return one run in words."""
    if "failed" in row:
        return [row["failed"]]
    found = [f"{title} {q['psnr']:.2f} dB, {q['ssim']:.4f}" for title, q in row["quality"].items()]
    return [f"MACs {row['macs_fraction']:.3f}", f"params {row['params_fraction']:.3f}", *found, f"{row['seconds']} s"]


# ---- the page -------------------------------------------------------------------------------------------------


def page(results: dict[str, Any]) -> str:
    """Return the tables of all tasks as Markdown, between marks."""
    parts = [MARKS[0]]
    for name in results["tasks"]:
        parts += ["", *section(results, name)]
    return "\n".join([*parts, "", MARKS[1]])


def section(results: dict[str, Any], name: str) -> list[str]:
    """Return title, settings and table of one task."""
    found = results["tasks"][name]
    task, before = Task(**found["settings"]), found["before"]
    rows = [row for row in results["rows"] if row["task"] == name]
    seeds = sorted({row["seed"] for row in rows})
    head = ["row", "MACs", "params", *(f"{title} PSNR / SSIM" for title in before)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], [_start(task), "", "", *map(_quality, before.values())]]
    lines += [_summary([row for row in rows if row["row"] == title], list(before)) for title in rows_of(TASKS[name])]
    return [
        f"## {_title(task)}",
        "",
        f"Dense: {task.dense_steps:,} steps of Adam, peak {task.dense_lr:g}. Then every row: {task.steps} steps, peak "
        f"{task.lr:g} (a search takes {task.search_steps} of them). Warm-up and cosine, batches of {task.batch_size} "
        f"patches of {task.patch} x {task.patch}, {found['precision']}. Seeds: {', '.join(map(str, seeds))}.",
        "",
        *(f"| {' | '.join(line)} |" for line in lines if line),
    ]


def _title(task: Task) -> str:
    what = f"x{task.scale}" if task.sigma is None else f"noise of sigma {task.sigma:g}"
    return f"{task.name}: {what}{', colours in an order drawn by chance' * task.recoloured}"


def _start(task: Task) -> str:
    return "bicubic" if task.sigma is None else "noisy image"


def _quality(found: dict[str, float]) -> str:
    return f"{found['psnr']:.2f} / {found['ssim']:.4f}"


def _summary(runs: list[dict[str, Any]], titles: Sequence[str]) -> list[str]:
    """Return one line of the table: the mean over seeds."""
    if not runs:
        return []
    if "failed" in runs[0]:
        return [runs[0]["row"], *[""] * (1 + len(titles)), f"fails: {runs[0]['failed'][:160]}"]
    shares = [f"{mean(run[key] for run in runs):.3f}" for key in ("macs_fraction", "params_fraction")]
    return [runs[0]["row"], *shares, *(_over_seeds([run["quality"][title] for run in runs]) for title in titles)]


def _over_seeds(found: list[dict[str, float]]) -> str:
    text = _quality({key: mean(q[key] for q in found) for key in ("psnr", "ssim")})
    return text if len(found) == 1 else f"{text} (± {stdev(q['psnr'] for q in found):.2f} dB)"


def write_page(results: dict[str, Any], path: Path) -> None:
    """Put the tables between their marks in the page."""
    before, begin, rest = path.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2] if begin else "\n"
    write_whole(path, (before.rstrip() + "\n\n" + page(results) + after).encode())


# ---- command line ---------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the zips")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "restoration", help="dense networks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="only write the tables into the page")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or write its page."""
    options, console = parse(arguments), Console()
    results = read(options.results)
    if options.table:
        write_page(results, options.page)
        console.print(f"written: {options.page}", highlight=False)
        return
    if not (options.data / "Set5.zip").exists():
        console.print(f"skipped: {options.data} holds no test sets. Name their folder with --data.", highlight=False)
        return
    torch.set_num_threads(options.threads)
    for name in options.tasks:
        run_task(TASKS[name], options, results, console)


if __name__ == "__main__":
    main()
