"""The zoo table: every torchvision classifier and segmenter, and two or more of every timm module.

Each model runs in a process of its own, one at a time. What is written down for each: how much of its MACs can be
pruned, what stays and why, how long hyperize takes, and whether the slim network equals the searched one after a
random half of all units has been removed; beside it, what Torch-Pruning makes of the same model.

    python benchmarks/zoo.py                            # run what is not in results/zoo.json yet
    python benchmarks/zoo.py --again --only 'timm/vit*' # run some models once more
    python benchmarks/zoo.py --report                   # write docs/zoo.md and docs/zoo.png from the results
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = HERE / "zoo_models.txt"
RESULTS = HERE / "results" / "zoo.json"
GIGABYTE = 2**30
PRELOAD = ["torch", "torch._dynamo", "torch.export", "torch.export._trace", "torchvision", "timm", "torch_pruning"]

Record = dict[str, Any]


def main() -> None:
    """Run the models that are missing, or write the report."""
    options = _options()
    if options.report:
        from zoo_report import write_report

        write_report(_load(options.results))
        return
    run(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="models to run, e.g. 'timm/*vit*'")
    parser.add_argument("--tool", choices=("hyperprune", "torch_pruning", "both"), default="both")
    parser.add_argument("--again", action="store_true", help="run models that have a result too")
    parser.add_argument("--timeout", type=float, default=240, help="seconds per model and tool")
    parser.add_argument("--memory", type=float, default=10, help="gigabytes of data per process")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write docs/zoo.md and docs/zoo.png")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Run each model with each tool in a fresh process, and note the result at once."""
    tools = ("hyperprune", "torch_pruning") if options.tool == "both" else (options.tool,)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    names = [name for name in MODELS.read_text().split() if any(fnmatch(name, glob) for glob in options.only)]
    for tool in tools:
        for name in names:
            if options.again or tool not in _load(options.results).get(name, {}):
                record = _in_process(context, tool, name, options)
                _note(options.results, name, tool, record)
                print(f"{tool:13} {name:55} {_line(record)}", flush=True)


def _in_process(context: Any, tool: str, name: str, options: argparse.Namespace) -> Record:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, tool, name, options.memory))
    started = time.perf_counter()
    process.start()
    sender.close()
    try:
        record = receiver.recv() if receiver.poll(options.timeout) else {"status": "timeout"}
    except EOFError:
        process.join()
        record = {"status": "killed", "message": f"exit code {process.exitcode}"}
    process.kill()
    process.join()
    return record | {"total_seconds": round(time.perf_counter() - started, 1)}


def _work(sender: Any, tool: str, name: str, gigabytes: float) -> None:
    """Run one model with one tool (in the child process)."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    limit = int(gigabytes * GIGABYTE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import zoo_tools

    measure: Callable[[str], Record] = getattr(zoo_tools, f"try_{tool}")
    try:
        record = measure(name)
    except Exception as error:  # whatever a model does, the table goes on
        record = {"status": "crash", "message": zoo_tools.describe(error)}
    if "allocate memory" in record.get("message", ""):
        record["status"] = "over the memory limit"
    sender.send(record)


def _line(record: Record) -> str:
    parts = [record["status"], f"{record['total_seconds']:.0f} s"]
    parts += [f"{key} {record[key]:.3g}" for key in ("prunable", "error", "power") if record.get(key) is not None]
    return "  ".join([*parts, record.get("message", "")[:160].replace("\n", " ")])


def _load(path: Path) -> dict[str, Record]:
    return json.loads(path.read_text()) if path.exists() else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time change the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"/tmp/{path.name}.{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _note(path: Path, name: str, tool: str, record: Record) -> None:
    """Add one result to the file: written beside it, then renamed, so that it is whole at any time."""
    with _locked(path):
        results = _load(path)
        results.setdefault(name, {})[tool] = record
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        draft.replace(path)


if __name__ == "__main__":
    main()
