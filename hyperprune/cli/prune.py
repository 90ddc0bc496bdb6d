"""``hyperprune prune``: for people without a training loop of their own."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperprune.cli.budgets import FLAGS, LIMITS, add_budget, in_flags, limits_nothing, refused_in_flags
from hyperprune.cli.parsing import MODEL, fraction, image_size, positive
from hyperprune.errors import TrainingError

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Commands, Parser
    from hyperprune.training import TrainingSettings

DESCRIPTION = """\
Prune a network by name, on a folder of images, without a line of code.

The dense network is measured (and trained first, if its weights do not know
these classes), searched down to the budget while it trains, exported and proved
equal, fine-tuned, and measured again. The folder that --out names holds:
  slim.safetensors      the slim network; load_pruned(...) reads it
  dense.safetensors     the network it came from
  searched.safetensors  the slim network before fine-tuning
  report.json           every number"""

EXAMPLES = """\
images:
  DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg: then one
  image in five is held out for testing. sklearn/digits needs no files.

examples:
  hyperprune prune timm/resnet18 --data sklearn/digits --macs 0.5 --epochs 6 --out run
  hyperprune prune timm/resnet50 --pretrained --data flowers --macs 0.3 --epochs 20 --amp bf16 --workers 8 --out run
  hyperprune prune torchvision/mobilenet_v2 --weights mine.safetensors --data photos --params 1000000 --out run
  hyperprune prune timm/convnext_atto --data photos --macs 0.5 --divisor 8 --optimizer adamw --out run
  hyperprune prune timm/resnet18 --data photos --latency 20ms --activations 0.5 --floors 'layer4.*=64' --out run
  hyperprune prune my_package.models:build_net --data photos --macs 0.5 --out run

Ctrl-C finishes the step, saves, and says how to go on:
  hyperprune prune --resume --out run            to the same result"""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "prune",
        help="train, search and fine-tune a network on a folder of images, down to a budget",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=MODEL,
    )
    parser.add_argument("--data", metavar="DIR", help="folder of images, or sklearn/digits")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out; its settings are there")
    add_budget(parser, "budget (at least one of the first four; all that is given is met)")
    _add_training(parser)
    _add_machine(parser)
    parser.set_defaults(run=partial(_run, parser))


def _add_training(parser: Parser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=positive, default=5, metavar="N", help="passes over the images, search and fine-tuning"
    )
    training.add_argument(
        "--search-fraction", type=fraction, default=0.33, metavar="SHARE", help="share of --epochs for the search"
    )
    training.add_argument(
        "--epochs-dense", type=count, metavar="N",
        help="passes for the dense network before (default: 0 if trained weights fit, else --epochs)",
    )  # fmt: skip
    start = training.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="start from the library's weights (a download)")
    start.add_argument("--weights", metavar="FILE", help="start from the weights in a .safetensors file")
    training.add_argument(
        "--input", type=image_size, dest="input_size", metavar="CxHxW", help="size of one image (default: its own)"
    )
    training.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per step")
    training.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="adamw suits transformers")
    training.add_argument(
        "--lr", type=rate, metavar="X", help="peak learning rate (default: 0.02 for sgd, 0.0005 for adamw)"
    )
    training.add_argument(
        "--no-distill", action="store_false", dest="distill", default=True,
        help="do without the dense network's answers in the loss",
    )  # fmt: skip
    training.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision")
    training.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights, order and augmentation")


def _add_machine(parser: Parser) -> None:
    machine = parser.add_argument_group("machine and output")
    machine.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...")
    machine.add_argument("--workers", type=count, default=0, metavar="N", help="processes that load images")
    machine.add_argument(
        "--save-every", type=positive, metavar="STEPS", help="steps between two saved states (default: an epoch)"
    )
    machine.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    machine.add_argument("--json", action="store_true", help="print report.json instead of the table")


def count(text: str) -> int:
    """Read an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def rate(text: str) -> float:
    """Read a number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _run(parser: Parser, options: argparse.Namespace) -> None:
    if not options.resume:
        _require(parser, options)
    from rich.console import Console

    from hyperprune.training import Machine, Screen, run_prune, summary

    settings = _settings(parser, options)
    screen = Screen(Console(stderr=True), options.quiet)
    machine = Machine(options.device, options.workers, options.save_every)
    try:
        with refused_in_flags(vars(settings), settings.model):
            content = run_prune(settings, options.out, screen, machine, resume=options.resume)
    except KeyboardInterrupt:
        _say_how_to_go_on(options)
        raise
    if options.json:
        print(json.dumps(content, indent=2))
    elif not options.quiet:
        console = Console()
        console.print(summary(content))
        console.print(f"the slim network: {content['load']}", highlight=False, markup=False, soft_wrap=True)


def _require(parser: Parser, options: argparse.Namespace) -> None:
    missing = [name for name, value in (("MODEL", options.model), ("--data", options.data)) if value is None]
    if limits_nothing(options):
        missing.append(f"a budget: {' or '.join(dict.fromkeys(LIMITS.values()))}")
    if missing:
        parser.error(f"missing: {', '.join(missing)} (for a new run; an old one goes on with --resume)")


def _settings(parser: Parser, options: argparse.Namespace) -> TrainingSettings:
    """Return what is asked; when resuming, what the run was begun with, which nothing may contradict."""
    from hyperprune.training import TrainingSettings

    names = [field.name for field in fields(TrainingSettings)]
    if not options.resume:
        return TrainingSettings(**{name: getattr(options, name) for name in names})
    begun, given = TrainingSettings.read(options.out), parser.given(names)
    for name, value in given.items():
        if value != getattr(begun, name):
            raise TrainingError(
                f"the run in {options.out} was begun with {_told(name, vars(begun))}, not {_told(name, given)}. Leave "
                "the settings out to go on with it, or start another run in another folder."
            )
    return begun


def _told(name: str, settings: Mapping[str, Any]) -> str:
    """Write a setting; one of the budget's together with the whole budget, for latency has two names."""
    return (in_flags(settings) if name in FLAGS else "") or f"{FLAGS.get(name, name)} {settings[name]}"


def _say_how_to_go_on(options: argparse.Namespace) -> None:
    from hyperprune.training import started

    if not started(options.out):
        return
    words = ["hyperprune", "prune", "--resume", "--out", str(options.out)]
    for name in ("device", "workers", "save_every"):
        value = getattr(options, name)
        if value not in (None, 0, "auto"):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [f"--{name}" for name in ("quiet", "json") if getattr(options, name)]
    print(f"\nhyperprune: saved. Go on with:\n  {shlex.join(words)}", file=sys.stderr)
