"""The benchmark of searches: equal steps, MACs met, images kept apart, rows that are not run twice, the page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import schedule
from benchmarks.cifar import HELD_OUT, Cifar, Split, load_cifar
from benchmarks.search import __main__ as program
from benchmarks.search import report, rows, settings, theirs, training
from benchmarks.search.methods import DENSE, METHODS, UNPRUNED
from benchmarks.search.results import Results
from benchmarks.search.rows import Key, keys, run_row
from benchmarks.search.settings import NETWORKS, PRESETS, SHARE
from benchmarks.search.training import Feed, Lesson, Run, labels_alone
from hyperprune import Distillation

COURSE = PRESETS["tiny"]["ResNet-8"]
DENSE_PARAMETERS = sum(parameter.numel() for parameter in NETWORKS["ResNet-8"]().parameters())
DARK, BRIGHT = 100, 255  # pixels of training images are at most DARK, all others' are BRIGHT
pytestmark = pytest.mark.filterwarnings("ignore:.*had to be cut at once:UserWarning")  # four steps are few


def split(count: int, images: Callable[[tuple[int, ...]], Tensor]) -> Split:
    return Split(images((count, 3, 32, 32)), torch.arange(count) % 10)


@pytest.fixture(scope="module")
def cifar() -> Cifar:
    rng = torch.Generator().manual_seed(0)
    dark = split(40, lambda shape: torch.randint(DARK + 1, shape, dtype=torch.uint8, generator=rng))
    bright = split(12, lambda shape: torch.full(shape, BRIGHT, dtype=torch.uint8))
    other = split(10, lambda shape: torch.full(shape, BRIGHT, dtype=torch.uint8))
    return Cifar(dark, bright, other, torch.full((1, 3, 1, 1), 50.0), torch.full((1, 3, 1, 1), 30.0))


def key(method: str, seed: int = 0, target: float = 0.5) -> Key:
    return Key("tiny", "ResNet-8", 1.0 if method in UNPRUNED else target, method, seed)


def run_of(cifar: Cifar, name: Key) -> Run:
    torch.manual_seed(name.seed)
    dense = NETWORKS[name.network]()
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # as in a trained network, where no two are equal
    return Run(name.network, name.target, name.seed, COURSE, dense, cifar)


class Watch:
    """Notes what is trained on and learnt from, and which splits are looked at."""

    def __init__(self) -> None:
        self.brightest: list[float] = []
        self.teachers: list[nn.Module] = []
        self.looked_at: list[Split] = []

    def loss_of(self, model: nn.Module, images: Tensor, labels: Tensor, lesson: Lesson = labels_alone) -> Tensor:
        self.brightest.append(float(images.max()))
        if isinstance(lesson, Distillation):
            self.teachers.append(lesson.teacher)
        return LOSS_OF(model, images, labels, lesson)

    def recalibrate_(self, model: nn.Module, batches: Iterator[Tensor]) -> nn.Module:
        batches = list(batches)
        self.brightest += [float(images.max()) for images in batches]
        return RECALIBRATE(model, batches)

    def accuracy_of(self, model: nn.Module, cifar: Cifar, part: Split) -> float:
        self.looked_at.append(part)
        return ACCURACY_OF(model, cifar, part)


LOSS_OF, RECALIBRATE, ACCURACY_OF = training.loss_of, rows.recalibrate_, training.accuracy_of


Watched = Callable[[str], tuple[dict[str, Any], Watch]]


@pytest.fixture(scope="module")
def watched(cifar: Cifar) -> Watched:
    """A method's row, run once with the first of its variants."""

    @cache
    def run(name: str) -> tuple[dict[str, Any], Watch]:
        watch = Watch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "loss_of", watch.loss_of)
            patch.setattr(theirs, "loss_of", watch.loss_of)
            patch.setattr(theirs, "SINGLE_IMAGES", 4)
            patch.setattr(rows, "recalibrate_", watch.recalibrate_)
            patch.setattr(rows, "accuracy_of", watch.accuracy_of)
            return run_row(run_of(cifar, key(name)), key(name), next(iter(METHODS[name].variants))), watch

    return run


# Each differs from another one by its sparsifier or importance alone.
ALIKE = {"unbalanced", "l1", "group", "hard", "magnitude", "taylor", "uniform", "random-channels", "tp-bn-scale"}
ALIKE |= {"unbalanced-long", "uniform-long", "uniform-widths-distilled", "tp-taylor-distilled"}


