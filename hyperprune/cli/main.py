"""The parser of all commands, and the way from a command's end to an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from hyperprune.cli import bench, demo, export, inspect, prune, report
from hyperprune.cli.parsing import Parser
from hyperprune.errors import HyperpruneError

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Commands

COMMANDS: tuple[Callable[[Commands], None], ...] = (demo.add, prune.add, inspect.add, report.add, export.add, bench.add)

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
  hyperprune report timm/resnet50 slim.safetensors --html report.html
  hyperprune demo --help             every option of a command

in Python:
  from hyperprune import Budget, Search, export_pruned, hyperize

exit status:
  0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command.

    Example:
        >>> build_parser().parse_args(["demo", "--macs", "0.3"]).macs
        0.3
    """
    parser = Parser(prog="hyperprune", description=DESCRIPTION, epilog=EXAMPLES)
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
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # package.module:factory in the user's folder, as `python -m hyperprune` finds it
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


def _version() -> str:
    try:
        return metadata.version("hyperprune")
    except metadata.PackageNotFoundError:
        return "(not installed)"
