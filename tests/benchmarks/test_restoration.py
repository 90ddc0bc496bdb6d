"""The restoration benchmark on a small network and made images: its rows, its file, its page."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import restoration, schedule
from benchmarks.device import precision
from benchmarks.restoration import BY_HAND, ROWS, TASKS, course, read, rows_of, run_task, write_page
from examples.networks import DnCNN

pytest.importorskip("skimage", reason="scikit-image is not installed")

TINY = replace(TASKS["dncnn"], patch=8, batch_size=2, dense_steps=2, search_steps=3, converge_steps=1)


def images(count: int, seed: int) -> dict[str, Tensor]:
    """Grey images of noise, bytes ``(1, 16, 16)``."""
    rng = torch.Generator().manual_seed(seed)
    return {str(i): torch.randint(256, (1, 16, 16), generator=rng, dtype=torch.uint8) for i in range(count)}


def small() -> nn.Module:
    return DnCNN(depth=4, channels=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """All rows of one seed, and the folder they were run in."""
    folder = tmp_path_factory.mktemp("restoration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoration, "zipped", lambda path, channels: images(24, seed=len(path.stem)))
        patch.setitem(restoration.NETWORKS, "dncnn", small)
        options = argparse.Namespace(
            data=folder, cache=folder / "nets", results=folder / "rows.json", rows=list(ROWS), seeds=[0]
        )
        run_task(TINY, options, read(options.results), Console(quiet=True))
        patch.setattr(restoration, "attempt", lambda *_: pytest.fail("a finished row was run again"))
        run_task(TINY, options, read(options.results), Console(quiet=True))
    return read(folder / "rows.json"), folder


def test_every_row_keeps_to_the_budget_and_the_dense_one_is_whole(finished: tuple[dict, Path]) -> None:
    shares = {row["row"]: row["macs_fraction"] for row in finished[0]["rows"]}
    assert list(shares) == rows_of(TINY)
    assert shares.pop("dense, trained as long") == 1.0
    assert all(0 < share <= TINY.macs for share in shares.values()), shares


def test_every_row_is_looked_at_on_the_held_out_and_both_test_sets(finished: tuple[dict, Path]) -> None:
    for row in finished[0]["rows"]:
        assert list(row["quality"]) == ["held out", "Set12", "BSD68"]
        assert all(0 < found["psnr"] < 60 for found in row["quality"].values())


def test_the_page_has_a_line_per_row(finished: tuple[dict, Path]) -> None:
    results, folder = finished
    page = folder / "page.md"
    page.write_text("# Title\n")
    write_page(results, page)
    write_page(results, page)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.count("## dncnn: noise of sigma 25") == 1
    assert all(text.count(f"| {name} |") == 1 for name in rows_of(TINY))
    assert "| noisy image |" in text


def test_rows_under_other_settings_are_refused(finished: tuple[dict, Path]) -> None:
    results = json.loads(json.dumps(finished[0]))
    restoration.require_same(results, TINY)
    with pytest.raises(SystemExit, match="dncnn under other settings"):
        restoration.require_same(results, replace(TINY, converge_steps=2))
    results["tasks"]["dncnn"]["precision"] = "float16"
    with pytest.raises(SystemExit, match="other numbers"):
        restoration.require_same(results, TINY)


def test_every_row_trains_on_the_same_batches() -> None:
    pairs = [(image, image) for image in images(4, seed=0).values()]
    first, again, other = (list(course(TINY, pairs, 4, 1e-3, seed)) for seed in (1, 1, 2))
    assert [lr for lr, _, _ in first] == [lr for lr, _, _ in other]
    for mine, same, different in zip(first, again, other, strict=True):
        assert all(map(torch.equal, mine[1:], same[1:]))
        assert not torch.equal(mine[1], different[1])


def test_nothing_trains_on_the_held_out_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = images(24, seed=3)
    monkeypatch.setattr(restoration, "zipped", lambda path, channels: known)
    trained = {large.numpy().tobytes() for _, large in restoration.training_pairs(TINY, tmp_path)}
    held_out = list(known.values())[-restoration.HELD_OUT :]
    assert len(trained) == len(known) - len(held_out)
    assert not trained & {image.numpy().tobytes() for image in held_out}


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert schedule.rate(0) == 0
    assert schedule.rate(schedule.WARM_UP) == pytest.approx(1)
    assert schedule.rate(1) == pytest.approx(0)


def test_the_page_shows_means_and_failures_and_keeps_what_stands_around_it(tmp_path: Path) -> None:
    def result(row: str, seed: int, **more: Any) -> dict[str, Any]:
        return {"task": "dncnn", "row": row, "seed": seed, "macs_fraction": 0.4, "params_fraction": 0.4, **more}

    quality = [{"Set12": {"psnr": psnr, "ssim": 0.9}} for psnr in (30.0, 31.0)]
    rows = [result("dense, trained as long", seed, quality=found) for seed, found in enumerate(quality)]
    rows.append({"task": "dncnn", "row": "Torch-Pruning, group magnitude", "seed": 0, "failed": "IndexError"})
    task = {"settings": asdict(TINY), "precision": precision(restoration.CPU), "before": quality[0]}
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{restoration.MARKS[0]}\nold\n{restoration.MARKS[1]}\n\nafter\n")
    write_page({"tasks": {"dncnn": task}, "rows": rows}, path)
    text = path.read_text()
    assert "30.50 / 0.9000 (± 0.71 dB)" in text
    assert "fails: IndexError" in text
    assert "old" not in text
    assert text.startswith("# Title")
    assert text.endswith("after\n")


def test_torch_pruning_is_helped_where_it_cannot_follow() -> None:
    assert BY_HAND in rows_of(TASKS["srresnet"])
    assert BY_HAND not in rows_of(TASKS["dncnn"])
