"""Mutation testing: change the code in one place, run the tests that mirror it, and see whether any of them fails.

The changes are those of mutmut (numbers, strings, operators, comparisons, arguments, assigned values), made in every
function that has no decorator, and in the bodies of modules and classes. No file is touched: each mutant is tested in a
process forked from one that has imported torch but nothing of the package, and there an import hook hands out the
changed source. Verdicts are noted every few mutants, so a run can be broken off and started again; those of a package
are thrown away when its sources or its tests change.

    python -m benchmarks.mutation                                    # every mutant that has no verdict yet
    python -m benchmarks.mutation --sample 120 --seed 1              # so many of each package, drawn by the seed
    python -m benchmarks.mutation --survivors                        # what survived: lines as they were and became
    python -m benchmarks.mutation --table
"""

from __future__ import annotations

import argparse
import difflib
import gc
import hashlib
import importlib.util
import json
import os
import platform
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import rich.table  # noqa: F401  the package imports it
import torch
from mutmut.mutation.file_mutation import Mutation, create_mutations

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "mutation.json"
TESTS = {
    "budget": ("tests/budget", "tests/test_budget.py", "hyperprune/budget"),
    "coupling": ("tests/coupling", "hyperprune/coupling"),
    "slim": ("tests/slim", "hyperprune/slim"),
}
SHARED = ("tests/models.py", "tests/conftest.py")
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--tb=no")
KILLED, SURVIVED, TIMEOUT, UNKNOWN = "kst."
PATIENCE = 5  # times the processor time that the tests take when nothing is changed
NOTED_EVERY = 10

Record = dict[str, Any]


def main() -> None:
    """Test what has no verdict yet, or show what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--packages", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--sample", type=int, help="how many mutants of each package; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.survivors:
        print("\n".join(difference(*place) for package in options.packages for place in survivors(results[package])))
        return
    if not options.table:
        warm_up()
        for package in options.packages:
            results[package] = opened(results.get(package, {}), package)
            examine_(results, package, options)
    print(table(results))


def warm_up() -> None:
    """Let torch import what it imports at the first export only, and keep forks from copying all of it."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.set_num_threads(1)
    torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),), strict=False)
    gc.freeze()
    assert "hyperprune" not in sys.modules, "the package must be imported anew for every mutant"


def opened(record: Record, package: str) -> Record:
    """Return a package's record, without verdicts if anything has changed since."""
    now = {"fingerprint": fingerprint(package), "tool": f"mutmut {version('mutmut')}"}
    if all(record.get(key) == value for key, value in now.items()):
        return record
    modules = {module: UNKNOWN * len(mutations(module)[1]) for module in modules_of(package)}
    return {**now, "python": platform.python_version(), "torch": torch.__version__, "verdicts": modules}


def examine_(results: Record, package: str, options: argparse.Namespace) -> None:
    """Give every chosen mutant of a package a verdict and write it down."""
    verdicts = results[package]["verdicts"]
    chosen = [(module, at) for module, known in verdicts.items() for at in range(len(known))]
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    waiting = [(module, at) for module, at in chosen if verdicts[module][at] == UNKNOWN]
    limit = processor_seconds(package)
    for number, (module, at) in enumerate(waiting, start=1):
        found = verdict(package, module, mutant(module, at), limit)
        verdicts[module] = verdicts[module][:at] + found + verdicts[module][at + 1 :]
        if number % NOTED_EVERY == 0 or number == len(waiting):
            results[package] |= {"sample": options.sample, "seed": options.seed, "counts": counts(verdicts)}
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{package}: {number} of {len(waiting)}", flush=True)


def modules_of(package: str) -> list[str]:
    """Return a package's files; those that only name what it offers hold nothing to test."""
    return sorted(path.as_posix() for path in Path("hyperprune", package).glob("*.py") if path.name != "__init__.py")


def fingerprint(package: str) -> str:
    """Return a hash of everything that a verdict rests on: the package, its tests and what these share."""
    found = hashlib.sha256()
    for place in (*TESTS[package], *SHARED):
        for path in sorted([Path(place)] if place.endswith(".py") else Path(place).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def original(module: str) -> str:
    """Return the source of a module as it is."""
    return Path(module).read_text(encoding="utf-8")


@cache
def mutations(module: str) -> tuple[Any, list[Mutation]]:
    """Return a module's syntax tree and every change to it, always in the same order."""
    return create_mutations(module, original(module))[:2]


def mutant(module: str, at: int) -> str:
    """Return the source of a module after one change."""
    tree, changes = mutations(module)
    return tree.deep_replace(changes[at].original_node, changes[at].mutated_node).code


def processor_seconds(package: str) -> int:
    """Return the processor time a mutant may take.

    Raises:
        SystemExit: the tests fail although nothing is changed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    module = modules_of(package)[0]
    if verdict(package, module, original(module), limit=600) != SURVIVED:
        raise SystemExit(f"the tests fail without any change: python -m pytest -x {' '.join(TESTS[package])}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return PATIENCE * (1 + round(after.ru_utime - before.ru_utime))


def verdict(package: str, module: str, source: str, limit: int) -> str:
    """Test one mutant in a process of its own."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.meta_path.insert(0, Changed(module, source))
        os._exit(pytest.main([*OPTIONS, *TESTS[package]]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: SURVIVED, -signal.SIGXCPU: TIMEOUT}.get(code, KILLED)


class Changed(MetaPathFinder, SourceFileLoader):
    """Finds one module, and loads a changed source in its place."""

    def __init__(self, module: str, source: str) -> None:
        super().__init__(module.removesuffix(".py").replace("/", "."), str(ROOT / module))
        self.source = source

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Return where the module is, for this name only."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source, and leave no trace of it in any cache."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


def counts(verdicts: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count a package's verdicts by module."""
    names = {"killed": KILLED, "survived": SURVIVED, "timeout": TIMEOUT, "not tested": UNKNOWN}
    return {module: {name: known.count(mark) for name, mark in names.items()} for module, known in verdicts.items()}


def survivors(record: Record) -> list[tuple[str, int]]:
    """Return the mutants of a package that no test noticed."""
    return [(module, at) for module, known in record["verdicts"].items() for at, v in enumerate(known) if v == SURVIVED]


def difference(module: str, at: int) -> str:
    """Return what a mutant changes."""
    before, after = (text.splitlines() for text in (original(module), mutant(module, at)))
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join([f"{module} #{at}", *lines])


def table(results: Record) -> str:
    """Return the counts of each module and of all; a mutant that ran out of time was noticed."""
    lines = [
        "| module | mutants | tested | killed | out of time | survived | noticed |",
        "|---|---|---|---|---|---|---|",
    ]
    whole: Counter[str] = Counter()
    for record in results.values():
        for module, found in record["counts"].items():
            lines.append(row(f"`{module}`", found))
            whole.update(found)
    return "\n".join([*lines, row("all", whole)])


def row(name: str, found: dict[str, int]) -> str:
    """Return one line of the table."""
    noticed = found["killed"] + found["timeout"]
    tested = noticed + found["survived"]
    share = f"{100 * noticed / tested:.1f} %" if tested else "-"
    numbers = (tested + found["not tested"], tested, found["killed"], found["timeout"], found["survived"])
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} | {share} |"


if __name__ == "__main__":
    main()
