"""Run the benchmark of searches, or write its page.

Rows that are finished are not run again; several processes may share the file of results.

    python -m benchmarks.search
    python -m benchmarks.search --networks ResNet-56 --targets 0.5 --methods dense fisher --seeds 0
    python -m benchmarks.search --report                # write docs/benchmarks.md and its picture
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.cifar import ARCHIVE, Cifar, load_cifar
from benchmarks.search.methods import METHODS
from benchmarks.search.report import write_report
from benchmarks.search.results import Results
from benchmarks.search.rows import Key, keys, needs_choice, run_row
from benchmarks.search.settings import NETWORKS, PRESETS, SEEDS, TARGETS
from benchmarks.search.training import Run, accuracy_of, dense_network
from hyperprune import HyperpruneError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "search.json"
PAGE = ROOT / "docs" / "benchmarks.md"


class Session:
    """Runs rows that are not finished yet, one after the other; keeps the dense networks at hand."""

    def __init__(self, cifar: Cifar, cache: Path, results: Results, console: Console) -> None:
        self._cifar, self._cache, self._results, self._console = cifar, cache, results, console
        self._dense: dict[tuple[str, int], nn.Module] = {}

    def run(self, wanted: Sequence[Key]) -> None:
        """Run every row that the file does not hold."""
        for at, key in enumerate(wanted, start=1):
            self._results = Results.read(self._results.path)
            if key in self._results.rows:
                continue
            variant = self._results.chosen_variant(key) if needs_choice(key) else None
            if needs_choice(key) and variant is None:
                self._say(f"[{at}/{len(wanted)}] {key}: waits for the first seed's row, which chooses the variant")
                continue
            row = self._attempt(key, variant)
            self._results.add(row)
            self._say(f"[{at}/{len(wanted)}] {key}: {in_words(row)}")

    def _attempt(self, key: Key, variant: str | None) -> dict[str, Any]:
        """Run a row; one that fails says why in place of numbers."""
        course = PRESETS[key.preset][key.network]
        run = Run(key.network, key.target, key.seed, course, self._dense_of(key), self._cifar)
        try:
            return run_row(run, key, variant)
        except HyperpruneError as error:
            return {**vars(key), "failed": str(error)}

    def _dense_of(self, key: Key) -> nn.Module:
        name = (key.network, key.seed)
        if name not in self._dense:
            model = dense_network(key.network, PRESETS[key.preset][key.network], key.seed, self._cifar, self._cache)
            share = accuracy_of(model, self._cifar, self._cifar.held_out)
            self._say(f"{key.network}, seed {key.seed}: dense network, {share:.1%} of the held-out images")
            self._dense[name] = model
        return self._dense[name]

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def in_words(row: dict[str, Any]) -> str:
    """Return one row on one line."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    variant = f", {row['variant']}" if row["variant"] else ""
    return (
        f"{row['macs_fraction']:.3f} of the MACs{variant}; held out {row['held_out_cut']:.1%} right after the cut, "
        f"{row['held_out_recalibrated']:.1%} recalibrated, {row['held_out']:.1%} at the end; {row['seconds']} s"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help=f"folder of {ARCHIVE}")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cifar10", help="decoded images, dense networks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--report", action="store_true", help="only write the page and its picture from the results")
    parser.add_argument("--preset", choices=PRESETS, help="lengths of the trainings (gpu where there is one, else cpu)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS), help="shares of the MACs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, cifar: Cifar, console: Console) -> None:
    """Run every row asked for that is not finished yet."""
    preset = options.preset or ("gpu" if torch.cuda.is_available() else "cpu")
    results = Results.read(options.results)
    results.require(preset)
    networks = [name for name in PRESETS[preset] if name in (options.networks or NETWORKS)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    session = Session(cifar.to(device), options.cache, results, console)
    session.run(keys(preset, networks, options.targets, options.methods, options.seeds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or write its page."""
    options, console = parse(arguments), Console()
    if options.report:
        for path in write_report(Results.read(options.results), options.page):
            console.print(f"written: {path}", highlight=False)
        return
    if not (options.data / ARCHIVE).exists():
        console.print(f"skipped: {options.data / ARCHIVE} is not there. Name its folder with --data.", highlight=False)
        return
    torch.set_num_threads(options.threads)
    run(options, load_cifar(options.data, options.cache), console)


if __name__ == "__main__":
    main()
