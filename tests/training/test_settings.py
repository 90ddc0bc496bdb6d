"""Settings: the budget they hold, and their way to disk and back, also from older versions."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hyperprune import Budget, HyperpruneError
from hyperprune.training import TrainingSettings
from hyperprune.training.settings import FILE

# not in the first settings
LATER = ("activation_bytes", "latency", "latency_ms", "floor", "floors", "ceilings", "depth")
BUDGETS: list[dict[str, Any]] = [
    {"macs": 0.5},
    {"macs": 500, "params": 1.0, "divisor": 8},
    {"activation_bytes": 0.5, "floors": {"layer4.*": 64, "conv1": 8}},
    {"activation_bytes": 65536, "ceilings": {"conv1": 32}},
    {"latency": 0.5, "floor": 4},
    {"latency_ms": 20.0},
]


@pytest.mark.parametrize("asked", BUDGETS, ids=lambda asked: "-".join(asked))
def test_the_budget_is_what_was_asked_also_after_a_journey_to_disk(asked: dict[str, Any], tmp_path: Path) -> None:
    settings = TrainingSettings("timm/resnet18", "photos", input_size=(3, 32, 32), **asked)
    assert settings.budget() == Budget(**asked)
    settings.write(tmp_path)
    again = TrainingSettings.read(tmp_path)
    assert again == settings
    assert repr(again) == repr(settings), "a count stays a count, a fraction a fraction"
    assert hash(again) == hash(settings)


def test_settings_of_an_older_version_are_read_as_it_meant_them(tmp_path: Path) -> None:
    settings = TrainingSettings("timm/resnet18", "photos", macs=0.5, divisor=8, seed=3)
    old = {name: value for name, value in settings.to_json().items() if name not in LATER}
    assert len(old) == len(fields(TrainingSettings)) - len(LATER)
    (tmp_path / FILE).write_text(json.dumps(old))
    assert TrainingSettings.read(tmp_path) == settings


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "empty budget"),
        ({"floors": {"conv1": 8}}, "empty budget"),
        ({"activation_bytes": 1.5}, "activation_bytes=1.5 is outside"),
        ({"latency": 0.5, "latency_ms": 20}, "give only one"),
        ({"macs": 0.5, "floors": {"conv1": 0}}, "conv1"),
    ],
)
def test_a_budget_that_is_none_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperpruneError, match=message):
        TrainingSettings("timm/resnet18", "photos", **asked).budget()


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"model": "a"}', '{"model": "a", "data": "b", "input_size": null, "flip": 1}']
)
def test_what_are_no_settings_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(HyperpruneError, match="cannot be read"):
        TrainingSettings.read(tmp_path)
