"""The demo in miniature: the same acts, a few steps each."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from hyperprune.cost import count_with_fvcore
from hyperprune.demo import run
from hyperprune.demo.digits import batches, load_digits
from hyperprune.demo.resnet import ResNet, resnet20
from hyperprune.demo.run import DemoResult, DemoSettings, prune_with_torch_pruning, run_demo
from hyperprune.demo.train import accuracy
from hyperprune.errors import HyperpruneError


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str, Path]:
    """The result, the printed text and the parent of the output folder of one tiny demo."""
    parent = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=200, record=True)
    settings = DemoSettings(
        out=parent / "out", dense_steps=4, search_steps=8, finetune_steps=2, batch_size=8, compare=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LATENCY_ROUNDS", {1: 2})
        result = run_demo(settings, console)
    return result, console.export_text(), parent


def test_the_split_is_stratified_normalised_and_always_the_same(digits) -> None:
    again = load_digits()
    assert torch.equal(digits.train_images, again.train_images)
    assert torch.equal(digits.test_labels, again.test_labels)
    assert (len(digits.train_labels), len(digits.test_labels)) == (1297, 500)
    assert set(digits.test_labels.bincount().tolist()) <= {48, 49, 50, 51}
    assert digits.train_images.mean().item() == pytest.approx(0, abs=1e-4)
    assert digits.train_images.std().item() == pytest.approx(1, abs=1e-4)


def test_batches_depend_on_their_seed_and_leave_the_global_random_state_alone(digits) -> None:
    state = torch.get_rng_state()
    first, second, other = (list(batches(digits, 3, 16, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert [tuple(images.shape) for images, _ in first] == [(16, 1, 32, 32)] * 3


def test_one_pass_of_batches_shows_every_image_once(digits) -> None:
    labels = torch.cat([labels for _, labels in batches(digits, 1297, 1, seed=0)])
    assert torch.equal(labels.bincount(), digits.train_labels.bincount())


@pytest.mark.parametrize("in_channels", [1, 3])
def test_resnet20_has_twenty_layers_and_about_270_thousand_parameters(in_channels: int) -> None:
    model = resnet20(in_channels)
    square = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(square) + 1 == 20
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(272_000, rel=0.01)
    assert model.eval()(torch.zeros(2, in_channels, 32, 32)).shape == (2, 10)


def test_accuracy_is_the_share_of_hits_and_keeps_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Identity()).train()
    assert accuracy(model, torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
    assert model.training


@pytest.mark.parametrize("name", ["dense_steps", "search_steps", "finetune_steps", "batch_size"])
def test_settings_without_steps_are_refused_by_name(name: str) -> None:
    with pytest.raises(HyperpruneError, match=name):
        DemoSettings(**{name: 0})


@pytest.mark.parametrize("macs", [0.0, 1.5, -1.0])
def test_a_budget_that_is_no_share_is_refused_before_training(macs: float) -> None:
    with pytest.raises(HyperpruneError, match="macs"):
        DemoSettings(macs=macs)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HyperpruneError, match=r"scikit-learn.*pip install 'hyperprune\[demo\]'"):
        run_demo(DemoSettings(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_torch_pruning_stays_within_the_budget_and_leaves_its_model_alone() -> None:
    model, example = ResNet(blocks=1, in_channels=1, width=8), torch.zeros(1, 1, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    slim = prune_with_torch_pruning(model, example, 0.5)
    share = count_with_fvcore(slim, example).macs / count_with_fvcore(model, example).macs
    assert 0.4 < share <= 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_the_demo_compares_dense_slim_and_torch_pruning(finished) -> None:
    result, _, _ = finished
    dense, slim, rival = result.reports
    assert [report.name for report in result.reports] == ["dense", "slim", "Torch-Pruning"]
    assert 0.45 * dense.macs < slim.macs <= 0.5 * dense.macs
    assert rival.macs <= 0.5 * dense.macs
    assert slim.file_bytes < dense.file_bytes
    assert slim.proof_error is not None
    assert slim.proof_error < 1e-5
    assert (dense.proof_error, rival.proof_error) == (None, None)


def test_the_history_goes_from_the_dense_network_to_the_budget(finished) -> None:
    result, _, _ = finished
    assert [point.step for point in result.history] == list(range(9))
    assert result.history[0].macs_fraction == 1.0
    assert result.history[-1].macs_fraction <= 0.5
    assert result.history[-1].accuracy is not None


def test_the_demo_writes_what_it_names_and_only_below_its_folder(finished) -> None:
    result, text, parent = finished
    assert {path.name for path in parent.iterdir()} == {"out"}
    assert {path.name for path in (parent / "out").iterdir()} == {path.name for path in result.files}
    assert all(str(path) in text for path in result.files)


def test_the_numbers_on_disk_are_those_of_the_reports(finished) -> None:
    result, _, parent = finished
    saved = json.loads((parent / "out" / "report.json").read_text())
    assert [model["macs"] for model in saved["models"]] == [report.macs for report in result.reports]
    assert saved["settings"]["search_steps"] == 8


def test_the_saved_weights_are_the_slim_networks_without_pickle(finished) -> None:
    from safetensors.torch import load_file

    result, _, parent = finished
    weights = load_file(parent / "out" / "slim.safetensors")
    learned = [value for name, value in weights.items() if not re.search("running|tracked", name)]
    assert sum(value.numel() for value in learned) == result.reports[1].params


def test_the_demo_prints_plain_lines_where_there_is_no_terminal(finished) -> None:
    _, text, _ = finished
    assert "search: 8 steps" in text
    assert "\x1b" not in text
    assert "━━━━━━━━━━━━━━━━━━━━━━━━ " not in text.split("measuring latency")[0]


def test_the_demo_says_what_its_numbers_do_not_show(finished) -> None:
    _, text, _ = finished
    assert "one seed" in text
    assert "small, easy data set" in text
