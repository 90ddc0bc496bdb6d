"""Sizes written into forward(): find the attribute that holds the old number and set the new one.

The graph knows each number where it is used and the module that uses it; the labels give the new number. Whether
the repair was right is never assumed: the slim model is run and compared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container
from typing import Any

from torch import nn

from hyperprune.plan import Sizes, Spared, WidthPlan
from hyperprune.slim.structure import is_bare, is_standard

GEOMETRY = re.compile(
    r"kernel|strid|pad|dilation|shift|window|patch|grid|img|image|resolution|spatial|scale|ratio|depth|layer|level|step"
    r"|axis|axes|position|num_embeddings|(^|_)max(_|$)"
    r"|(^|_)(len|length|class|classes|labels|vocab|topk|batch)(_|$)|(num|n)_(tokens|queries|frames|clips|segments)"
)
"""Names of numbers that never follow channels, though they may equal one: a shift of 3 beside 3 heads, a max_len."""


CHANNELS = re.compile(
    r"dim|channel|feature|width|plane|hidden|emb|model|inner|filter|head|group|split|(^|_)(in|out|ch|chs|sizes)(_|$)"
    r"|^(c|d|f|h|hd|nf|ngf|ndf)\d*$"
)
"""Names of numbers that follow channels even where no forward pass needs them (``num_features``)."""


OF_EVERY_MODULE = frozenset(vars(nn.Module()))
OF_EINOPS = "axes_lengths"  # of its layers: the sizes of axes, by letter; their forward() reads a copy, _axes_lengths
NUMBERED = (int, tuple, list, dict)


def resize_(module: nn.Module, changes: list[tuple[Sizes, Sizes]], spared: Container[str] = ()) -> None:
    """Set every int (also inside tuples and lists) that equals an old size to its new size, in place.

    Attributes whose names begin with an underscore count as well, but for those that every module has.

    A list that equals the sizes of several parts takes all their new sizes, in order. A number that would have to
    become two different ones is left alone, and so is one whose name says that it is a place or a distance.

    Args:
        module: the module; layers of torch's own know their sizes from their tensors.
        changes: old and new sizes.
        spared: attributes that are to keep their numbers.

    Example:
        >>> block = nn.Module()
        >>> block.width, block.shape, block.splits = 8, (8, 16), [4, 4]
        >>> resize_(block, [(8, 5), (16, 16), ((4, 4), (2, 3))])
        >>> block.width, block.shape, block.splits
        (5, (5, 16), [2, 3])
    """
    for name, value in _resized(module, changes).items():
        if name not in spared:
            vars(module)[name] = value
            if f"_{name}" in vars(module) and name == OF_EINOPS:
                vars(module)[f"_{name}"] = tuple(value.items())


def doubtful(model: nn.Module, plan: WidthPlan) -> tuple[Spared, ...]:
    """Return the attributes that a plan changes, though their names do not speak of channels.

    Example:
        >>> from hyperprune.plan import Resize
        >>> block = nn.Module()
        >>> block.block_size, block.num_heads, block.classes = 8, 8, 8
        >>> doubtful(block, WidthPlan((), (Resize("", 8, 5),)))
        (Spared(module='', attribute='block_size'),)
    """
    return tuple(found for found in changed(model, plan) if not CHANNELS.search(found.attribute.lower()))


def changed(model: nn.Module, plan: WidthPlan) -> tuple[Spared, ...]:
    """Return the attributes that a plan changes, whatever their names."""
    found = [
        Spared(path, name)
        for path, changes in changes_by_module(plan).items()
        for name in _resized(model.get_submodule(path), changes)
        if Spared(path, name) not in plan.spared
    ]
    return tuple(found)


def changes_by_module(plan: WidthPlan) -> dict[str, list[tuple[Sizes, Sizes]]]:
    """Return the old and new sizes of each module, by its path."""
    found: dict[str, list[tuple[Sizes, Sizes]]] = defaultdict(list)
    for resize in plan.resizes:
        found[resize.module].append((resize.old, resize.new))
    return dict(found)


def _resized(module: nn.Module, changes: list[tuple[Sizes, Sizes]]) -> dict[str, Any]:
    """Return the attributes that change, with their new values."""
    if is_standard(module) and not is_bare(module):
        return {}
    sure = _unambiguous(changes)
    named = {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}
    new = {name: _renumber(value, sure) for name, value in named.items() if not GEOMETRY.search(name.lower())}
    if type(lengths := named.get(OF_EINOPS)) is dict:
        new[OF_EINOPS] = {letter: _renumber(size, sure) for letter, size in lengths.items()}
    return {name: value for name, value in new.items() if type(value) in NUMBERED and value != named[name]}


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