def methods(*without: str) -> pytest.MarkDecorator:
    names = [name for name in METHODS if name not in without]
    return pytest.mark.parametrize("method", [_marked(name) if name in ALIKE else name for name in names])


def _marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.nightly)


@methods()
def test_every_method_takes_the_same_steps(method: str, watched: Watched) -> None:
    row, watch = watched(method)
    assert row["steps"] == COURSE.steps
    share = 1.0 if "long" in method or method.startswith("tp-") else 0.25 if "short" in method else SHARE
    assert row["steps_before_cut"] in (0, share * COURSE.search_steps)
    assert len(watch.brightest) >= COURSE.steps


@methods(*UNPRUNED)
def test_every_method_meets_the_macs(method: str, watched: Watched) -> None:
    assert 0.98 * 0.5 <= watched(method)[0]["macs_fraction"] <= 0.5


@methods()
def test_distilled_methods_learn_from_the_dense_network_in_every_step(method: str, watched: Watched) -> None:
    row, watch = watched(method)
    assert len(watch.teachers) == (row["steps"] if METHODS[method].distilled else 0)
    assert all(sum(p.numel() for p in teacher.parameters()) == DENSE_PARAMETERS for teacher in watch.teachers)


@methods()
def test_no_method_trains_on_held_out_or_test_images(method: str, watched: Watched) -> None:
    assert max(watched(method)[1].brightest) <= (DARK - 50) / 30
    assert (BRIGHT - 50) / 30 > (DARK - 50) / 30


@methods()
def test_the_test_images_are_looked_at_once_and_last(method: str, watched: Watched, cifar: Cifar) -> None:
    looked = [part is cifar.test for part in watched(method)[1].looked_at]
    assert looked == [False, False, False, True]


