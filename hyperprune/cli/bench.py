"""``hyperprune bench``: how much faster the slim network is, in three runtimes."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hyperprune.cli.budgets import add_budget, budget_fields, in_flags, limits_nothing, refused_in_flags
from hyperprune.cli.parsing import MODEL, positive, size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hyperprune.cli.parsing import Commands, Parser

DESCRIPTION = """\
Time a dense network and its slim one in turns, in PyTorch as it is, compiled by
torch.compile, and in ONNX Runtime: latency (median, and where the middle half
of all runs lies), examples per second, peak memory.

The slim network is a checkpoint that save_pruned wrote. Or name a budget, such
as --macs 0.5, and the dense one is cut by magnitude on the spot: what comes out
is good for timing widths, not for predicting anything."""

EXAMPLES = """\
examples:
  hyperprune bench timm/resnet50 slim.safetensors
  hyperprune bench timm/resnet50 --macs 0.5 --divisor 16 --backends onnx --threads 2
  hyperprune bench timm/resnet50 --latency 0.5 --floors 'layer4.*=64' --backends eager --batch 1
  hyperprune bench timm/resnet50 slim.safetensors --batch 1 8 32 --runs 50 --json > bench.json
  hyperprune bench timm/resnet50 slim.safetensors --device cuda --batch 64

torch.compile takes minutes for each network and batch size. For figures worth
keeping, let the machine do nothing else."""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "bench",
        help="time a dense network against its slim one: PyTorch, torch.compile, ONNX Runtime",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("dense", metavar="DENSE", help=MODEL)
    parser.add_argument("slim", metavar="SLIM", type=Path, nargs="?", help="checkpoint written by save_pruned")
    add_budget(parser, "budget to cut to, instead of SLIM")
    _add_measuring(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=partial(_run, parser))


def _add_measuring(parser: Parser) -> None:
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--input", type=size, metavar="CxHxW", help="size of one input (default: the model's own)")
    measuring.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N", help="batch sizes")
    measuring.add_argument(
        "--backends",
        nargs="+",
        choices=("eager", "compile", "onnx"),
        default=["eager", "compile", "onnx"],
        help="runtimes to time",
    )
    measuring.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)")
    measuring.add_argument("--runs", type=positive, default=30, metavar="N", help="timed passes of each network")
    measuring.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")


def _run(parser: Parser, options: argparse.Namespace) -> None:
    _require(parser, options)
    from hyperprune.latency import compare_latency

    dense, slim, x = _networks(options)
    found = compare_latency(
        dense,
        slim,
        x,
        batches=options.batch,
        backends=options.backends,
        threads=options.threads,
        runs=options.runs,
        note=_say if sys.stderr.isatty() and not options.json else lambda message: None,
    )
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(found)
    for backend, reason in found.failures.items():
        print(f"{backend}: {reason}", file=sys.stderr)


def _require(parser: Parser, options: argparse.Namespace) -> None:
    """Insist on either a checkpoint or a budget."""
    asked = in_flags(budget_fields(options))
    if options.slim is not None and asked:
        parser.error(f"{options.slim} is cut already, so {asked} has nothing to do: leave one of the two out")
    if options.slim is None and limits_nothing(options):
        parser.error(
            "name the slim network's checkpoint, or a budget to cut to: --macs 0.5, --params, --activations, --latency"
        )


def _networks(options: argparse.Namespace) -> tuple[nn.Module, nn.Module, Tensor]:
    import torch

    from hyperprune.budget import Budget
    from hyperprune.checkpoint import load_pruned
    from hyperprune.errors import LatencyError
    from hyperprune.export import prune
    from hyperprune.loading import load_model

    if options.device == "cuda" and not torch.cuda.is_available():
        raise LatencyError("torch finds no CUDA device here. Leave out --device cuda.")
    torch.manual_seed(0)  # of the weights, by which a budget is met
    loaded = load_model(options.dense)
    if options.threads is not None:
        torch.set_num_threads(options.threads)  # a latency that is asked for is met as it is measured afterwards
    dense = loaded.model.eval().to(options.device)
    x = torch.randn(1, *(options.input or loaded.input_size), generator=torch.Generator().manual_seed(0))
    if options.slim is not None:
        slim = load_pruned(dense, options.slim)
    else:
        asked = budget_fields(options)
        with refused_in_flags(asked, options.dense):
            slim = prune(dense, x.to(options.device), Budget(**asked))
    return dense, slim.to(options.device), x


def _say(message: str) -> None:
    print(message, file=sys.stderr)
