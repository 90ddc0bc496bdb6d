"""The story of the demo: train, hyperize, search, export, fine-tune, compare."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune.budget import Budget
from hyperprune.cost import count_with_fvcore
from hyperprune.demo.digits import Digits, batches, load_digits
from hyperprune.demo.resnet import resnet20
from hyperprune.demo.train import accuracy, phase, train
from hyperprune.errors import HyperpruneError
from hyperprune.export import export_with_proof
from hyperprune.files import write_whole
from hyperprune.hyper import HyperModel, hyperize
from hyperprune.plots import SearchPoint, plot_pruning, save_figure
from hyperprune.reporting import ModelReport, comparison_table, measure_latency, report_on
from hyperprune.search import Search

STEPS_PER_EPOCH = 20  # 1297 training images in batches of 64
TORCH_PRUNING_STEPS = 200  # how finely its channel ratio approaches the MACs
LATENCY_ROUNDS = {1: 100, 64: 20}  # timed forward passes per batch size


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does and where it writes; steps are optimiser steps.

    Raises:
        HyperpruneError: when a number of steps is below one, the extra ``demo`` is not installed
            or the budget is outside (0, 1].
    """

    out: Path = Path("hyperprune-demo")
    dense_steps: int = 12 * STEPS_PER_EPOCH
    search_steps: int = 8 * STEPS_PER_EPOCH
    finetune_steps: int = 10 * STEPS_PER_EPOCH
    macs: float = 0.5
    seed: int = 0
    compare: bool = False
    batch_size: int = 64
    peak_lr: float = 0.1
    search_lr: float = 0.02
    finetune_lr: float = 0.05

    def __post_init__(self) -> None:
        for name in ("dense_steps", "search_steps", "finetune_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HyperpruneError(
                    f"the demo's {name} is {getattr(self, name)}; it must be at least 1 "
                    "(the command line counts in epochs)"
                )
        Budget(macs=float(self.macs))

    @property
    def steps_after_dense(self) -> int:
        """Optimiser steps of search and fine-tuning together."""
        return self.search_steps + self.finetune_steps


