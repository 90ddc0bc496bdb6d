"""Sizes written into forward(): find the attribute that holds the old number and set the new one.

The graph knows each number where it is used and the module that uses it; the labels give the new number. Whether
the repair was right is never assumed: the slim model is run and compared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from hyperprune.plan import Sizes
from hyperprune.slim.structure import is_bare, is_standard

GEOMETRY = re.compile(
    r"kernel|strid|pad|dilation|shift|window|patch|grid|img|image|resolution|spatial|scale|ratio|depth|layer|level|step"
    r"|axis|axes"
    r"|(^|_)(len|length|class|classes|labels|vocab|topk|batch)(_|$)|(num|n)_(tokens|queries|frames|clips|segments)"
)
"""Names of numbers that never follow channels, though they may equal one: a shift of 3 beside 3 heads, a max_len."""


def resize_(module: nn.Module, changes: list[tuple[Sizes, Sizes]]) -> None:
    """Set every int (also inside tuples and lists) that equals an old size to its new size, in place.

    A list that equals the sizes of several parts takes all their new sizes, in order. A number that would have to
    become two different ones is left alone, and so is one whose name says that it is a place or a distance.

    Example:
        >>> block = nn.Module()
        >>> block.width, block.shape, block.splits = 8, (8, 16), [4, 4]
        >>> resize_(block, [(8, 5), (16, 16), ((4, 4), (2, 3))])
        >>> block.width, block.shape, block.splits
        (5, (5, 16), [2, 3])
    """
    if is_standard(module) and not is_bare(module):
        return
    sure = _unambiguous(changes)
    for name, value in vars(module).items():
        if not name.startswith("_") and not GEOMETRY.search(name.lower()):
            vars(module)[name] = _renumber(value, sure)


def _unambiguous(changes: list[tuple[Sizes, Sizes]]) -> dict[Sizes, Sizes]:
    """Return the new size for each old one that has only one."""
    wanted: dict[Sizes, set[Sizes]] = defaultdict(set)
    for old, new in changes:
        if new != old:
            wanted[old].add(new)
    return {old: news.pop() for old, news in wanted.items() if len(news) == 1}


def _renumber(value: Any, sure: dict[Sizes, Sizes]) -> Any:
    if type(value) is int:
        return sure.get(value, value)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        together = sure.get(tuple(value))
        return type(value)(sure.get(item, item) for item in value) if together is None else type(value)(together)
    return value
