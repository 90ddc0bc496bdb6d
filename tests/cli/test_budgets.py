"""The flags of a budget: what each asks for, and what is said when it cannot be read."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from typing import Any

import pytest

from hyperprune import Budget, cli
from hyperprune.cli.budgets import FLAGS, budget_fields, in_flags, limits_nothing
from hyperprune.training import TrainingSettings

PRUNE = ["prune", "timm/resnet18", "--data", "sklearn/digits", "--out", "run"]
BENCH = ["bench", "timm/resnet18"]
NOTHING = {
    "macs": None, "params": None, "activation_bytes": None, "latency": None, "latency_ms": None,
    "divisor": 1, "floor": 1, "floors": {}, "ceilings": {}, "depth": False,
}  # fmt: skip


def read(words: str, command: list[str] = PRUNE) -> argparse.Namespace:
    return cli.build_parser().parse_args([*command, *shlex.split(words)])


def refusal(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        read(words)
    assert stop.value.code == cli.EXIT_USAGE
    return capsys.readouterr().err


@pytest.mark.parametrize("command", [PRUNE, BENCH], ids=["prune", "bench"])
@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("--macs 0.5", {"macs": 0.5}),
        ("--macs 500000000", {"macs": 500_000_000}),
        ("--macs 1.0", {"macs": 1.0}),
        ("--params 1000", {"params": 1000}),
        ("--activations 0.25", {"activation_bytes": 0.25}),
        ("--activations 65536", {"activation_bytes": 65536}),
        ("--latency 0.5", {"latency": 0.5}),
        ("--latency 20ms", {"latency_ms": 20.0}),
        ("--latency 0.5ms", {"latency_ms": 0.5}),
        ("--latency 20ms --latency 0.5", {"latency": 0.5}),
        ("--latency 0.5 --latency 20ms", {"latency_ms": 20.0}),
        ("--divisor 8", {"divisor": 8}),
        ("--floor 4", {"floor": 4}),
        ("--floors 'layer4.*=64'", {"floors": {"layer4.*": 64}}),
        ("--floors 'layer4.*=64' --floors conv1=8", {"floors": {"layer4.*": 64, "conv1": 8}}),
        ("--floors conv1=8 --floors conv1=8", {"floors": {"conv1": 8}}),
        ("--ceilings conv1=32 --floors conv1=8", {"floors": {"conv1": 8}, "ceilings": {"conv1": 32}}),
        ("--depth --macs 0.3", {"depth": True, "macs": 0.3}),
        ("", {}),
    ],
)
def test_each_flag_asks_for_a_field_in_every_command(command: list[str], words: str, asked: dict[str, Any]) -> None:
    found = budget_fields(read(words, command))
    assert found == {**NOTHING, **asked}
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in {**NOTHING, **asked}.items()
    }, "0.5 is a fraction and 1 a count: the type matters"


def test_a_command_line_does_not_leak_into_the_next_one() -> None:
    parser = cli.build_parser()
    assert parser.parse_args([*PRUNE, "--floors", "conv1=8"]).floors == {"conv1": 8}
    assert parser.parse_args(PRUNE).floors == {}


def test_every_flag_has_its_setting_and_the_default_of_its_field() -> None:
    assert set(FLAGS) == {field.name for field in fields(Budget)}
    assert set(FLAGS) <= {field.name for field in fields(TrainingSettings)}
    assert {name: getattr(Budget(macs=0.5), name) for name in FLAGS} == {**NOTHING, "macs": 0.5}


@pytest.mark.parametrize(
    "words",
    [
        "--macs 0.5",
        "--macs 1.0 --params 1 --activations 0.125 --latency 1.0 --divisor 8 --floor 2",
        "--latency 20ms",
        "--latency 0.125ms",
        "--macs 0.5 --floors 'layer4.*=64' --floors conv1=8 --ceilings 'layer[12]=32'",
    ],
)
def test_a_budget_is_written_as_it_was_typed(words: str) -> None:
    assert in_flags(budget_fields(read(words))) == words


@pytest.mark.parametrize("words", ["", "--divisor 8", "--floor 2 --floors conv1=8 --ceilings conv1=9"])
def test_bounds_on_widths_alone_limit_nothing(words: str) -> None:
    assert limits_nothing(read(words))


@pytest.mark.parametrize("words", ["--macs 0.5", "--params 1", "--activations 0.5", "--latency 0.5", "--latency 5ms"])
def test_each_resource_is_enough_for_a_budget(words: str) -> None:
    assert not limits_nothing(read(words))
    Budget(**budget_fields(read(words)))


@pytest.mark.parametrize("flag", ["--macs", "--params", "--activations"])
@pytest.mark.parametrize("value", ["0", "0.0", "1.5", "-1", "-0.5", "half", "nan", "inf", "1e9", "50%", "", "²"])
def test_an_amount_that_is_none_is_refused_with_both_ways_to_say_one(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(f"{flag}={value}" if value else f"{flag} ''", capsys)
    assert f"argument {flag}: {value}" in said
    assert "0.5: half" in said
    assert "500000000: that many" in said


@pytest.mark.parametrize("value", ["0", "20", "1.5", "-1", "0ms", "-5ms", "ms", "nanms", "infms", "20s", "fast", "nan"])
def test_a_latency_that_is_none_is_refused_with_both_ways_to_say_one(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(f"--latency={value}", capsys)
    assert f"argument --latency: {value}" in said
    assert "0.5: half of the dense latency" in said
    assert "20ms" in said


@pytest.mark.parametrize("flag", ["--floors", "--ceilings"])
@pytest.mark.parametrize("value", ["layer4", "layer4=", "=64", "layer4=0", "layer4=-1", "layer4=0.5", "layer4=many"])
def test_a_bound_that_is_none_is_refused_with_an_example(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(f"{flag} {value}", capsys)
    assert f"argument {flag}: {value} is not PATTERN=N" in said
    assert "'layer4.*=64'" in said
    assert "hyperprune inspect" in said


def test_two_numbers_for_one_pattern_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal("--macs 0.5 --floors conv1=8 --floors conv1=16", capsys)
    assert "argument --floors: conv1 is given 8 and 16; leave one out" in said


@pytest.mark.parametrize("words", ["--divisor 0", "--floor 0", "--floor 0.5", "--floor -2"])
def test_divisor_and_floor_are_whole_numbers_from_1(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"argument {words.split()[0]}: " in refusal(words, capsys)
