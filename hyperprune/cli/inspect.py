"""``hyperprune inspect``: the coupling of a model, without training anything."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hyperprune.cli.parsing import MODEL, size

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Commands
    from hyperprune.coupling import CouplingMap

DESCRIPTION = """\
Trace a model (freshly built, with random weights), find out which channels live or
die together, and show it as a table: groups, who makes and reads them, the
MACs they carry, and what stays and why."""

EXAMPLES = """\
examples:
  hyperprune inspect torchvision/resnet18
  hyperprune inspect timm/convnext_atto --input 3x128x128
  hyperprune inspect timm/resnet50 --layer layer3.0.conv2
  hyperprune inspect torchvision/densenet121 --plot groups.png
  hyperprune inspect my_package.models:build_unet --json > coupling.json"""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "inspect",
        help="show which channels of a model live or die together, and what stays",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--input", type=size, default=None, metavar="CxHxW", help="size of one input (default: the model's own)"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--layer", default=None, metavar="NAME", help="explain one layer instead of showing the table")
    parser.add_argument(
        "--plot", type=Path, default=None, metavar="FILE", help="draw the groups too (.png, .svg or .pdf)"
    )
    shown.add_argument("--json", action="store_true", help="print the coupling as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import torch

    from hyperprune.hyper import hyperize
    from hyperprune.loading import load_model

    loaded = load_model(options.model)
    hyper = hyperize(loaded.model, torch.zeros(1, *(options.input or loaded.input_size)))
    if options.plot:
        _draw(hyper.coupling, options.plot, options.model)
    if options.json:
        print(hyper.coupling.dumps())
    elif options.layer:
        print(hyper.coupling.explain(options.layer))
    else:
        print(hyper.coupling)


def _draw(coupling: CouplingMap, path: Path, title: str) -> None:
    from hyperprune.plots import plot_groups, save_figure

    print(f"wrote {save_figure(plot_groups(coupling, title), path)}", file=sys.stderr)
