"""The command line: ``hyperprune <command>``.

A command is one function that adds its parser and names the function that runs it; ``COMMANDS``
lists them. Torch and the rest are imported when a command runs, so ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperprune.errors import HyperpruneError

if TYPE_CHECKING:
    from hyperprune.coupling import CouplingMap

    Commands = argparse._SubParsersAction["_Parser"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's own
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

DESCRIPTION = """\
Structured pruning for PyTorch: a trained network goes in, a slim one of your
own class comes out, proved equal to the network that was searched."""

EXAMPLES = """\
examples:
  hyperprune demo                    see it work: four minutes, two CPU cores, no download
  hyperprune demo --compare          the same beside Torch-Pruning
  hyperprune inspect timm/resnet50   which channels live or die together, and what stays
  hyperprune demo --help             every option of a command

in Python:
  from hyperprune import Budget, Search, export_pruned, hyperize

exit status:
  0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage, 130 interrupted"""

DEMO_DESCRIPTION = """\
Train a ResNet-20 on scikit-learn's handwritten digits, enlarged to 32 x 32,
hyperize it, search to a budget of MACs, export the slim network and fine-tune
it. The dense network trains for as many steps. A table and a picture compare
the two. Everything is written below the folder that --out names."""

DEMO_EXAMPLES = """\
examples:
  hyperprune demo
  hyperprune demo --macs 0.3 --out runs/thirty-percent
  hyperprune demo --compare --seed 1
  hyperprune demo --epochs 2 --search-epochs 2 --finetune-epochs 2     a quick look"""

INSPECT_DESCRIPTION = """\
Trace a model (freshly built, without weights), find out which channels live or
die together, and show it as a table: groups, who makes and reads them, the
MACs they carry, and what stays and why."""

INSPECT_EXAMPLES = """\
examples:
  hyperprune inspect torchvision/resnet18
  hyperprune inspect timm/convnext_atto --input 3x128x128
  hyperprune inspect timm/resnet50 --layer layer3.0.conv2
  hyperprune inspect my_package.models:build_unet --json > coupling.json"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command.

    Example:
        >>> build_parser().parse_args(["demo", "--macs", "0.3"]).macs
        0.3
    """
    parser = _Parser(prog="hyperprune", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"hyperprune {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the words after ``hyperprune``; those of the process when None.

    Raises:
        SystemExit: from argparse, with status 2 on wrong usage and 0 after ``--help`` or ``--version``.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except HyperpruneError as error:
        print(f"hyperprune: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\nhyperprune: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="prune a ResNet-20 for handwritten digits and show what came of it",
        description=DEMO_DESCRIPTION,
        epilog=DEMO_EXAMPLES,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("hyperprune-demo"), metavar="DIR", help="folder for the results")
    add("--macs", type=float, default=0.5, metavar="SHARE", help="budget: share of the dense MACs, 0 to 1")
    add("--epochs", type=_positive, default=12, metavar="N", help="epochs of the dense network before it all")
    add("--search-epochs", type=_positive, default=8, metavar="N", help="epochs of the search")
    add("--finetune-epochs", type=_positive, default=10, metavar="N", help="epochs of the slim network after")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights, order and shifts")
    add("--compare", action="store_true", help="also prune with Torch-Pruning, trained equally long")
    parser.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    from hyperprune.demo.run import STEPS_PER_EPOCH, DemoSettings, run_demo

    settings = DemoSettings(
        out=options.out,
        dense_steps=options.epochs * STEPS_PER_EPOCH,
        search_steps=options.search_epochs * STEPS_PER_EPOCH,
        finetune_steps=options.finetune_epochs * STEPS_PER_EPOCH,
        macs=options.macs,
        seed=options.seed,
        compare=options.compare,
    )
    run_demo(settings)


def _add_inspect(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show which channels of a model live or die together, and what stays",
        description=INSPECT_DESCRIPTION,
        epilog=INSPECT_EXAMPLES,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="timm/NAME, torchvision/NAME or package.module:factory")
    add("--input", type=_size, default=None, metavar="CxHxW", help="size of one input (default: the model's own)")
    add("--layer", default=None, metavar="NAME", help="explain one layer instead of showing the table")
    add("--json", action="store_true", help="print the coupling as JSON")
    parser.set_defaults(run=_run_inspect)


def _run_inspect(options: argparse.Namespace) -> None:
    import torch

    from hyperprune.hyper import hyperize
    from hyperprune.loading import load_model

    loaded = load_model(options.model)
    hyper = hyperize(loaded.model, torch.zeros(1, *(options.input or loaded.input_size)))
    if options.json:
        print(hyper.coupling.dumps())
    elif options.layer:
        print(_explain(hyper.coupling, options.layer))
    else:
        print(hyper.coupling)


def _explain(coupling: CouplingMap, layer: str) -> str:
    try:
        return coupling.explain(layer)
    except KeyError as error:
        raise HyperpruneError(error.args[0]) from error


COMMANDS: tuple[Callable[[Commands], None], ...] = (_add_demo, _add_inspect)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples and names every default."""


class _Parser(argparse.ArgumentParser):
    """A parser, and a parent of parsers, with that formatter."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _size(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is no size; write 3x224x224")
    return tuple(int(part) for part in parts)


def _version() -> str:
    try:
        return metadata.version("hyperprune")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