def test_a_choice_among_variants_never_looks_at_the_test_images(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    scores = iter([0.1, 0.1, 0.2, 0.1, 0.1, 0.9, 0.5])  # cut, recalibrated, end: of two variants; then the test
    monkeypatch.setattr(rows, "accuracy_of", lambda m, c, part: (watch.looked_at.append(part), next(scores))[1])
    row = run_row(run_of(cifar, key("tp-magnitude")), key("tp-magnitude"), None)
    assert [part is cifar.test for part in watch.looked_at] == [False] * 6 + [True]
    assert (row["variant"], row["others"], row["held_out"], row["test"]) == ("uniform", {"global": 0.2}, 0.9, 0.5)


def test_the_last_training_images_are_held_out_of_every_batch(tmp_path: Path) -> None:
    count = HELD_OUT + 60
    for name, size in (("train", count), ("test", 5)):
        np.save(tmp_path / f"cifar10_{name}_images.npy", np.zeros((size, 3, 32, 32), np.uint8) + np.uint8(3))
        np.save(tmp_path / f"cifar10_{name}_labels.npy", np.arange(size))
    cifar = load_cifar(tmp_path, tmp_path)
    cifar = replace(cifar, deviation=torch.ones(1, 3, 1, 1))
    feed = Feed(cifar, 30, 8, 0.1, seed=1)
    seen = {int(label) for _, _, labels in feed for label in labels}
    assert seen == set(range(60))  # each image bears its number as its label
    assert {int(label) for _, labels in feed.first(30) for label in labels} == seen
    assert cifar.held_out.labels.tolist() == list(range(60, count))


def test_the_same_seed_gives_the_same_steps(cifar: Cifar) -> None:
    first, again, other = (Feed(cifar, 3, 8, 0.1, seed) for seed in (5, 5, 6))
    for (lr, images, labels), (lr_again, images_again, labels_again) in zip(first, again, strict=True):
        assert lr == lr_again
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(first.first(1)[0][0], other.first(1)[0][0])
    assert (first.taken, other.taken) == (3, 0)


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert schedule.rate(0) == 0
    assert schedule.rate(schedule.WARM_UP) == pytest.approx(1)
    assert schedule.rate(1) == pytest.approx(0)


def test_squared_gradients_are_the_mean_over_single_images(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "SINGLE_IMAGES", 3)
    run = run_of(cifar, key("tp-hessian"))
    model = run.dense.eval()
    feed = run.feed()
    theirs.squared_gradients(model, run, feed)
    found = model.classifier.bias.grad.clone()
    ((images, labels),) = feed.first(1)
    wanted = torch.zeros_like(found)
    for image, label in zip(images[:3], labels[:3], strict=True):
        loss = training.loss_of(model, image[None], label[None])
        wanted += torch.autograd.grad(loss, model.classifier.bias)[0].square() / 3
    assert torch.allclose(found, wanted, rtol=1e-3)


# ---- rows on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def session(cifar: Cifar, tmp_path: Path) -> program.Session:
    results = Results.read(tmp_path / "search.json")
    return program.Session(cifar, tmp_path / "cache", results, Console(file=io.StringIO()))


def no_more(*_: object) -> dict[str, Any]:
    pytest.fail("a finished row was run again")


def test_finished_rows_are_not_run_again(
    session: program.Session, cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [key(DENSE), key("uniform-widths")]
    session.run(wanted)
    path = tmp_path / "search.json"
    assert list(Results.read(path).rows) == wanted
    assert Results.read(path).rows[key(DENSE)]["macs_fraction"] == 1
    monkeypatch.setattr(program, "run_row", no_more)
    monkeypatch.setattr(training, "train", no_more)  # the dense network is on disk too
    program.Session(cifar, tmp_path / "cache", Results(path), Console(file=io.StringIO())).run(wanted)


def test_a_row_that_is_missing_is_run_alone(
    session: program.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "run_row", lambda run, name, variant: {**result(name.method, 0.5), **vars(name)})
    session.run([key("fisher"), key("l1")])
    path = tmp_path / "search.json"
    kept = json.loads(path.read_text())
    kept["rows"] = [row for row in kept["rows"] if row["method"] == "l1"]
    path.write_text(json.dumps(kept))
    run_again: list[str] = []
    monkeypatch.setattr(
        program,
        "run_row",
        lambda run, name, variant: (run_again.append(name.method), {**result(name.method, 0.5), **vars(name)})[1],
    )
    session.run([key("fisher"), key("l1")])
    assert run_again == ["fisher"]


def test_other_seeds_take_the_variant_that_the_first_chose(
    session: program.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str | None]] = []

    def row(run: Run, name: Key, variant: str | None) -> dict[str, Any]:
        asked.append((name.seed, variant))
        return {**result(name.method, 0.5), **vars(name), "variant": variant or "global"}

    monkeypatch.setattr(program, "run_row", row)
    session.run([key("tp-taylor", 1)])
    assert asked == []
    session.run([key("tp-taylor", 0), key("tp-taylor", 1)])
    assert asked == [(0, None), (1, "global")]


def test_a_method_that_fails_says_why(
    session: program.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run, name: Key, variant: str | None) -> dict[str, Any]:
        raise program.HyperpruneError("cannot follow this network")

    monkeypatch.setattr(program, "run_row", fail)
    session.run([key("tp-taylor")])
    assert Results.read(tmp_path / "search.json").rows[key("tp-taylor")]["failed"] == "cannot follow this network"


def test_rows_of_other_processes_stay(tmp_path: Path) -> None:
    mine, theirs_ = Results.read(tmp_path / "search.json"), Results.read(tmp_path / "search.json")
    theirs_.add({**vars(key("l1")), "test": 0.1})
    mine.add({**vars(key("fisher")), "test": 0.2})
    assert list(Results.read(tmp_path / "search.json").rows) == [key("l1"), key("fisher")]
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_rows_under_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results(tmp_path / "search.json").add({**vars(key("l1")), "test": 0.1})
    Results.read(tmp_path / "search.json").require("tiny")
    monkeypatch.setitem(PRESETS, "tiny", {"ResNet-8": replace(COURSE, lr=0.2)})
    with pytest.raises(SystemExit, match="other settings"):
        Results.read(tmp_path / "search.json").require("tiny")


def test_the_most_telling_rows_come_first() -> None:
    order = keys("cpu", list(PRESETS["cpu"]), list(settings.TARGETS), list(METHODS), [0, 1, 2])
    assert len(order) == len(set(order)) == 4 * 3 * (len(UNPRUNED) + 4 * (len(METHODS) - len(UNPRUNED)))
    assert order[0] == Key("cpu", "ResNet-20", 1.0, DENSE, 0)
    late = next(at for at, name in enumerate(order) if name.method not in UNPRUNED and not METHODS[name.method].early)
    assert {(name.network, name.target) for name in order[:late]} == {
        *rows.FIRST_CELLS,
        ("ResNet-20", 1),
        ("ResNet-56", 1),
    }


def test_without_the_data_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["--data", str(tmp_path), "--results", str(tmp_path / "search.json")])
    assert "skipped" in capsys.readouterr().out
    assert not (tmp_path / "search.json").exists()


