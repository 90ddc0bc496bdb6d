"""Do slim networks survive the way to disk and back? The models of deploy_models.txt, each in fresh processes.

Per model three processes, one after the other:

1. save: hyperize, remove a random half of all units, export, ``save_pruned``, ``save_program``; note the outputs.
2. load: build the model anew with other weights, ``load_pruned``, and compare the outputs bit for bit.
3. run: load the ``.pt2`` with plain torch, where importing hyperprune is an error, and compare at two batch sizes.

    python benchmarks/checkpoints.py                      # run what has no result, or a failure, in results/
    python benchmarks/checkpoints.py --again --only 'timm/vit*'
    python benchmarks/checkpoints.py --table              # print the results
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
MODELS = HERE / "deploy_models.txt"
RESULTS = HERE / "results" / "checkpoints.json"
BATCHES = (1, 5)

Record = dict[str, Any]


def main() -> None:
    """Run the models that are missing, print the table, or be one of the three processes."""
    options = _options()
    torch.set_num_threads(1)
    if options.stage:
        print(json.dumps(STAGES[options.stage](options.only[0], options.folder)))
    elif options.table:
        show(_results(options.results))
    else:
        run(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="models to run, e.g. 'timm/*vit*'")
    parser.add_argument("--again", action="store_true", help="run models that have a result too")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds per process")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results")
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Take one model after the other through its three processes, and note each result at once."""
    from hyperprune.files import write_whole

    for name in MODELS.read_text().split():
        results = _results(options.results)
        missing = "failed" in results.get(name, {"failed": "never run"})
        if any(fnmatch(name, glob) for glob in options.only) and (options.again or missing):
            results[name] = measure(name, options.timeout)
            write_whole(options.results, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            print(f"{name:45} {json.dumps(results[name])}", flush=True)


def measure(name: str, timeout: float = 1200) -> Record:
    """Return what the three processes found; the first that fails ends it."""
    record: Record = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--only", name, "--folder", folder]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
            except subprocess.TimeoutExpired:
                return record | {"failed": stage, "message": f"more than {timeout:.0f} s"}
            if done.returncode:
                return record | {"failed": stage, "message": done.stderr.strip().splitlines()[-1][:1000]}
            record[stage] = json.loads(done.stdout.splitlines()[-1])
    return record | {"seconds": round(time.perf_counter() - started, 1)}


def save(name: str, folder: Path) -> Record:
    """Prune a model, save it both ways, and keep its inputs and outputs."""
    from hyperprune import export_pruned, hyperize, save_pruned
    from hyperprune.program import save_program

    model, x = _build(name)
    hyper = hyperize(model, x)
    hyper.bank.keep_(_half(hyper.coupling))
    slim = export_pruned(hyper).eval()
    path = save_pruned(slim, folder / "slim.safetensors", metadata={"from": name})
    started = time.perf_counter()
    proof = save_program(slim, x, folder / "slim.pt2")
    seconds = time.perf_counter() - started
    for batch in BATCHES:
        inputs = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(batch))
        save_file({"x": inputs, **_outputs(slim, inputs)}, folder / f"outputs{batch}.safetensors")
    return {
        "params": sum(p.numel() for p in slim.parameters()),
        "dense_params": sum(p.numel() for p in model.parameters()),
        "bytes": path.stat().st_size,
        "header_bytes": int.from_bytes(path.read_bytes()[:8], "little"),
        "program_bytes": (folder / "slim.pt2").stat().st_size,
        "program_seconds": round(seconds, 1),
        "program_proof": proof.relative_error,
    }


def load(name: str, folder: Path) -> Record:
    """Build the model anew with other weights, fill it from the file, and compare outputs."""
    from hyperprune import load_pruned

    dense, _ = _build(name)
    _spoil_(dense)
    started = time.perf_counter()
    slim = load_pruned(dense, folder / "slim.safetensors")
    return {"seconds": round(time.perf_counter() - started, 2), **_compared(slim, folder)}


def run_program(name: str, folder: Path) -> Record:
    """Run the exported program where hyperprune cannot be imported, and compare outputs."""
    sys.meta_path.insert(0, _NoHyperprune())
    module = torch.export.load(folder / "slim.pt2").module()
    found = _compared(module, folder)
    assert not any(name.partition(".")[0] == "hyperprune" for name in sys.modules)
    return found


STAGES: dict[str, Callable[[str, Path], Record]] = {"save": save, "load": load, "run": run_program}


class _NoHyperprune(importlib.abc.MetaPathFinder):
    """Makes ``import hyperprune`` fail, wherever it is installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] == "hyperprune":
            raise ModuleNotFoundError(f"{fullname} is blocked here")


def _build(name: str) -> tuple[nn.Module, Tensor]:
    """Build a model of the zoo, or a small one of the tests."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if name.startswith("tests/"):
        from tests.models import small

        torch.manual_seed(0)
        model, x = small(name.partition("/")[2])
        return model.eval(), x
    from zoo_tools import build

    return build(name)


def _half(coupling: Any) -> Tensor:
    keep = torch.rand(coupling.units, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[[group.start + group.size - 1 for group in coupling.groups]] = True
    return keep


@torch.no_grad()
def _spoil_(model: nn.Module) -> None:
    """Redraw every weight and statistic, so that what comes out right later came from the file."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))


@torch.no_grad()
def _outputs(model: Callable[[Tensor], Any], x: Tensor) -> dict[str, Tensor]:
    leaves = torch.utils._pytree.tree_leaves(model(x))
    return {f"output{at}": leaf.contiguous() for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}


def _compared(model: Callable[[Tensor], Any], folder: Path) -> Record:
    equal, errors, count = True, [], 0
    for batch in BATCHES:
        expected = load_file(folder / f"outputs{batch}.safetensors")
        found = _outputs(model, expected.pop("x"))
        assert found.keys() == expected.keys()
        count = len(found)
        for name, value in expected.items():
            assert torch.isfinite(value).all()
            assert value.std() > 0
            equal &= torch.equal(value, found[name])
            errors.append(float((value - found[name]).abs().max() / value.abs().max()))
    return {"bit_equal": equal, "relative_error": max(errors), "outputs": count, "batches": list(BATCHES)}


def show(results: dict[str, Record]) -> None:
    """Print one line per model."""
    table = Table("model", "slim / dense params", "file", "loaded: bit-equal", ".pt2: bit-equal", ".pt2: error")
    for name, record in results.items():
        if "failed" in record:
            table.add_row(name, f"failed at {record['failed']}: {record['message'][:200]}")
            continue
        saved, loaded, ran = (record[stage] for stage in STAGES)
        share = f"{saved['params'] / 1e6:.2f} M / {saved['dense_params'] / 1e6:.2f} M"
        size = f"{saved['bytes'] / 1e6:.1f} MB"
        table.add_row(name, share, size, *(str(r["bit_equal"]) for r in (loaded, ran)), f"{ran['relative_error']:.1e}")
    Console().print(table)


def _results(path: Path) -> dict[str, Record]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
