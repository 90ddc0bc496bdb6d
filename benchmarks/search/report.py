"""The page: per network and target one table, the claims, the curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from benchmarks.search.curves import draw_curves
from benchmarks.search.methods import DEFAULT, DENSE, DISTILLED, METHODS, UNPRUNED, distilled
from benchmarks.search.results import Results, Row
from benchmarks.search.settings import MOMENTUM, NETWORKS, PRESETS, SHARE, WEIGHT_DECAY, Course
from hyperprune.files import write_whole

SHOWN = 4
MARKS = ("<!-- search: begin -->", "<!-- search: end -->")
CLAIMS = (("ResNet-56", 0.5, 0.2), ("ResNet-56", 0.3, 1.0))  # network, target, points that may be lost
CLAIMANTS = {DEFAULT: "the default", distilled(DEFAULT): "the default, distilled,"}
NOTES = {
    "cpu": "The reduced form, for a machine without a GPU: every training stops far from convergence, so a gap to the "
    "dense network is partly one of speed of learning, and differences of a point or less say little.",
    "cpu-bf16": "Longer, for a processor with instructions for bfloat16. It stops far from convergence all the same.",
    "cpu-bf16-long": "As `cpu-bf16`, from networks that were trained four times as long before they were pruned: what "
    "a method keeps of a trained network counts for more here than how fast what is left learns.",
    "cpu-bf16-longer": "As `cpu-bf16-long`, with four times the steps after it: half of those from scratch, as in "
    "the full form.",
    "gpu": "The full form.",
    "tiny": "For tests: nothing is learnt.",
}
HEAD = (
    "method",
    "MACs",
    "params",
    "cut, held out",
    "recalibrated, held out",
    "last step, held out",
    "last step, test",
    "lost, test",
    "s",
    "seeds",
)


@dataclass(frozen=True)
class Cell:
    """The rows of one preset, network and target; and those of that network with nothing removed."""

    preset: str
    network: str
    target: float
    rows: dict[str, list[Row]]  # by method
    unpruned: dict[str, list[Row]]  # by method

    @property
    def dense(self) -> dict[int, Row]:
        """The network of each seed that took as many steps with nothing removed."""
        return {row["seed"]: row for row in self.unpruned[DENSE]}

    def lost(self, method: str) -> list[float]:
        """Return by how many points of test accuracy each seed's row is below the dense network of its seed."""
        pairs = ((self.dense.get(row["seed"]), row) for row in finished(self.rows.get(method, [])))
        return [100 * (dense["test"] - row["test"]) for dense, row in pairs if dense is not None]


