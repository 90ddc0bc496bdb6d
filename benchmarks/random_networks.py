"""Thousands of random networks: hyperized, pruned at random, exported, and compared with zeroing by hand.

Each seed is one network (see tests/networks). Results are noted every few networks, so a run can be broken off and
started again; it goes on with the seeds that have no result yet.

    python -m benchmarks.random_networks                 # the seeds below 5,000 that are not in the results yet
    python -m benchmarks.random_networks --seeds 0 100 --out /tmp/some.json
    python -m benchmarks.random_networks --again         # once more those that failed or were rejected
    python -m benchmarks.random_networks --show 1234     # print the network of a seed, and what comes of it
    python -m benchmarks.random_networks --shrink 1234   # the smallest network found that fails in the same way
    python -m benchmarks.random_networks --report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from hyperprune.files import write_whole
from tests.networks.check import Verdict, check
from tests.networks.description import Description
from tests.networks.draw import drawn, shrunk

RESULTS = Path(__file__).parent / "results" / "random_networks.json"
SEEDS = (0, 5000)
NOTED_EVERY = 20
TRIES = 300


@dataclass
class Results:
    """What came of each seed.

    Attributes:
        seeds: every seed that was run.
        steps: how often each kind of step occurred.
        units: how many units were offered in all networks together.
        bare: seeds of networks in which everything stays but the hidden units of their heads.
        seconds: time that all networks took together.
        worst: the largest relative error of an export, in float64.
        rejected: seed -> why hyperize refused.
        failed: seed -> the description that rebuilds the network, and what went wrong.
    """

    seeds: set[int] = field(default_factory=set)
    steps: Counter[str] = field(default_factory=Counter)
    units: int = 0
    bare: set[int] = field(default_factory=set)
    seconds: float = 0.0
    worst: float = 0.0
    rejected: dict[int, str] = field(default_factory=dict)
    failed: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read results, or start with none."""
        if not path.exists():
            return cls()
        data = json.loads(path.read_text())
        seeds = {seed for first, end in data["seeds"] for seed in range(first, end)}
        rejected = {int(seed): reason for seed, reason in data["rejected"].items()}
        failed = {int(seed): record for seed, record in data["failed"].items()}
        counts = (Counter(data["steps"]), data["units"], set(data["bare"]), data["seconds"], data["worst_error"])
        return cls(seeds, *counts, rejected, failed)

    def write(self, path: Path) -> None:
        """Write results whole, or not at all."""
        data = {
            "torch": torch.__version__,
            "networks": len(self.seeds),
            "seeds": _ranges(self.seeds),
            "exact": len(self.seeds) - len(self.rejected) - len(self.failed),
            "rejections": len(self.rejected),
            "failures": len(self.failed),
            "worst_error": self.worst,
            "units": self.units,
            "bare": sorted(self.bare),
            "seconds": round(self.seconds, 1),
            "steps": dict(self.steps.most_common()),
            "rejected": {str(seed): self.rejected[seed] for seed in sorted(self.rejected)},
            "failed": {str(seed): self.failed[seed] for seed in sorted(self.failed)},
        }
        write_whole(path, json.dumps(data, indent=1) + "\n")

    def run(self, seed: int) -> None:
        """Take the network of a seed through everything, and note what came of it."""
        start = time.perf_counter()
        self.rejected.pop(seed, None)
        self.failed.pop(seed, None)
        description = drawn(seed)
        try:
            self._note(seed, check(description))
        except Exception as error:  # whatever it is, it is a failure, and the other networks are still to be run
            self.failed[seed] = {"error": _spelled(error), "description": description.to_json()}
        if seed not in self.seeds:
            self.steps.update(step.kind for step in description.steps)
        self.seeds.add(seed)
        self.seconds += time.perf_counter() - start

    def _note(self, seed: int, verdict: Verdict) -> None:
        self.units += verdict.units
        self.worst = max(self.worst, verdict.error)
        if verdict.rejected:
            self.rejected[seed] = verdict.rejected
        elif not verdict.inside:
            self.bare.add(seed)


def outcome(description: Description) -> tuple[str, str]:
    """Return why a network was rejected, and how it failed; empty for a network that did neither."""
    try:
        return check(description).rejected, ""
    except Exception as error:
        return "", _spelled(error)


def _spelled(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def main() -> int:
    """Run, show or shrink."""
    options = _options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.show is not None:
        return _show(drawn(options.show))
    if options.shrink is not None:
        return _show(_smallest(options.shrink))
    results = Results.read(options.out)
    if not options.report:
        seeds = set(range(*options.seeds)) - results.seeds
        seeds |= results.rejected.keys() | results.failed.keys() if options.again else set()
        _run_all(sorted(seeds), results, options.out)
    print(summary(results))
    return 1 if results.failed else 0


def summary(results: Results) -> str:
    """Return the counts in a few lines."""
    count = max(len(results.seeds), 1)
    reasons = Counter(reason.split(":")[0] for reason in results.rejected.values())
    return "\n".join(
        [
            f"{len(results.seeds)} networks, seeds {_ranges(results.seeds)}, {results.seconds / count:.2f} s each",
            f"{len(results.failed)} failed: {sorted(results.failed)}",
            f"{len(results.rejected)} rejected ({100 * len(results.rejected) / count:.2f} %): {dict(reasons)}",
            f"in {len(results.bare)} nothing may go but the hidden units of the head",
            f"{results.units} units offered; largest relative error of an export {results.worst:.1e}",
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs=2, type=int, default=SEEDS, metavar=("FIRST", "END"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="run once more what failed or was rejected")
    parser.add_argument("--report", action="store_true", help="only print the counts")
    parser.add_argument("--show", type=int, metavar="SEED")
    parser.add_argument("--shrink", type=int, metavar="SEED")
    return parser.parse_args()


def _run_all(seeds: list[int], results: Results, path: Path) -> None:
    try:
        for number, seed in enumerate(track(seeds, "networks"), start=1):
            results.run(seed)
            if number % NOTED_EVERY == 0:
                results.write(path)
    except KeyboardInterrupt:
        print("stopped; start again to go on")
    results.write(path)


def _show(description: Description) -> int:
    reason, error = outcome(description)
    print(description, repr(description), reason or error or "exact", sep="\n\n")
    return 1 if error else 0


def _smallest(seed: int) -> Description:
    """Return the smallest network found that ends as that of the seed does, in a bounded number of tries."""
    wanted, tries = _kind(drawn(seed)), iter(range(TRIES))
    return shrunk(seed, lambda description: next(tries, None) is not None and _kind(description) == wanted)


def _kind(description: Description) -> tuple[str, ...]:
    """Return how a network ended, without numbers and names."""
    return tuple(" ".join(text.split()[:4]) for text in outcome(description))


def _ranges(seeds: set[int]) -> list[list[int]]:
    """Return runs of seeds as ``[first, end]``, the end not included."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and found[-1][1] == seed:
            found[-1][1] = seed + 1
        else:
            found.append([seed, seed + 1])
    return found


if __name__ == "__main__":
    sys.exit(main())
