"""``hyperprune demo``: see it work, without data of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hyperprune.cli.parsing import positive

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Commands

DESCRIPTION = """\
Train a ResNet-20 on scikit-learn's handwritten digits, enlarged to 32 x 32,
hyperize it, search to a budget of MACs, export the slim network and fine-tune
it. The dense network trains for as many steps. A table and a picture compare
the two. Everything is written below the folder that --out names."""

EXAMPLES = """\
examples:
  hyperprune demo
  hyperprune demo --macs 0.3 --out runs/thirty-percent
  hyperprune demo --compare --seed 1
  hyperprune demo --epochs 2 --search-epochs 2 --finetune-epochs 2     a quick look"""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "demo",
        help="prune a ResNet-20 for handwritten digits and show what came of it",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("hyperprune-demo"), metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--macs", type=float, default=0.5, metavar="SHARE", help="budget: share of the dense MACs, 0 to 1"
    )
    parser.add_argument(
        "--epochs", type=positive, default=12, metavar="N", help="epochs of the dense network before it all"
    )
    parser.add_argument("--search-epochs", type=positive, default=8, metavar="N", help="epochs of the search")
    parser.add_argument(
        "--finetune-epochs", type=positive, default=10, metavar="N", help="epochs of the slim network after"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights, order and shifts")
    parser.add_argument("--compare", action="store_true", help="also prune with Torch-Pruning, trained equally long")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
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
