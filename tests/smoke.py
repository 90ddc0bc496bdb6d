"""Install a wheel in an environment of its own and run the README's first snippet there.

    python tests/smoke.py dist/hyperprune-0.1.0-py3-none-any.whl

The environment is new, but takes torch and all other libraries from the one that runs this file, by a ``.pth`` file:
they are five gigabytes. (``make versions`` installs them anew.) So that nothing is downloaded and a minute is enough,
the snippet runs on ResNet-18 with random weights and small images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
INSTEAD = {
    '"resnet50", pretrained=True': '"resnet18"',
    "224, 224": "64, 64",
    "in range(5)": "in range(2)",
    "5 * ": "2 * ",
}
BEFORE = """\
import torch, hyperprune
criterion = torch.nn.CrossEntropyLoss()
loader = [(torch.randn(4, 3, 64, 64), torch.randint(0, 1000, (4,))) for _ in range(20)]
"""
AFTER = """
assert type(slim) is type(model)
assert search.progress().macs_fraction <= 0.5
print(search.progress())
print("hyperprune", hyperprune.__version__, "from", hyperprune.__file__)
"""


def main() -> int:
    """Return 0 if the snippet runs from the wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    with tempfile.TemporaryDirectory(prefix="hyperprune-smoke-") as folder:
        home = Path(folder).resolve()
        python = installed(wheel, home / "venv")
        script = home / "readme.py"
        script.write_text(BEFORE + snippet() + AFTER)
        said = run([str(python), str(script)], home)
        print(said)
        place = Path(said.splitlines()[-1].rpartition(" from ")[2])
        version = run([str(python.parent / "hyperprune"), "--version"], home)
        if not place.is_relative_to(home):
            print(f"not the wheel: {place} was run")
            return 1
        print(f"{version.strip()}: the README's first snippet ran from {wheel.name} in an environment of its own")
    return 0


def installed(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel in it; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def snippet() -> str:
    """Return the README's first block of Python, with a smaller network.

    Raises:
        SystemExit: the README has changed, and the replacements no longer fit.
    """
    code = README.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    for old, new in INSTEAD.items():
        if old not in code:
            raise SystemExit(f"the README's first snippet no longer says {old!r}: adapt INSTEAD in tests/smoke.py")
        code = code.replace(old, new)
    return code


def run(command: list[str], folder: Path) -> str:
    """Run a program in a folder and return what it prints; show why if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
