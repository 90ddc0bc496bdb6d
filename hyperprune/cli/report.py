"""``hyperprune report``: what pruning did to a network, as tables, JSON, or one page with pictures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperprune.cli.parsing import MODEL, size
from hyperprune.errors import FileError

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Commands
    from hyperprune.reporting import PruningReport

DESCRIPTION = """\
Show what pruning did to a network: widths, MACs and parameters per layer and
per stage, and as far as they are known the search's course, latency and proofs.

Either name the dense network and the checkpoint that save_pruned wrote (the
dense one is freshly built; its weights do not matter here); or name the folder
of hyperprune prune, or a report saved as JSON."""

EXAMPLES = """\
examples:
  hyperprune report torchvision/resnet18 slim.safetensors
  hyperprune report timm/resnet50 slim.safetensors --html report.html
  hyperprune report my_package.models:build_unet slim.safetensors --input 1x64x64
  hyperprune report run/ --html report.html
  hyperprune report run/ --latency bench.json --json > report.json

A checkpoint holds the widths, not the search. For its course and the proof, report
on a run's folder, or in Python: report(dense, slim, x, history=..., proof=...)."""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "report",
        help="show what pruning did: widths, MACs, parameters; tables or a page",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "dense",
        metavar="DENSE",
        help=f"{MODEL}; alone: a run's folder",
    )
    parser.add_argument("slim", metavar="SLIM", type=Path, nargs="?", help="checkpoint written by save_pruned")
    parser.add_argument(
        "--input", type=size, default=None, metavar="CxHxW", help="size of one input (default: the model's own)"
    )
    parser.add_argument(
        "--latency", type=Path, default=None, metavar="FILE", help="times to show: what hyperprune bench --json printed"
    )
    parser.add_argument("--html", type=Path, default=None, metavar="FILE", help="write one page with pictures too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from hyperprune.reporting import latency_from_json

    found = _of_run(Path(options.dense)) if options.slim is None else _measured(options)
    if options.latency:
        found = replace(found, latency=latency_from_json(_json_in(options.latency)))
    if options.html:
        found.to_html(options.html)
        print(f"wrote {options.html}", file=sys.stderr)
    if options.json:
        print(found.dumps())
    else:
        _show(found)


def _measured(options: argparse.Namespace) -> PruningReport:
    import torch

    from hyperprune.checkpoint import load_pruned
    from hyperprune.loading import load_model
    from hyperprune.reporting import report

    loaded = load_model(options.dense)
    slim = load_pruned(loaded.model, options.slim)
    return report(loaded.model, slim, torch.zeros(1, *(options.input or loaded.input_size)), name=options.dense)


def _of_run(path: Path) -> PruningReport:
    """Read the report of a run's folder (its numbers stand beside others there), or one saved alone."""
    from hyperprune.reporting import report_from_json

    data = _json_in(path / "report.json" if path.is_dir() else path)
    return report_from_json(data.get("pruning", data) if isinstance(data, dict) else data)


def _json_in(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror or error}. Name a run's folder or a JSON file here; "
            "for a network by name, name the checkpoint of its slim one too."
        ) from error
    except ValueError as error:
        raise FileError(f"{path} holds no JSON: {error}.") from error


def _show(found: PruningReport) -> None:
    """Print tables, in colour on a terminal and plain into a pipe."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(found)
    else:
        print(found)