# ---- the page -------------------------------------------------------------------------------------------------


def result(method: str, test: float, seed: int = 0, target: float = 0.5, **more: Any) -> dict[str, Any]:
    name = Key("cpu", "ResNet-56", 1.0 if method in UNPRUNED else target, method, seed)
    shares = {"macs_fraction": name.target, "params_fraction": name.target}
    accuracies = dict.fromkeys(("held_out_cut", "held_out_recalibrated", "held_out"), test)
    return {**vars(name), **shares, **accuracies, "test": test, "seconds": 1.0, "variant": "", "machine": "m", **more}


def written(tmp_path: Path, *found: dict[str, Any]) -> str:
    results = Results(tmp_path / "search.json")
    for row in found:
        results.add(row)
    page, picture = tmp_path / "page.md", tmp_path / "benchmarks-cpu.png"
    page.write_text(f"before\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nafter\n")
    assert report.write_report(results, page) == [picture, page]
    assert picture.stat().st_size > 1000
    return page.read_text()


def test_the_page_shows_means_losses_and_failures(tmp_path: Path) -> None:
    text = written(
        tmp_path,
        result(DENSE, 0.80),
        result(DENSE, 0.82, seed=1),
        result("fisher", 0.79),
        result("fisher", 0.83, seed=1),
        result("tp-taylor", 0.7, variant="global"),
        {**vars(Key("cpu", "ResNet-56", 0.5, "tp-hessian", 0)), "failed": "it broke"},
    )
    assert (
        "| search, Fisher (default) | 0.500 | 0.500 | 81.0 ± 2.8 | 81.0 ± 2.8 | 81.0 ± 2.8 | 81.0 ± 2.8 | 0.0 ± 1.4 |"
        in text
    )
    assert "Torch-Pruning, GroupTaylor (global)" in text
    assert "fails: it broke" in text
    assert "under seed 0 alone: search, Fisher (default) 79.0; Torch-Pruning, GroupTaylor 70.0." in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text.splitlines()


def test_rows_of_equal_seeds_are_compared_by_the_table_alone(tmp_path: Path) -> None:
    text = written(tmp_path, result(DENSE, 0.80), result("fisher", 0.79), result("tp-taylor", 0.7, variant="global"))
    assert "Rows of different seeds" not in text


@pytest.mark.parametrize(("test", "verdict"), [(0.799, "met"), (0.79, "**not met**")])
def test_the_page_says_whether_a_promise_is_met(test: float, verdict: str, tmp_path: Path) -> None:
    text = written(tmp_path, result(DENSE, 0.80), result("fisher", test))
    assert f"the default loses {100 * (0.8 - test):.1f} (1 seed): {verdict} at this length" in text
    assert "distilled" not in text.partition("### What is promised")[2]


def test_distilled_rows_are_measured_and_ranked_by_themselves(tmp_path: Path) -> None:
    text = written(
        tmp_path,
        result(DENSE, 0.80),
        result("dense-distilled", 0.82),
        result("fisher", 0.79),
        result("uniform-widths", 0.7),
        result("fisher-distilled", 0.81),
        result("uniform-widths-distilled", 0.8),
    )
    assert "at most 0.2 points: the default loses 1.0 (1 seed): **not met** at" in text
    assert "at most 0.2 points: the default, distilled, loses -1.0 (1 seed): met at" in text
    ranked = text.partition("### The first on the held-out images")[2].splitlines()[2:4]
    assert ranked == [
        "* ResNet-56, 50%: search, Fisher (default) 79.0; uniform widths, random channels 70.0",
        "* ResNet-56, 50%, distilled: search, Fisher (default) 81.0; uniform widths, random channels 80.0",
    ]
    assert "| dense, trained as long, distilled | 1.000 |" in text


def test_methods_are_ranked_by_the_held_out_images(tmp_path: Path) -> None:
    text = written(
        tmp_path, result("fisher", 0.8, held_out=0.7), result("l1", 0.6, held_out=0.75), result("tp-taylor", 0.9)
    )
    ranked = text.partition("### The first on the held-out images")[2].splitlines()[2]
    assert ranked.startswith("* ResNet-56, 50%: ")
    assert ranked.index("L1Proximal 75.0") < ranked.index("Fisher (default) 70.0")
    assert "Finished so far: ResNet-56 at 50% (3 rows)." in text
