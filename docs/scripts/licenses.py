"""Write docs/licenses.md: the licence of every library that pyproject.toml names, and of what these bring along.

    python docs/scripts/licenses.py           write the page
    python docs/scripts/licenses.py --check   status 1 if the named libraries or their licences have changed

Licences are those that the installed packages state about themselves, so install the extra ``dev`` first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licenses.md"
SHORT = 60  # a longer "licence" is the licence's whole text
HEAD = 300  # characters of such a text in which its name stands, if it has one
TEXTS = {"Apache License": "Apache-2.0", "MIT License": "MIT", "Permission is hereby granted, free of charge": "MIT"}
SAME = {
    "MIT License": "MIT",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "BSD License": "BSD",
    "MIT license": "MIT",
    "MIT licensed, as found in the LICENSE file": "MIT",
    "ISC License": "ISC",
    "BSD 2-Clause License": "BSD-2-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
    "PSF": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
UNKNOWN = "not stated"


@dataclass(frozen=True)
class Named:
    """A library that pyproject.toml names.

    Attributes:
        name: as it is installed.
        versions: the range.
        wanted_by: ``"always"``, or the extras that bring it.
    """

    name: str
    versions: str
    wanted_by: tuple[str, ...]


def main() -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    rows = [row(library) for library in named()]
    if parser.parse_args().check:
        missing = [line for line in rows if line not in PAGE.read_text(encoding="utf-8").splitlines()]
        print("\n".join(["not in docs/licenses.md: run make docs", *missing]) if missing else "licences are up to date")
        return int(bool(missing))
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


def named() -> list[Named]:
    """Return the libraries of the project file, each once, without the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for extra, lines in {"always": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            if requirement.name != project["name"]:
                wanted[requirement.name, written(requirement)].append(extra)
    return [Named(name, versions, tuple(extras)) for (name, versions), extras in wanted.items()]


def written(requirement: Requirement) -> str:
    """Write a range with the lower bound first."""
    return ", ".join(sorted(map(str, requirement.specifier), key=lambda part: part.startswith("<")))


def row(library: Named) -> str:
    """Return one line of the table."""
    return f"| {library.name} | {library.versions} | {', '.join(library.wanted_by)} | {licence(library.name)} |"


@cache
def licence(name: str) -> str:
    """Return what an installed package says about its licence, in SPDX's words where that is clear.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        facts = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{name} is not installed: pip install -e '.[dev]'") from None
    if expression := facts.get("License-Expression"):
        return expression
    titles = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier", []) if c.startswith("License :: ")]
    stated = facts.get("License", "").strip()
    found = stated if 0 < len(stated) <= SHORT and stated != "UNKNOWN" else " or ".join(sorted(set(titles)))
    if not found:
        found = next((short for phrase, short in TEXTS.items() if phrase in stated[:HEAD]), UNKNOWN)
    return SAME.get(found, found)


def brought_along() -> dict[str, list[str]]:
    """Return what the named libraries need in turn and is installed here, by licence."""
    direct = {canonicalize_name(library.name) for library in named()}
    waiting = [(name, "") for name in sorted(direct)]
    seen = set(waiting)
    while waiting:
        fresh = needs(*waiting.pop()) - seen
        seen |= fresh
        waiting += sorted(fresh)
    by_licence: dict[str, list[str]] = defaultdict(list)
    for name in sorted({name for name, _ in seen} - direct - {"hyperprune"}):
        by_licence[licence(name)].append(name)
    return dict(sorted(by_licence.items(), key=lambda pair: pair[0].lower()))


def needs(name: str, extra: str) -> set[tuple[str, str]]:
    """Return the installed packages that a package with one extra (or ``""``) needs here, each with its extras."""
    lines = map(Requirement, metadata.requires(name) or [])
    wanted = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    found = {(canonicalize_name(line.name), extra) for line in wanted for extra in {"", *line.extras}}
    return {(name, extra) for name, extra in found if name in installed()}


@cache
def installed() -> frozenset[str]:
    """Return the names of all packages here."""
    names = (distribution.metadata.get("Name") for distribution in metadata.distributions())
    return frozenset(canonicalize_name(name) for name in names if name)


def page(rows: list[str]) -> str:
    """Return the whole page."""
    along = [f"| {terms} | {', '.join(names)} |" for terms, names in brought_along().items()]
    system = f"{sys.platform}, torch {re.split('[+]', metadata.version('torch'))[0]}"
    return "\n".join(
        [
            "# Licences",
            "",
            "hyperprune is under the [MIT licence](../LICENSE). These are the licences of the libraries it depends on,",
            "as each package states them about itself. `make docs` writes this page.",
            "",
            "## Named in pyproject.toml",
            "",
            "| library | versions | needed by | licence |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Brought along",
            "",
            f"What the libraries above need in turn, on one machine ({system}). It depends on the system: torch brings",
            "NVIDIA's own libraries on Linux only, and its CPU build brings none.",
            "",
            "| licence | libraries |",
            "|---|---|",
            *along,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
