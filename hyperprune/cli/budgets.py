"""The flags of a budget, the same in every command that takes one; stored by the names of ``Budget``'s fields."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hyperprune.cli.parsing import fraction, positive
from hyperprune.errors import BudgetError

if TYPE_CHECKING:
    from hyperprune.cli.parsing import Parser

LIMITS = {
    "macs": "--macs",
    "params": "--params",
    "activation_bytes": "--activations",
    "latency": "--latency",
    "latency_ms": "--latency",
}
WIDTHS = {
    "divisor": "--divisor",
    "floor": "--floor",
    "floors": "--floors",
    "ceilings": "--ceilings",
    "depth": "--depth",
}
FLAGS = {**LIMITS, **WIDTHS}
LEFT_OPEN = {"divisor": 1, "floor": 1, "depth": False}  # of a field where nothing is asked; others: None, or no pattern


def add_budget(parser: Parser, title: str) -> None:
    """Add the flags as a group of options; ``budget_fields`` reads them."""
    group = parser.add_argument_group(title)
    group.add_argument("--macs", type=amount, metavar="N", help="0.5: half the dense MACs; 500000000: that many")
    group.add_argument("--params", type=amount, metavar="N", help="the same for parameters")
    group.add_argument(
        "--activations", type=amount, dest="activation_bytes", metavar="N",
        help="the same for the most bytes of activations alive at one time, for one input",
    )  # fmt: skip
    group.add_argument(
        "--latency", type=latency, action=_OneOfTwo, metavar="X",
        help="0.5: half the dense latency; 20ms: that long; for one input, measured on this machine",
    )  # fmt: skip
    group.set_defaults(latency_ms=None)
    group.add_argument("--divisor", type=positive, default=1, metavar="N", help="widths become multiples of it")
    group.add_argument("--floor", type=positive, default=1, metavar="N", help="units that every group keeps at least")
    group.add_argument("--depth", action="store_true", help="residual branches may go entirely")
    for flag, how in (("--floors", "at least"), ("--ceilings", "at most")):
        group.add_argument(
            flag, type=bound, action=_Patterns, default={}, metavar="PATTERN=N",
            help=f"layers by name or glob that keep N channels {how}: 'layer4.*=64'; once for each pattern",
        )  # fmt: skip


def budget_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``Budget`` that the flags ask for."""
    return {name: getattr(options, name) for name in FLAGS}


def limits_nothing(options: argparse.Namespace) -> bool:
    """Say whether no resource is limited; divisor, floors and ceilings alone make no budget."""
    return all(getattr(options, name) is None for name in LIMITS)


def in_flags(fields: Mapping[str, Any]) -> str:
    """Write a budget as a user types it; what it leaves open is left out.

    Example:
        >>> in_flags({"macs": 0.5, "latency_ms": 20.0, "divisor": 1, "floors": {"layer4.*": 64, "conv1": 8}})
        "--macs 0.5 --latency 20ms --floors 'layer4.*=64' --floors conv1=8"
    """
    return shlex.join(word for name in FLAGS for word in _words(name, fields.get(name)))


@contextmanager
def refused_in_flags(fields: Mapping[str, Any], model: str) -> Iterator[None]:
    """Add to a budget's refusal, which speaks of Python's names, what was typed and where the layers are listed.

    Raises:
        BudgetError: as in the block.
    """
    try:
        yield
    except BudgetError as error:
        asked = in_flags(fields)
        raise BudgetError(f"{error} Asked for: {asked}. See the layers with: hyperprune inspect {model}") from error


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for pattern, channels in value.items() for word in (FLAGS[name], f"{pattern}={channels}")]
    if value is None or value == LEFT_OPEN.get(name):
        return []
    if value is True:
        return [FLAGS[name]]
    return [FLAGS[name], f"{value:.12g}ms" if name == "latency_ms" else str(value)]


def amount(text: str) -> float | int:
    """Read a fraction (``0.5``) or a count (``500000000``)."""
    try:
        return int(text) if text.isdecimal() and int(text) else fraction(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text} is neither a fraction above 0 and at most 1 (0.5: half of the dense network's) "
            "nor a whole number above 0 (500000000: that many)"
        ) from None


def latency(text: str) -> dict[str, float | None]:
    """Read a fraction of the dense latency (``0.5``) or milliseconds (``20ms``): two fields of ``Budget``.

    Example:
        >>> latency("20ms"), latency("0.5")
        ({'latency': None, 'latency_ms': 20.0}, {'latency': 0.5, 'latency_ms': None})
    """
    try:
        if text.endswith("ms"):
            return {"latency": None, "latency_ms": _above_zero(text.removesuffix("ms"))}
        return {"latency": fraction(text), "latency_ms": None}
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text} is neither a fraction above 0 and at most 1 (0.5: half of the dense latency) "
            "nor milliseconds above 0 (20ms)"
        ) from None


def bound(text: str) -> tuple[str, int]:
    """Read how many channels bound the layers of a name or glob.

    Example:
        >>> bound("layer4.*=64")
        ('layer4.*', 64)
    """
    pattern, _, channels = text.rpartition("=")
    if not pattern or not channels.isdecimal() or not int(channels):
        raise argparse.ArgumentTypeError(
            f"{text} is not PATTERN=N; write a layer's name or a glob, and a number of channels above 0: 'layer4.*=64' "
            "(hyperprune inspect MODEL lists the layers)"
        )
    return pattern, int(channels)


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


class _OneOfTwo(argparse.Action):
    """Stores a value under the name that goes with its unit, and nothing under the other one."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        for name, value in values.items():
            setattr(namespace, name, value)


class _Patterns(argparse.Action):
    """Gathers patterns and their numbers, each pattern once."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        (pattern, channels), known = values, getattr(namespace, self.dest) or {}
        if known.get(pattern, channels) != channels:
            raise argparse.ArgumentError(self, f"{pattern} is given {known[pattern]} and {channels}; leave one out")
        setattr(namespace, self.dest, {**known, pattern: channels})
