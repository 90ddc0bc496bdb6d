"""Run the fast tests with the oldest libraries pyproject.toml admits, or with the newest there are.

    python tests/versions.py oldest --python python3.10
    python tests/versions.py newest --python python3.13

Each gets an environment of its own (``.venv-oldest``, ``.venv-newest``; six gigabytes each with torch for CUDA), which
is kept. The oldest libraries are the lower bounds themselves, all together: torch 2.8 with what fits it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r'^    "([\w-]+)>=([\w.]+),<[\w.]+",', re.M)
NOT_FOR_TESTS = {"ruff", "mypy", "import-linter", "mutmut", "build", "lightning", "transformers", "accelerate"}
NEWER_ON_OLD = {"setuptools", "griffe", "packaging"}  # tools: their oldest version says nothing about ours
TESTS = [
    *("rehearsal", "norms", "export", "search"),
    *("checkpoint", "program", "budget", "latents", "plan"),
    *("trace/", "labels/", "slim/", "generators/", "sparsifiers/", "coupling/", "cost/", "onnx_export/"),
]


def main() -> int:
    """Install and test; return pytest's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter to test with")
    options = parser.parse_args()
    python = environment(options.which, options.python)
    subprocess.run(
        [str(python), "-c", "import torch, sys; print('Python', sys.version.split()[0], 'torch', torch.__version__)"],
        check=True,
    )
    fast = "not slow and not zoo and not nightly"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", fast, *tests()]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def tests() -> list[str]:
    """Return the files and folders of ``TESTS``."""
    return [f"tests/{name}" if name.endswith("/") else f"tests/test_{name}.py" for name in TESTS]


def environment(which: str, python: str) -> Path:
    """Make or bring up to date the environment; return its Python."""
    home = ROOT / f".venv-{which}"
    inside = home / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(home)], check=True)
    install = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *requirements(which)], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", str(ROOT)], check=True)
    return inside


def requirements(which: str) -> list[str]:
    """Return what to install: exact lower bounds, or the newest."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounds = {name: low for name, low in REQUIREMENT.findall(text) if name not in NOT_FOR_TESTS}
    if which == "newest":
        return sorted(bounds)
    return sorted(f"{name}{'>=' if name in NEWER_ON_OLD else '=='}{low}" for name, low in bounds.items())


if __name__ == "__main__":
    sys.exit(main())