@dataclass(frozen=True)
class DemoResult:
    """The reports (dense first), the search's history and the files written."""

    reports: tuple[ModelReport, ...]
    history: tuple[SearchPoint, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Searched:
    """What the search hands on: the slim model, its proof error, its accuracy and how it came about."""

    slim: nn.Module
    proof_error: float
    accuracy: float
    history: tuple[SearchPoint, ...]


@dataclass(frozen=True)
class Stage:
    """The things every act of the demo needs."""

    settings: DemoSettings
    digits: Digits
    console: Console

    @property
    def example(self) -> Tensor:
        """One test image, ``(1, 1, 32, 32)``."""
        return self.digits.test_images[:1]

    def train(self, title: str, model: nn.Module, steps: int, peak_lr: float, seed: int) -> None:
        """Train ``model`` in place behind a progress bar."""
        with phase(self.console, title, steps) as bar:
            train(model, self.digits, steps, peak_lr, batch_size=self.settings.batch_size, seed=seed, bar=bar)

    def test_accuracy(self, model: nn.Module) -> float:
        """Return the share of the 500 test images that ``model`` classifies correctly."""
        return accuracy(model, self.digits.test_images, self.digits.test_labels)


def run_demo(settings: DemoSettings, console: Console | None = None) -> DemoResult:
    """Run the whole demo; write pictures, weights and numbers below ``settings.out`` only.

    Raises:
        HyperpruneError: when a package of the extra ``demo`` is missing, or the core refuses.
    """
    _require_packages()
    console = console or Console()
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    stage = Stage(settings, load_digits(), console)
    started = time.perf_counter()

    dense = resnet20(in_channels=1)
    stage.train("dense network", dense, settings.dense_steps, settings.peak_lr, settings.seed)
    trained = copy.deepcopy(dense)
    searched = search_slim(stage, dense)
    train_equally_long(stage, dense, searched.slim)
    models, when_cut = {"dense": dense, "slim": searched.slim}, {"slim": searched.accuracy}
    if settings.compare:
        models["Torch-Pruning"], when_cut["Torch-Pruning"] = rival_of(stage, trained)

    weights = save_all_weights(models, settings.out)
    reports = report_all(stage, models, weights, when_cut, searched.proof_error)
    picture = draw(stage, models, reports, searched.history, stage.test_accuracy(trained))
    numbers = write_numbers(settings, reports)
    files = (picture, numbers, *weights.values())
    tell(stage, reports, files, time.perf_counter() - started)
    return DemoResult(reports, searched.history, files)


def search_slim(stage: Stage, dense: nn.Module) -> Searched:
    """Hyperize ``dense``, search down to the budget while training, and export the slim network."""
    hyper = hyperize(dense, stage.example)
    history = search_to_budget(stage, hyper)
    slim, proof = export_with_proof(hyper)
    accuracy_now = stage.test_accuracy(slim)
    stage.console.print(
        f"exported: the slim network equals the searched one to {proof.relative_error:.1e} (tolerance "
        f"{proof.tolerance:.0e}), test accuracy {accuracy_now:.1%} before fine-tuning",
        highlight=False,
    )
    return Searched(slim, proof.relative_error, accuracy_now, history)


def search_to_budget(stage: Stage, hyper: HyperModel) -> tuple[SearchPoint, ...]:
    """Train ``hyper`` in the user's own loop, with the one line more."""
    settings, history = stage.settings, [SearchPoint(0, 1.0, stage.test_accuracy(hyper))]
    groups = hyper.parameter_groups(lr=settings.search_lr, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=float(settings.macs)), steps=settings.search_steps)
    hyper.train()
    with phase(stage.console, "search", settings.search_steps) as bar:
        for images, labels in batches(stage.digits, settings.search_steps, settings.batch_size, settings.seed + 1):
            logits = hyper(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            search.step()
            history.append(look_at(stage, hyper, search))
            bar.advance(logits, labels, loss, note=f"MACs {history[-1].macs_fraction:.0%}")
    return tuple(history)


def look_at(stage: Stage, hyper: HyperModel, search: Search) -> SearchPoint:
    """Return the search's state; the test accuracy only twice per epoch and at the end."""
    progress = search.progress()
    due = progress.step % (STEPS_PER_EPOCH // 2) == 0 or search.done
    return SearchPoint(progress.step, progress.macs_fraction, stage.test_accuracy(hyper) if due else None)


def train_equally_long(stage: Stage, dense: nn.Module, slim: nn.Module) -> None:
    """Fine-tune ``slim`` and train ``dense``, which skipped the search, for the steps of both; in place."""
    settings = stage.settings
    stage.train("slim, fine-tuning", slim, settings.finetune_steps, settings.finetune_lr, settings.seed + 2)
    stage.train("dense, as many steps", dense, settings.steps_after_dense, settings.finetune_lr, settings.seed + 2)


def rival_of(stage: Stage, trained: nn.Module) -> tuple[nn.Module, float]:
    """Prune a copy of ``trained`` with Torch-Pruning; fine-tune it as long as our search and fine-tuning.

    Returns:
        the model and its test accuracy before fine-tuning.
    """
    settings = stage.settings
    rival = prune_with_torch_pruning(trained, stage.example, settings.macs)
    accuracy_now = stage.test_accuracy(rival)
    stage.train(
        "Torch-Pruning, as many steps",
        rival,
        settings.steps_after_dense,
        settings.finetune_lr,
        settings.seed + 2,
    )
    return rival, accuracy_now


def prune_with_torch_pruning(model: nn.Module, example: Tensor, fraction: float) -> nn.Module:
    """Return a copy of ``model`` cut by Torch-Pruning's group magnitude to ``fraction`` of its MACs.

    Its pruner works to a ratio of channels, so channels go in small steps until the MACs are met.
    """
    import torch_pruning as tp

    slim = copy.deepcopy(model).eval()
    target = math.floor(fraction * count_with_fvcore(model, example).macs)
    pruner = tp.pruner.BasePruner(
        slim,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=TORCH_PRUNING_STEPS,
        ignored_layers=[_last_linear(slim)],
    )
    while count_with_fvcore(slim, example).macs > target and pruner.current_step < TORCH_PRUNING_STEPS:
        pruner.step()
    for parameter in slim.parameters():
        parameter.grad = None
    return slim


def _last_linear(model: nn.Module) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def save_all_weights(models: Mapping[str, nn.Module], folder: Path) -> dict[str, Path]:
    """Write the weights of every model as safetensors and return the files by name."""
    paths = {name: folder / f"{name.lower()}.safetensors" for name in models}
    for name, path in paths.items():
        save_weights(models[name], path)
    return paths


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of ``model`` as safetensors, whole or not at all."""
    from safetensors.torch import save

    write_whole(path, save({name: value.contiguous() for name, value in model.state_dict().items()}))


def report_all(
    stage: Stage,
    models: Mapping[str, nn.Module],
    weights: Mapping[str, Path],
    when_cut: Mapping[str, float],
    proof_error: float,
) -> tuple[ModelReport, ...]:
    """Measure every model: accuracy after the last step, cost, latency and size on disk."""
    stage.console.print("measuring latency ...", style="dim")
    latency = measure_all_latencies(stage, models)
    return tuple(
        report_on(
            name,
            model,
            stage.example,
            accuracy=stage.test_accuracy(model),
            accuracy_when_cut=when_cut.get(name),
            latency_ms={batch: by_name[name] for batch, by_name in latency.items()},
            file_bytes=weights[name].stat().st_size,
            proof_error=proof_error if name == "slim" else None,
        )
        for name, model in models.items()
    )


def measure_all_latencies(stage: Stage, models: Mapping[str, nn.Module]) -> dict[int, dict[str, float]]:
    """Return milliseconds by batch size and model, the models taking turns."""
    images = stage.digits.test_images
    return {batch: measure_latency(models, images[:batch], rounds) for batch, rounds in LATENCY_ROUNDS.items()}


def draw(
    stage: Stage,
    models: Mapping[str, nn.Module],
    reports: tuple[ModelReport, ...],
    history: tuple[SearchPoint, ...],
    dense_accuracy: float,
) -> Path:
    """Draw the widths and the search; return the file."""
    figure = plot_pruning(
        models["dense"],
        models["slim"],
        history,
        target=stage.settings.macs,
        dense_accuracy=dense_accuracy,
        title=_headline(reports),
    )
    return save_figure(figure, stage.settings.out / "pruning.png")


def write_numbers(settings: DemoSettings, reports: tuple[ModelReport, ...]) -> Path:
    """Write the settings and every report as JSON; return the file."""
    path = settings.out / "report.json"
    content = {
        "settings": asdict(settings) | {"out": str(settings.out)},
        "models": [asdict(report) for report in reports],
    }
    write_whole(path, json.dumps(content, indent=2).encode())
    return path


def _headline(reports: tuple[ModelReport, ...]) -> str:
    dense, slim = reports[0], reports[1]
    return (
        f"ResNet-20 on handwritten digits: {slim.macs / dense.macs:.0%} of the MACs, "
        f"test accuracy {_percent(dense)} dense, {_percent(slim)} slim"
    )


def _percent(report: ModelReport) -> str:
    return "unknown" if report.accuracy is None else f"{report.accuracy:.1%}"


def tell(stage: Stage, reports: tuple[ModelReport, ...], files: tuple[Path, ...], seconds: float) -> None:
    """Print the table, the files, what was done and what it does not show."""
    settings, console = stage.settings, stage.console
    console.print()
    console.print(comparison_table(reports, title="ResNet-20 on scikit-learn's digits, 32 x 32"))
    console.print(
        f"\nThe slim network was searched for {settings.search_steps} steps and fine-tuned for "
        f"{settings.finetune_steps}; the others were trained for {settings.steps_after_dense} from the same "
        f"start. Accuracy is that after the last step on {len(stage.digits.test_labels)} test images; MACs "
        "and parameters are fvcore's count.\n"
        "Mind: one seed and a small, easy data set, where 0.2 points are one image; the search trains while "
        "it prunes, so accuracy before fine-tuning includes that training; latency is the median on this "
        "machine, which may have been busy with other things.",
        highlight=False,
    )
    console.print(f"\nWritten in {seconds:.0f} s:", highlight=False)
    for path in files:
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _require_packages() -> None:
    needed = {"sklearn": "scikit-learn", "safetensors": "safetensors", "matplotlib": "matplotlib"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise HyperpruneError(
            f"the demo needs {', '.join(missing)}, not installed here: pip install 'hyperprune[demo]'"
        )
