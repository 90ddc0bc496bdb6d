"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import hyperprune

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "hyperprune").rglob("*.py"))
PICKLING = {("torch", "save"), ("torch", "load")}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:work|home|root|Users|mnt)/[\w.]")
REGISTRY = re.compile(r"(?:pypi|pythonhosted|anaconda)\.org|download\.pytorch|conda\.io|index[-_]url|find-links", re.I)


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files git tracks or would track; this one, which names what it forbids, is left out."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = (ROOT / name for name in names if name)
    return tuple(path for path in paths if path.is_file() and path != Path(__file__).resolve())


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), start=1)
        if pattern.search(line)
    ]


def nodes_of(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), str(path)))


def pickling_in(path: Path) -> Iterator[str]:
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names} & PICKLERS
            yield from (f"{path.name}:{node.lineno}: import {name}" for name in names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            if module in PICKLERS or any((node.module, alias.name) in PICKLING for alias in node.names):
                yield f"{path.name}:{node.lineno}: from {node.module} import ..."
        elif isinstance(node, ast.Attribute) and tuple(ast.unparse(node).split(".")) in PICKLING:
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def running_text_in(path: Path) -> Iterator[str]:
    """Yield the calls that run text as code, or let numpy unpickle."""
    for node in nodes_of(path):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
            yield f"{path.name}:{node.lineno}: {node.func.id}(...)"
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not is_false(keyword.value):
                yield f"{path.name}:{node.lineno}: allow_pickle={ast.unparse(keyword.value)}"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def names_defined_in(path: Path) -> Iterator[str]:
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_imports_point_only_downwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True) == 0


def test_every_module_has_its_place_among_the_layers() -> None:
    contract = re.search(r"\nlayers = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert contract is not None
    layers = set(re.findall(r"\((\w+)\)", contract.group(1)))
    modules = {path.stem for path in (ROOT / "hyperprune").glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in (ROOT / "hyperprune").glob("*/__init__.py")}
    assert modules | packages <= layers


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_pickles(path: Path) -> None:
    assert list(pickling_in(path)) == []


def test_the_search_for_pickling_finds_it(tmp_path: Path) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text("import pickle\nimport torch\nfrom torch import load\ntorch.save(1, 'x')\n")
    assert len(list(pickling_in(guilty))) == 3
    for module in sorted(PICKLERS):
        guilty.write_text(f"def later():\n    from {module} import loads\n")
        assert len(list(pickling_in(guilty))) == 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_text_as_code(path: Path) -> None:
    assert list(running_text_in(path)) == []


def test_the_search_for_text_that_is_run_finds_it_and_lets_methods_be(tmp_path: Path) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text("eval('1')\nexec('1')\n__import__('x')\nnumpy.load('x', allow_pickle=True)\n")
    assert len(list(running_text_in(guilty))) == 4
    guilty.write_text("model.eval()\nre.compile('x')\ntorch.compile(model)\nnumpy.load('x', allow_pickle=False)\n")
    assert list(running_text_in(guilty)) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert lines_that_match(MACHINE_PATH) == []


def test_no_file_names_a_package_registry() -> None:
    assert lines_that_match(REGISTRY) == []


def test_costs_are_called_macs_in_every_name_of_ours() -> None:
    names = {name for path in SOURCES for name in names_defined_in(path)}
    assert {name for name in names if "flop" in name.lower()} == set()


@pytest.mark.parametrize("name", hyperprune.__all__)
def test_every_public_name_has_a_docstring_of_its_own_with_an_example(name: str) -> None:
    thing = getattr(hyperprune, name)
    assert inspect.isclass(thing) or callable(thing)
    text = (thing.__doc__ or "").strip()
    assert text
    assert not text.startswith(f"{name}("), "the docstring dataclass writes is not one"
    assert ">>> " in text, "an example, which runs as a doctest"


def test_all_names_of_the_public_api_are_sorted_out_once() -> None:
    assert len(set(hyperprune.__all__)) == len(hyperprune.__all__)
    assert {"Budget", "Search", "export_pruned", "hyperize", "prune"} <= set(hyperprune.__all__)