def finished(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that did not fail."""
    return [row for row in rows if "failed" not in row]


def cells_of(results: Results, preset: str, network: str) -> list[Cell]:
    """Return what was run of a network, the largest share of MACs first."""
    rows = [row for row in results.rows.values() if (row["preset"], row["network"]) == (preset, network)]
    by_method = {name: [row for row in rows if row["method"] == name] for name in METHODS}
    unpruned = {name: by_method.pop(name) for name in UNPRUNED}
    targets = sorted({row["target"] for several in by_method.values() for row in several}, reverse=True)
    return [Cell(preset, network, target, _at(target, by_method), unpruned) for target in targets]


def _at(target: float, by_method: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["target"] == target] for name, rows in by_method.items()}


def table(cell: Cell) -> list[str]:
    """Return a Markdown table: the network with nothing removed, then every method that was run."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    lines += [line(METHODS[name].title, rows, []) for name, rows in cell.unpruned.items() if rows]
    lines += [line(METHODS[name].title, rows, cell.lost(name)) for name, rows in cell.rows.items() if rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def under_equal_seeds(cell: Cell) -> list[str]:
    """Compare the methods under the seeds that all of them have, where they have different ones: seeds differ a lot."""
    found = {
        METHODS[name].title: {row["seed"]: row["test"] for row in finished(rows)} for name, rows in cell.rows.items()
    }
    found = {title: tests for title, tests in found.items() if tests}
    shared = set.intersection(*map(set, found.values())) if found else set()
    if not shared or all(set(tests) == shared for tests in found.values()):
        return []
    means = {title: 100 * mean(tests[seed] for seed in shared) for title, tests in found.items()}
    best_first = sorted(means, key=means.__getitem__, reverse=True)
    which = ", ".join(map(str, sorted(shared)))
    listed = "; ".join(f"{title} {means[title]:.1f}" for title in best_first)
    return ["", f"Rows of different seeds do not compare. Test accuracy under seed {which} alone: {listed}."]


def line(title: str, rows: Sequence[Row], lost: Sequence[float]) -> tuple[str, ...]:
    """Return the cells of one line: the mean over seeds and the spread."""
    good = finished(rows)
    if not good:
        return (title, *[""] * (len(HEAD) - 2), f"fails: {rows[0]['failed'][:120]}")
    variant = f" ({good[0]['variant']})" if good[0]["variant"] else ""
    accuracies = ("held_out_cut", "held_out_recalibrated", "held_out", "test")
    return (
        title + variant,
        *(f"{mean(row[name] for row in good):.3f}" for name in ("macs_fraction", "params_fraction")),
        *(_spread([100 * row[name] for row in good]) for name in accuracies),
        _spread(lost) if lost else "",
        f"{mean(row['seconds'] for row in good):.0f}",
        str(len(good)),
    )


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def _spread(values: Sequence[float]) -> str:
    middle = round(mean(values), 1) + 0.0  # no "-0.0"
    return f"{middle:.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def claims(results: Results, preset: str) -> list[str]:
    """Say for each claim what was found, met or not."""
    found = []
    for (network, target, allowed), (method, words) in product(CLAIMS, CLAIMANTS.items()):
        losses = [cell.lost(method) for cell in cells_of(results, preset, network) if cell.target == target]
        if losses and losses[0]:
            verdict = "met" if mean(losses[0]) <= allowed else "**not met**"
            found.append(
                f"* {network} at {target:.0%} of the MACs should lose at most {allowed:g} points: {words} loses "
                f"{_spread(losses[0])} ({_seeds(len(losses[0]))}): {verdict} at this length of training."
            )
    return found


def by_held_out(cells: Iterable[Cell]) -> list[str]:
    """Rank, per network and target, the methods by the held-out images, by which choices are made.

    Those that learn from the dense network too are ranked by themselves.
    """
    found = []
    for cell, taught in product(cells, (False, True)):
        alike = {name: rows for name, rows in cell.rows.items() if METHODS[name].distilled == taught}
        held_out = {name: [100 * row["held_out"] for row in finished(rows)] for name, rows in alike.items()}
        ranked = sorted((name for name in held_out if held_out[name]), key=lambda name: -mean(held_out[name]))
        if len(ranked) > 1:
            listed = "; ".join(
                f"{METHODS[name].title.removesuffix(DISTILLED)} {_spread(held_out[name])}" for name in ranked[:SHOWN]
            )
            found.append(f"* {cell.network}, {cell.target:.0%}{DISTILLED * taught}: {listed}")
    return found


def sections(results: Results, preset: str, picture: str) -> list[str]:
    """Return the part of the page about one preset."""
    cells = {network: cells_of(results, preset, network) for network in PRESETS[preset]}
    machines = sorted({row["machine"] for row in results.rows.values() if row["preset"] == preset and "machine" in row})
    lines = [
        "",
        f"## The preset `{preset}`",
        "",
        NOTES[preset],
        "",
        *_lengths(preset),
        "",
        f"Run on: {'; '.join(machines)}. Finished so far: {_finished(cells)}.",
        "",
    ]
    lines += [f"![Test accuracy over MACs, every method and network]({picture})"]
    if met := claims(results, preset):
        lines += ["", "### What is promised", "", *met]
    if ranked := by_held_out(cell for several in cells.values() for cell in several):
        lines += ["", "### The first on the held-out images", "", *ranked]
    for several in cells.values():
        for cell in several:
            lines += [
                "",
                f"### {cell.network}, {cell.target:.0%} of the MACs",
                "",
                *table(cell),
                *under_equal_seeds(cell),
            ]
    return lines


def _finished(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Say how many rows of pruned networks there are, by network and target."""
    counts = [
        f"{network} at {cell.target:.0%} ({sum(len(finished(rows)) for rows in cell.rows.values())} rows)"
        for network, several in cells.items()
        for cell in several
    ]
    return ", ".join(counts) or "nothing"


def _lengths(preset: str) -> list[str]:
    head = ["| network | steps from scratch | steps of every row | of them searching | batch | peak rates |"]
    courses = [f"| {name} | {_course(course)} |" for name, course in PRESETS[preset].items()]
    return [*head, "|---|---:|---:|---:|---:|---:|", *courses]


def _course(course: Course) -> str:
    return (
        f"{course.dense_steps:,} | {course.steps:,} | {round(SHARE * course.search_steps):,} | {course.batch_size} | "
        f"{course.dense_lr:g}, {course.lr:g}"
    )


HOW = f"""# Benchmarks

What chooses the channels best? Every method prunes the same networks on CIFAR-10 to the same shares of their MACs,
and every row trains equally long on the same batches.

* **Data**: CIFAR-10 as strongly compressed JPEG, so accuracies compare with each other, not with those of papers.
  45,000 training images; the last 5,000 are held out, and every choice is made on them. The 10,000 test images are
  looked at once per row, after its last step.
* **Networks**: {", ".join(list(NETWORKS)[:4])}; the ResNets with convolutions in their shortcuts (option B),
  MobileNetV2 with fewer strides. Each seed trains its own dense network; all its rows start from that.
* **Steps**: SGD, momentum {MOMENTUM:g}, weight decay {WEIGHT_DECAY:g}, warm-up and cosine to zero, mirrored and
  shifted images; in bfloat16 autocast where the processor has it, else in float32 ("Run on" says which). A search,
  or sparse training, takes its steps out of those that every row has; the rest go to the slim network. What is cut
  at once takes all of them afterwards. So does the dense network.
* **Torch-Pruning** works to a ratio of channels. That is bisected, and the last channels go group by group, until
  the MACs lie within 1 % below the target. Of global and uniform ratios (and two strengths of sparse training) the
  one that is better on the held-out images under the first seed counts; the tables name it. Our methods have no
  such choice per cell. What the default is was chosen once, on held-out images: that it balances groups by a half on
  ResNet-20's under the first seed and on EDSR's; that it takes a third of the steps on those of all four networks (0.3
  points more than two thirds, over 22 pairs of rows). It took two thirds before ("twice as long"), and sparse training
  does. Gradients for GroupTaylor and GroupHessian come on top of the steps.
* **Distilled** rows learn from the dense network they start from, too, in every step, those of a search included: with
  `Distillation` as it comes (temperature 4, weight 0.4). A step costs one more forward pass of the dense network then,
  so they compare with each other. "Lost" is for them, too, against the dense network that learnt from labels alone.
* **Columns**: MACs and parameters by fvcore's count, relative to dense; accuracies in percent, mean ± standard
  deviation over seeds, after the last step, not the best one. "Cut" is right after the cut (a search has trained
  until then), "recalibrated" the same after batch norm's statistics were taken anew. "Lost" is against the dense
  network of the same seed that took as many steps, for the seeds that have one. Seconds of one run, without
  evaluations: of the processor on a CPU, of the wall on a GPU.

Repeat with `make bench-search`, and write this page with `make bench-search-report`. Each row is written to
`benchmarks/results/search.json` when it is finished, and is not run again; `python -m benchmarks.search --help`
shows how to run a part. Processes may share the file."""


def page(results: Results, pictures: dict[str, str]) -> str:
    """Return the page as Markdown, between marks; ``pictures`` names one file per preset."""
    lines = [HOW] if pictures else [HOW, "", "No row is finished yet."]
    for preset in PRESETS:
        if preset in pictures:
            lines += sections(results, preset, pictures[preset])
    return "\n".join([MARKS[0], *lines, "", MARKS[1]])


def write_report(results: Results, path: Path) -> list[Path]:
    """Write the page and one picture per preset beside it; what stands around the page's marks stays."""
    presets = sorted({row["preset"] for row in results.rows.values()})
    pictures = {preset: f"benchmarks-{preset}.png" for preset in presets}
    written = [draw_curves(results, preset, path.with_name(name)) for preset, name in pictures.items()]
    text = path.read_text() if path.exists() else ""
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2] or "\n"
    return [*written, write_whole(path, before + page(results, pictures) + after)]
