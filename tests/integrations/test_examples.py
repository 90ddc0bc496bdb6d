"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from hyperprune.plan import plans_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "library"), [("accelerate_loop", "accelerate"), ("transformers_trainer", "transformers")]
)
def test_the_example_reaches_its_budget(name: str, library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    left = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert left["search"].done
    assert left["search"].progress().macs_fraction <= 0.5
    assert len(plans_of(left["slim"])) == 1
