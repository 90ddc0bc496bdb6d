"""What people read: the table of a map, to the letter, and the explanation of a layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperprune.coupling import CouplingMap, Frozen, Group, Site
from hyperprune.coupling.map import Tensor
from hyperprune.coupling.show import carried_macs
from hyperprune.labels.reasons import FOLLOWS, REMEDIES

MAKERS = ("stem", "b.conv2", "c.conv2", "d.conv2", "e.conv2")
MAP = CouplingMap(
    groups=(
        Group("stem", 0, 2, 1, MAKERS, ("b.conv1", "fc"), ("aten.add in 'b'", "aten.add in 'c'")),
        Group("b.conv1", 2, 3, 4, ("b.conv1",), ("b.conv2",), ()),
        Group("tokens", 5, 2, 1, (), (), ()),
    ),
    sites=(
        Site("stem.weight", 0, "writes", (0, 1)),
        Site("stem.bias", 0, "along", (0, 1)),
        Site("b.conv1.weight", 1, "reads", (0, 1)),
        Site("b.conv1.weight", 0, "writes", (2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)),
        Site("mix.weight", 0, "writes", (0, 1, -1, -1)),
        Site("mix.weight", 1, "reads", (0, 1, -1, 2)),
        Site("never_counted.weight", 0, "along", (5, 6)),
    ),
    frozen=(Frozen("fc", 10, "is the model's output", "output"), Frozen("b.conv2", 3, "is shared", "")),
    tensors=(
        Tensor("stem.weight", (2, 3, 3, 3), 30_000),
        Tensor("stem.bias", (2,), 0),
        Tensor("b.conv1.weight", (12, 2, 1, 1), 10_000),
        Tensor("mix.weight", (4, 4), 1_000),
    ),
    unreached=("a", "b", "c", "d", "e"),
)
STEM, CONV1, MIX = 2 * 3 * 3 * 3 * 30_000, 12 * 2 * 10_000, 4 * 4 * 1_000
TABLE = """\
                          3 groups, 7 units, 1.9 M MACs
┏━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┓
┃ group   ┃ units ┃ made by                         ┃ read by     ┃ MACs carried ┃
┡━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━━┩
│ stem    │     2 │ stem, b.conv2, c.conv2, +2 more │ b.conv1, fc │       99.8 % │
│ b.conv1 │ 3 x 4 │ b.conv1                         │ b.conv2     │       13.0 % │
│ tokens  │     2 │                                 │             │        0.0 % │
└─────────┴───────┴─────────────────────────────────┴─────────────┴──────────────┘
stays: fc, 10 channels: is the model's output (output)
stays: b.conv2, 3 channels: is shared
not reached by the example inputs, left as they are: a, b, c, +2 more"""


def test_the_table_to_the_letter() -> None:
    lines = [line.rstrip() for line in str(MAP).splitlines()]
    assert "\n".join(lines) == TABLE


def test_a_map_without_macs_frozen_channels_or_unreached_parameters_says_nothing_of_them() -> None:
    text = str(replace(MAP, tensors=(), frozen=(), unreached=()))
    assert "3 groups, 7 units, 0.0 M MACs" in text
    assert [line.rstrip(" │").rpartition(" ")[2] for line in text.splitlines() if line.startswith("│")] == ["-"] * 3
    assert "stays" not in text
    assert "not reached" not in text
    assert text.endswith("┘")


def test_what_must_be_equally_wide_is_said_once_with_a_remedy() -> None:
    why = ((FOLLOWS, "aten.reshape in 'attn'"),)
    tied = replace(MAP, groups=tuple(replace(group, because=why) for group in MAP.groups[:2]))
    assert f"\ntied: stem, b.conv1: {FOLLOWS}: aten.reshape in 'attn'\nstays: fc" in str(tied)
    assert tied.explain("c.conv2").endswith(
        f"  Not free of each other: {FOLLOWS}: aten.reshape in 'attn'.\n  What helps: {REMEDIES[FOLLOWS]}."
    )


def test_three_names_are_shown_without_more() -> None:
    assert str(replace(MAP, unreached=("a", "b", "c"))).endswith("left as they are: a, b, c")
    assert str(replace(MAP, unreached=("a", "b", "c", "d"))).endswith("left as they are: a, b, c, +1 more")


def test_a_table_as_wide_as_a_page_is_not_broken() -> None:
    """Four columns of thirty letters fit on a line."""
    group = replace(MAP.groups[0], name="g" * 30, makers=("m" * 30,), readers=("r" * 30,))
    assert f"│ {'g' * 30} │     2 │ {'m' * 30} │ {'r' * 30} │" in str(replace(MAP, groups=(group, *MAP.groups[1:])))


def test_a_group_carries_what_would_vanish_with_it() -> None:
    """Half of mix's rows and half of its columns are the stem's: a quarter of it would be left."""
    assert carried_macs(MAP) == [STEM + CONV1 + MIX * 3 // 4, CONV1 + MIX // 4, 0]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            "stem",
            "stem makes group 'stem': 2 units of 1 channel.\n"
            "  They live or die together with those of b.conv2, c.conv2, d.conv2, e.conv2.\n"
            "  Read, and gated, by b.conv1, fc.\n"
            "  Tied by aten.add in 'b'.\n"
            "  Tied by aten.add in 'c'.",
        ),
        (
            "b.conv1",
            "b.conv1 reads 2 units of group 'stem', made by stem, b.conv2, c.conv2, +2 more.\n"
            "b.conv1 makes group 'b.conv1': 3 units of 4 channels.\n"
            "  Read, and gated, by b.conv2.",
        ),
        ("tokens", "tokens makes group 'tokens': 2 units of 1 channel."),
        (
            "fc",
            "fc reads 2 units of group 'stem', made by stem, b.conv2, c.conv2, +2 more.\n"
            "10 channels made by fc stay: is the model's output: output.\n"
            "  What helps: where nobody needs this output, hyperize a wrapper whose forward() leaves it out.",
        ),
        (
            "b.conv2",
            "b.conv2 makes group 'stem': 2 units of 1 channel.\n"
            "  They live or die together with those of stem, c.conv2, d.conv2, e.conv2.\n"
            "  Read, and gated, by b.conv1, fc.\n"
            "  Tied by aten.add in 'b'.\n"
            "  Tied by aten.add in 'c'.\n"
            "b.conv2 reads 3 units of group 'b.conv1', made by b.conv1.\n"
            "3 channels made by b.conv2 stay: is shared.",
        ),
    ],
    ids=["shared", "wide", "bare", "output", "stays"],
)
def test_a_layer_is_explained_to_the_letter(layer: str, text: str) -> None:
    assert MAP.explain(layer) == text


def test_an_unknown_layer_is_answered_by_those_that_are_known() -> None:
    known = "b.conv1, b.conv2, c.conv2, d.conv2, e.conv2, fc, stem"
    with pytest.raises(KeyError) as caught:
        MAP.explain("nowhere")
    assert caught.value.args == (f"the analysis met no layer 'nowhere'; it met: {known}",)


def test_an_unknown_group_is_answered_by_those_that_exist() -> None:
    with pytest.raises(KeyError) as caught:
        MAP.group("nowhere")
    assert caught.value.args == ("no group 'nowhere'; there are: stem, b.conv1, tokens",)
