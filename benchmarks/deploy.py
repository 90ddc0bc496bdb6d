"""What becomes of slim networks outside PyTorch: twenty as ONNX files, three timed beside their dense ones.

Each model runs in a process of its own. Results are noted one by one, so a run can be broken off and started again.

    python benchmarks/deploy.py onnx                   # run what is not in results/onnx.json yet
    python benchmarks/deploy.py onnx --again --only 'timm/*'
    python benchmarks/deploy.py latency --again        # needs a machine with nothing else to do
    python benchmarks/deploy.py report                 # write the tables into docs/deploy.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "deploy.md"
TIMED = ("torchvision/resnet50", "torchvision/mobilenet_v2", "torchvision/convnext_tiny")
WIDTHS = ("magnitude", "random")
TOLERANCE = 1e-4
DIVISOR = 16

Record = dict[str, Any]


def main() -> None:
    """Run one of the two benchmarks, one model of it, or write the report."""
    options = _options()
    if options.what == "report":
        write_tables()
    elif options.one:
        print(json.dumps(_one(options)))
    else:
        run_missing(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("onnx", "latency", "report"))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="models to run, e.g. 'timm/*vit*'")
    parser.add_argument("--again", action="store_true", help="run models that have a result too")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model")
    parser.add_argument("--threads", type=int, default=2, help="threads of the timed networks")
    parser.add_argument("--runs", type=int, default=40, help="timed passes of each network in a row of the table")
    parser.add_argument("--backends", nargs="+", default=["onnx"], help="runtimes that are timed")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_missing(options: argparse.Namespace) -> None:
    """Run every model that has no result yet in a fresh process, and note the result at once."""
    path = RESULTS / f"{options.what}.json"
    known = TIMED if options.what == "latency" else (HERE / "deploy_models.txt").read_text().split()
    for name in [name for name in known if any(fnmatch(name, glob) for glob in options.only)]:
        results = _load(path)
        if options.again or name not in results:
            results[name] = _in_process(name, options)
            _save(path, results)
            print(f"{name:45} {json.dumps(results[name])[:160]}", flush=True)


def _in_process(name: str, options: argparse.Namespace) -> Record:
    started = time.perf_counter()
    timed = ["--threads", str(options.threads), "--runs", str(options.runs), "--backends", *options.backends]
    command = [sys.executable, __file__, options.what, "--one", name, *timed]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return {"status": "timeout"}
    record = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"status": "crash"}
    return record | {"seconds": round(time.perf_counter() - started, 1)}


def _one(options: argparse.Namespace) -> Record:
    return try_onnx(options.one) if options.what == "onnx" else time_one(options)


def try_onnx(name: str) -> Record:
    """Remove a random half of a model's units, export, and compare with PyTorch on images the export never saw."""
    import torch
    from zoo_tools import build

    from hyperprune import HyperpruneError, export_onnx

    torch.set_num_threads(1)
    model, x = build(name)
    slim = _half_of(model, x)
    record: Record = {"params": _size(model), "slim_params": _size(slim)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        try:
            proof = export_onnx(slim, x, path, tolerance=TOLERANCE)
        except HyperpruneError as error:
            return record | {"status": "refused", "message": f"{type(error).__name__}: {error}"[:2000]}
        record |= {"opset": proof.opset, "bytes": proof.size, "files": len(os.listdir(folder))}
        record |= {"proof": proof.relative_error, "errors": _errors(slim, x, path)}
    good = record["files"] == 1 and all(error <= TOLERANCE for error in record["errors"].values())
    return record | {"status": "equal" if good else "differs"}


def _half_of(model: Any, x: Any) -> Any:
    """Return the model without a random half of its units, as the zoo table has it."""
    import torch

    from hyperprune.hyper import hyperize, slim_copy

    hyper = hyperize(model, x)
    keep = torch.rand(hyper.coupling.units, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[[group.start + group.size - 1 for group in hyper.coupling.groups]] = True
    hyper.bank.keep_(keep)
    return slim_copy(hyper).eval()


def _errors(slim: Any, x: Any, path: Path) -> dict[str, float]:
    """Check the file with onnx, run it with plain ONNX Runtime on random images, and compare at batch 1 and 5."""
    import onnx
    import onnxruntime
    import torch

    from hyperprune.verify import compare

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    errors = {}
    for batch in (1, 5):
        images = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = slim(images)
        found = [torch.from_numpy(array) for array in session.run(None, {session.get_inputs()[0].name: images.numpy()})]
        errors[str(batch)] = compare(expected, found).relative_error
    return errors


def time_one(options: argparse.Namespace) -> Record:
    """Halve a model's MACs at widths in steps of 16, chosen in two ways, and time it beside the dense one."""
    import torch
    from zoo_tools import build

    from hyperprune import Budget, prune
    from hyperprune.cost import count_with_fvcore
    from hyperprune.latency import compare_latency

    model, x = build(options.one)
    dense = count_with_fvcore(model, x)
    record: Record = {"macs": dense.macs, "params": dense.params, "cores": os.cpu_count()}
    for widths in WIDTHS:
        torch.manual_seed(0)
        slim = prune(model, x, Budget(macs=0.5, divisor=DIVISOR), criterion=widths)
        counted = count_with_fvcore(slim, x)
        load = os.getloadavg()[0]
        found = compare_latency(
            model, slim, x, batches=(1, 8), backends=options.backends, threads=options.threads, runs=options.runs
        )
        record[widths] = {"macs": counted.macs, "params": counted.params, "load_before": round(load, 2)}
        record[widths] |= found.to_json()
    return record


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def write_tables() -> None:
    """Write both tables into the page, between their marks."""
    page = PAGE.read_text()
    for name, table in (("onnx", _onnx_table()), ("latency", _latency_table())):
        before, rest = page.split(f"<!-- {name} -->\n", 1)
        after = rest.split(f"<!-- end of {name} -->", 1)[1]
        page = f"{before}<!-- {name} -->\n{table}<!-- end of {name} -->{after}"
    PAGE.write_text(page)


def _onnx_table() -> str:
    results = _load(RESULTS / "onnx.json")
    lines = [
        "| model | parameters left | file | error, batch 1 | error, batch 5 | verdict |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, record in results.items():
        errors = record.get("errors", {})
        cells = [f"{errors[batch]:.1e}" if batch in errors else "–" for batch in ("1", "5")]
        left = f"{record['slim_params'] / record['params']:.0%}" if "params" in record else "–"
        size = f"{record['bytes'] / 1e6:.1f} MB" if "bytes" in record else "–"
        lines.append(f"| {name} | {left} | {size} | {cells[0]} | {cells[1]} | {record['status']} |")
    equal = sum(record["status"] == "equal" for record in results.values())
    return "\n".join([*lines, "", f"{equal} of {len(results)} equal.", ""])


def _latency_table() -> str:
    headers = "model, widths, MACs, parameters, runtime, batch, dense ms, slim ms, faster, dense peak, slim peak"
    lines = [f"| {headers.replace(', ', ' | ')} |", "|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"]
    results = _load(RESULTS / "latency.json")
    for name, record in results.items():
        for widths in WIDTHS:
            lines += _latency_lines(name, widths, record)
    return "\n".join([_machine(results), "", *lines, ""])


def _machine(results: dict[str, Record]) -> str:
    """Say how the figures were taken, and whether something else ran beside them."""
    found = [record[widths] for record in results.values() for widths in WIDTHS if widths in record]
    if not found:
        return "Nothing was measured."
    runs, threads = ({str(one[what]) for one in found} for what in ("runs", "threads"))
    loads = [one["load_before"] for one in found]
    busy = max(loads) > 1.5
    return (
        f"{'/'.join(sorted(runs))} passes of each network, {'/'.join(sorted(threads))} threads of "
        f"{results[next(iter(results))]['cores']} cores, torch {found[0]['versions']['torch']}, ONNX Runtime "
        f"{found[0]['versions']['onnxruntime']}; load of the machine before each measurement {min(loads):.1f} to "
        f"{max(loads):.1f}{': **it was busy, so the times are too long and the ratios rough**' if busy else ''}."
    )


def _latency_lines(name: str, widths: str, record: Record) -> list[str]:
    if widths not in record:
        return [f"| {name} | {widths} | {record.get('status', '–')} |"]
    found = record[widths]
    shares = " | ".join(f"{found[cost] / record[cost]:.1%}" for cost in ("macs", "params"))
    lines = []
    for row in found["rows"]:
        times = " | ".join(_time(row[which]) for which in ("dense", "slim"))
        peaks = " | ".join(_megabytes(row[which]["peak_bytes"]) for which in ("dense", "slim"))
        place = f"{name} | {widths} | {shares} | {row['runtime']} | {row['batch']}"
        lines.append(f"| {place} | {times} | {row['speedup']:.2f}x | {peaks} |")
    return lines


def _time(timing: Record) -> str:
    low, high = timing["spread_ms"]
    return f"{timing['median_ms']:.1f} ({low:.1f}–{high:.1f})"


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f} MB"


def _load(path: Path) -> dict[str, Record]:
    return json.loads(path.read_text()) if path.exists() else {}


def _save(path: Path, results: dict[str, Record]) -> None:
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    main()
