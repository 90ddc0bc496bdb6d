"""What the parsers of all commands share: layout of the help, and types of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]


MODEL = "timm/NAME, torchvision/NAME or package.module:factory; its arguments after commas: timm/NAME,num_classes=5"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples and names every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or isinstance(action.default, bool) or action.default == {}
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser, and a parent of parsers, with that formatter."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)
        self._words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember the words."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        """Return which of some options were given, be it their default: the words are parsed without defaults."""
        options = self.parse_args(self._words, argparse.Namespace(**dict.fromkeys(names)))
        return {name: value for name in names if (value := getattr(options, name)) is not None}


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def fraction(text: str) -> float:
    """Read a number above 0, at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return number


def image_size(text: str) -> tuple[int, ...]:
    """Read the size of an image: channels, height, width."""
    found = size(text)
    if len(found) != 3:
        raise argparse.ArgumentTypeError(f"{text} is no size of an image; write 3x224x224")
    return found


def size(text: str) -> tuple[int, ...]:
    """Read a size such as ``3x224x224``."""
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is no size; write 3x224x224")
    return tuple(int(part) for part in parts)
