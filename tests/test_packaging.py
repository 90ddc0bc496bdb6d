"""What is shipped: wheel, sdist, metadata, ranges of versions, and types that a user's checker accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import hyperprune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REQUIREMENT = re.compile(r'^    "([^"]+)",(.*)$', re.M)
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
USER = """\
# mypy: warn-return-any
from pathlib import Path

import torch
from torch import nn

from hyperprune import Budget, Distillation, HyperModel, Search, SearchProgress, WidthPlan
from hyperprune import export_pruned, hyperize, load_pruned, prune, recalibrate_, report, save_pruned


def shrink(model: nn.Sequential, path: Path) -> nn.Module:
    x = torch.randn(2, 4)
    hyper: HyperModel = hyperize(model, x, keep=["2"])
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=3)
    search.step()
    progress: SearchProgress = search.progress()
    plan: WidthPlan = hyper.plan()
    slim: nn.Module = export_pruned(hyper)
    again: nn.Sequential = recalibrate_(model, [x])
    print(progress.macs_fraction + 1.0, plan.width("0.weight", 0) + 1, again[0])
    print(report(model, slim, x).dumps().upper(), Distillation(model).temperature)
    written: Path = save_pruned(slim, path)
    return load_pruned(prune(model, x, Budget(params=0.5)), written)
"""
WRONG = 'from hyperprune import Budget\nBudget(macs="half")\n'


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone, as a fresh clone has them."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in ("hyperprune", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(tree: Path, kind: str, folder: Path) -> Path:
    """Build ``"wheel"`` or ``"sdist"`` by setuptools' own hooks, without a download."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(folder)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "sdist", tmp_path_factory.mktemp("sdist"))


def files_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def facts_of(wheel: Path) -> Message:
    (name,) = (name for name in files_in(wheel) if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())


def test_the_wheel_holds_every_module_the_type_marker_and_the_licence_and_nothing_else(wheel: Path) -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hyperprune").rglob("*.py")}
    found = files_in(wheel)
    info = f"hyperprune-{hyperprune.__version__}.dist-info"
    assert {name for name in found if not name.startswith(f"{info}/")} == sources | {"hyperprune/py.typed"}
    assert f"{info}/licenses/LICENSE" in found
    assert wheel.name == f"hyperprune-{hyperprune.__version__}-py3-none-any.whl"


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "hyperprune/__init__.py", "hyperprune/py.typed"} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks", "docs", "runs"))}


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, "wheel", tmp_path)
    assert files_in(again) == files_in(wheel)


def test_metadata_say_what_it_is_and_what_it_needs(wheel: Path) -> None:
    facts = facts_of(wheel)
    assert facts["Version"] == hyperprune.__version__
    assert facts["License-Expression"] == "MIT"
    assert facts["Requires-Python"] == ">=3.10"
    extras = {"timm", "onnx", "plots", "checkpoint", "hub", "prune", "lightning", "transformers", "demo", "dev"}
    assert extras <= set(facts.get_all("Provides-Extra"))
    needed = [Requirement(line) for line in facts.get_all("Requires-Dist")]
    assert {r.name for r in needed if r.marker is None} == {"torch", "torch-pruning", "fvcore", "numpy", "rich"}


def test_the_version_is_written_down_once_and_the_changelog_has_it() -> None:
    assert 'dynamic = ["version"]' in PROJECT
    assert not re.search(r'^version = "', PROJECT, re.M)
    assert f"\n## {hyperprune.__version__}" in (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")


def ranges() -> list[tuple[Requirement, str]]:
    """Return every library that pyproject.toml names, with the comment behind it."""
    part = PROJECT[PROJECT.index("dependencies = [") : PROJECT.index("[project.scripts]")]
    found = [(Requirement(text), comment.strip()) for text, comment in REQUIREMENT.findall(part)]
    return [(requirement, comment) for requirement, comment in found if requirement.name != "hyperprune"]


@pytest.mark.parametrize(("requirement", "comment"), ranges(), ids=[str(r.name) for r, _ in ranges()])
def test_every_dependency_has_two_bounds_and_a_reason(requirement: Requirement, comment: str) -> None:
    assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}
    assert re.match(r"# \w", comment), f"{requirement} has no reason"


def test_a_library_that_is_named_twice_has_one_range() -> None:
    wanted: dict[str, set[SpecifierSet]] = {}
    for requirement, _ in ranges():
        wanted.setdefault(requirement.name, set()).add(requirement.specifier)
    assert len(wanted) > 20
    assert {name: found for name, found in wanted.items() if len(found) > 1} == {}


def test_what_is_installed_here_lies_within_the_ranges() -> None:
    checked = 0
    for requirement, _ in ranges():
        try:
            installed = Version(metadata.version(requirement.name))
        except metadata.PackageNotFoundError:
            continue
        checked += 1
        assert installed.public in requirement.specifier, f"{requirement} does not admit {installed}"
    assert checked >= 5


def test_the_list_of_licences_is_that_of_the_installed_packages() -> None:
    from docs.scripts.licenses import UNKNOWN, named, row

    page = (ROOT / "docs" / "licenses.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in page if line.startswith(("| ", "|-"))]
    here = []
    for library in named():
        assert any(line.startswith(f"| {library.name} | {library.versions} | ") for line in rows), "run make docs"
        try:
            metadata.version(library.name)
        except metadata.PackageNotFoundError:
            continue
        here.append(row(library))
    assert here
    if (ROOT / ".git").exists() and metadata.version("torch").startswith("2.15"):  # versions differ in their words
        assert [line for line in here if line not in rows] == [], "run make docs"
    assert not [line for line in rows if line.endswith(f"| {UNKNOWN} |")]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own with the wheel unpacked; everything else it takes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (packages,) = folder.glob("lib/python3*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    others = Path(metadata.distribution("torch").locate_file(""))
    (packages / "others.pth").write_text(f"{others}\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_users_typed_program_passes_mypy_strict_against_the_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed)]
    shared = str(ROOT / ".mypy_cache")  # with lint, which has read torch: that takes a minute
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", shared]
    run = [*command, *options, "user.py", "wrong.py"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    complaints = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(complaints) == 1, done.stdout + done.stderr
    assert complaints[0].startswith("wrong.py:2: error: Argument")


def test_the_wheel_runs_in_a_python_that_has_never_seen_the_sources(installed: Path, tmp_path: Path) -> None:
    code = "import hyperprune, importlib.metadata as m; print(hyperprune.__file__, m.version('hyperprune'))"
    run = [str(installed), "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    place, version = done.stdout.split()
    assert Path(place).is_relative_to(installed.parents[1])
    assert version == hyperprune.__version__
