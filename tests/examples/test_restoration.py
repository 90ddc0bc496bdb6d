"""The restoration benchmark: equal courses, rows that are not run twice, a page that says what failed."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import restoration, schedule
from examples.networks import DnCNN

pytest.importorskip("skimage", reason="scikit-image is not installed")

TASK = replace(restoration.TASKS["dncnn"], dense_steps=2, search_steps=4, converge_steps=2, patch=16, batch_size=2)
QUALITY = {"Set12": {"psnr": 30.0, "ssim": 0.9}}


def result(row: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"task": "dncnn", "row": row, "seed": seed, "macs_fraction": 0.4, "params_fraction": 0.4, **more}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """A run on random images, with a network of four layers."""
    images = [torch.randint(256, (1, 24, 24), dtype=torch.uint8) for _ in range(3)]
    noisy = [(image[None] / 255, image[None] / 255) for image in images]
    monkeypatch.setattr(restoration, "training_pairs", lambda task, data: [(i, i) for i in images])
    monkeypatch.setattr(restoration, "test_sets", lambda task, data: {"Set12": noisy[:1]})
    monkeypatch.setitem(restoration.NETWORKS, "dncnn", lambda: DnCNN(4, 12))
    arguments = ["--results", str(tmp_path / "results.json"), "--cache", str(tmp_path), "--seeds", "0"]
    return restoration.parse([*arguments, "--rows", "dense, trained as long", "hyperprune, search"])


def test_the_same_seed_gives_the_same_course() -> None:
    image = torch.randint(256, (1, 24, 24), dtype=torch.uint8)
    runs = [list(restoration.course(TASK, [(image, image)], 5, 1e-3, 7)) for _ in range(2)]
    for (lr, given, wanted), (lr_again, given_again, wanted_again) in zip(*runs, strict=True):
        assert lr == lr_again
        assert torch.equal(given, given_again)
        assert torch.equal(wanted, wanted_again)


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert schedule.rate(0) == 0
    assert schedule.rate(schedule.WARM_UP) == pytest.approx(1)
    assert schedule.rate(1) == pytest.approx(0)


def test_finished_rows_are_kept_and_not_run_again(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    results = restoration.read(options.results)
    restoration.run_task(TASK, options, results, Console(quiet=True))
    again = restoration.read(options.results)
    assert [row["row"] for row in again["rows"]] == ["dense, trained as long", "hyperprune, search"]
    assert again["rows"][0]["macs_fraction"] == 1
    assert 0.35 < again["rows"][1]["macs_fraction"] <= 0.4
    monkeypatch.setattr(restoration, "attempt", lambda *_: pytest.fail("a finished row was run again"))
    restoration.run_task(TASK, options, again, Console(quiet=True))


def test_rows_of_another_task_are_refused() -> None:
    results = {"tasks": {"dncnn": {"settings": asdict(replace(TASK, macs=0.5))}}}
    with pytest.raises(SystemExit, match="another dncnn task"):
        restoration.require_same(results, TASK)


def test_the_page_shows_means_and_failures_and_keeps_what_stands_around_it(tmp_path: Path) -> None:
    rows = [
        result("dense, trained as long", 0, quality=QUALITY),
        result("dense, trained as long", 1, quality={"Set12": {"psnr": 31.0, "ssim": 0.9}}),
        {"task": "dncnn", "row": "Torch-Pruning, group magnitude", "seed": 0, "failed": "IndexError"},
    ]
    results = {"tasks": {"dncnn": {"settings": asdict(TASK), "before": QUALITY}}, "rows": rows}
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{restoration.MARKS[0]}\nold\n{restoration.MARKS[1]}\n\nafter\n")
    restoration.write_page(results, path)
    text = path.read_text()
    assert "30.50 / 0.9000 (± 0.71 dB)" in text
    assert "fails: IndexError" in text
    assert "old" not in text
    assert text.startswith("# Title")
    assert text.endswith("after\n")
