"""The command line: ``hyperprune <command>``, one module a command.

A command's module holds its texts, ``add(commands)``, which adds its parser, and the function that runs it. Torch
and the rest are imported when a command runs, so ``--help`` stays quick.
"""

from hyperprune.cli.main import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, build_parser, main

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USAGE", "build_parser", "main"]
