"""Each example runs from one command: a table, a picture, the budget met; here in a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.networks import EDSR, DnCNN, ResNet, UNet
from examples.networks.resnet import Basic

pytest.importorskip("skimage", reason="scikit-image is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

SHORT = {"dense_steps": 2, "search_steps": 4, "converge_steps": 2, "patch": 16, "batch_size": 2, "macs": (0.4,)}
PNG = b"\x89PNG"


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what the examples load down to its middle, so that whole images take no time."""
    from examples.common import images
    from examples.denoising import train as denoising
    from examples.super_resolution import train as super_resolution

    def cut(names, channels):  # type: ignore[no-untyped-def]
        return {name: image[:, 60:220, 60:220] for name, image in images.shipped(names, channels).items()}

    monkeypatch.setattr(denoising, "shipped", cut)
    monkeypatch.setattr(super_resolution, "shipped", cut)


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    ("name", "network"), [("dncnn", DnCNN(4, 12)), pytest.param("unet", UNet(8), marks=pytest.mark.slow)]
)
def test_denoising_compares_and_draws(name: str, network: torch.nn.Module, tmp_path: Path) -> None:
    from examples.denoising.train import Config, run

    table = run(replace(Config(), network=name, out=str(tmp_path), **SHORT), network, None)
    assert [row.name for row in table] == [
        "noisy image",
        "dense",
        *(f"{maker}, 40%" for maker in ("hyperprune", "uniform", "random", "Torch-Pruning")),
    ]
    assert 0.4 - 24 / 312 < table[2].macs <= 0.4  # a channel between two layers of 12 costs 24 of 312 kernels
    assert 20.17 < table[0].quality["camera"].psnr < 21.2  # 20 log10(255 / 25), and what clipping to [0, 1] wins
    assert (tmp_path / "pictures.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["sigma"] == 25.0


@pytest.mark.usefixtures("small_images")
def test_super_resolution_compares_and_draws(tmp_path: Path) -> None:
    from examples.super_resolution.train import Config, run

    table = run(replace(Config(), out=str(tmp_path), **SHORT), EDSR(2, 8, 1), None)
    rows = {row.name: row for row in table}
    assert rows["bicubic"].quality["astronaut"].psnr > 25
    assert 0.35 < rows["hyperprune, 40%"].macs <= 0.4
    assert "Torch-Pruning fails" in rows["Torch-Pruning, 40%"].note
    assert (tmp_path / "pictures.png").read_bytes().startswith(PNG)


def test_cifar_networks_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from examples.classification.cifar import NETWORKS, Config, run
    from examples.classification.data import digits

    monkeypatch.setitem(NETWORKS, "resnet20", lambda: ResNet(Basic, 1))

    training, test = digits()
    few = [(images[:64], labels[:64]) for images, labels in (training, test)]
    epochs = {"dense_epochs": 1, "search_epochs": 2, "converge_epochs": 1}
    rows = run(replace(Config(), batch_size=16, out=str(tmp_path), **epochs), *few)
    assert [row["network"] for row in rows][:2] == ["dense", "hyperprune, 50%"]
    assert all(row["macs"] <= 0.5 for row in rows[1:])
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows


def test_digits_are_split_for_good_and_normalised() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from examples.classification.data import digits

    (train, labels), (test, _) = digits()
    assert train.shape == (1297, 3, 32, 32)
    assert test.shape == (500, 3, 32, 32)
    assert set(labels.tolist()) == set(range(10))
    assert float(train.mean()) == pytest.approx(0, abs=1e-4)


def test_a_timm_model_is_pruned_on_a_folder_of_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    import timm

    from examples.classification.timm_folder import Config, run, write_digits
    from hyperprune import load_pruned

    folder = write_digits(tmp_path / "digits")
    for label in folder.iterdir():
        for extra in sorted(label.iterdir())[8:]:
            extra.unlink()
    epochs = {"dense_epochs": 1, "search_epochs": 2, "converge_epochs": 1}
    found = run(Config(image_size=32, batch_size=16, out=str(tmp_path), **epochs), folder)
    assert 0.48 < found["macs"] <= 0.5
    slim = load_pruned(timm.create_model("resnet10t", num_classes=10), tmp_path / "slim.safetensors").eval()
    assert slim(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
