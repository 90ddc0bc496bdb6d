"""What a part of a random network is: a small module that says by itself which sizes it may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import nn

Shape = tuple[int, ...]
Options = dict[str, Any]
Item = TypeVar("Item")
VECTOR, TOKENS, IMAGE = 2, 3, 4
"""Numbers of axes: ``[batch, channels]``, ``[batch, tokens, channels]``, ``[batch, channels, height, width]``."""


class Choices:
    """Makes choices out of a list of numbers: zeros pick what is listed first, so list the plain option first."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def of(self, options: Sequence[Item]) -> Item:
        """Return one of the options."""
        number = self._numbers.pop(0) if self._numbers else 0
        return options[number % len(options)]


class Part(nn.Module):
    """A part is built from the shapes of what it reads and its options, and from nothing else.

    Attributes:
        ranks: numbers of axes that its (first) operand may have.
    """

    ranks: ClassVar[tuple[int, ...]] = (IMAGE,)

    def __init__(self, *shapes: Shape, **options: Any) -> None:
        super().__init__()
        self.make(*shapes, **options)

    def make(self, *shapes: Shape, **options: Any) -> None:
        """Create the layers; nothing by default."""

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        """Choose options for a first operand of this shape; None where none fit."""
        return {}

    @classmethod
    def partners(cls, shape: Shape, others: Mapping[int, Shape]) -> list[int] | None:
        """Return which values may be the second operand; None where the part takes only one."""
        return None


PARTS: dict[str, type[Part]] = {}


def part(name: str) -> Callable[[type[Part]], type[Part]]:
    """Enter a part into the table, under the name that descriptions use."""

    def enter(kind: type[Part]) -> type[Part]:
        PARTS[name] = kind
        return kind

    return enter


def channel_axis(rank: int) -> int:
    """Return the axis along which channels lie."""
    return 2 if rank == TOKENS else 1


def channels(shape: Shape) -> int:
    """Return how many channels a value has."""
    return shape[channel_axis(len(shape))]


def divisors(number: int, *candidates: int) -> list[int]:
    """Return the candidates that divide a number and are not the number itself."""
    return [c for c in candidates if number % c == 0 and c < number]


def dense(rank: int, entering: int, leaving: int, bias: bool = True) -> nn.Module:
    """Return the layer that mixes channels position by position."""
    return nn.Conv2d(entering, leaving, 1, bias=bias) if rank == IMAGE else nn.Linear(entering, leaving, bias=bias)
