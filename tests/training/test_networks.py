"""The dense network of a run: as many outputs as classes, and weights only where they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hyperprune import HyperpruneError
from hyperprune.training.networks import DenseNetwork, fit_to_data, load_network
from hyperprune.training.settings import TrainingSettings

SIZE = (3, 32, 32)
HERE = "tests.training.factories"


def dense(spec: str, classes: int = 10, size: tuple[int, ...] = SIZE, **options: object) -> DenseNetwork:
    settings = TrainingSettings(spec, "photos", macs=0.5, **options)  # type: ignore[arg-type]
    return fit_to_data(load_network(settings)[0], settings, size, classes)


@pytest.mark.parametrize(
    ("spec", "head", "recipe"),
    [
        ("timm/resnet10t", "fc", '"timm/resnet10t,num_classes=10"'),
        ("torchvision/squeezenet1_1", "classifier.1", '"torchvision/squeezenet1_1,num_classes=10"'),
        ("torchvision/mobilenet_v3_small,num_classes=3,dropout=0.1", "classifier.3", "dropout=0.1,num_classes=10"),
        (f"{HERE}:two_outputs", "fc", "your tests.training.factories:two_outputs with 10 classes"),
    ],
)
def test_another_number_of_classes_gives_a_new_head_and_says_so(spec: str, head: str, recipe: str) -> None:
    network = dense(spec)
    assert network.model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert f"{head} is new" in network.story
    assert recipe in network.recipe
    assert not network.trained


def test_a_head_that_fits_is_left_alone() -> None:
    network = dense(f"{HERE}:digits")
    assert "new" not in network.story
    assert not network.trained


def test_timm_says_how_it_wants_its_images() -> None:
    _, preparation = load_network(TrainingSettings("timm/resnet10t", "photos", macs=0.5))
    assert preparation.size == (3, 176, 176)
    assert (preparation.crop, preparation.interpolation) == (0.875, "bicubic")
    _, small = load_network(TrainingSettings("timm/resnet10t", "sklearn/digits", macs=0.5))
    assert small.size == (3, 32, 32)
    _, asked = load_network(TrainingSettings("timm/resnet10t", "sklearn/digits", macs=0.5, input_size=(3, 48, 48)))
    assert asked.size == (3, 48, 48)


def saved(model: nn.Module, path: Path) -> str:
    save_file(model.state_dict(), path)
    return str(path)


def test_weights_that_fit_make_it_a_trained_network(tmp_path: Path) -> None:
    source = dense(f"{HERE}:digits").model
    network = dense(f"{HERE}:digits", weights=saved(source, tmp_path / "w.safetensors"))
    assert network.trained
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.model.state_dict().items())


def test_weights_for_other_classes_fill_everything_but_the_head(tmp_path: Path) -> None:
    source = dense(f"{HERE}:two_outputs", classes=2).model
    network = dense(f"{HERE}:two_outputs", weights=saved(source, tmp_path / "w.safetensors"))
    assert not network.trained
    assert "fc is new" in network.story
    assert torch.equal(network.model.get_parameter("stem.weight"), source.get_parameter("stem.weight"))
    assert network.model.get_parameter("fc.weight").shape == (10, 6)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    foreign = saved(nn.Linear(3, 3), tmp_path / "foreign.safetensors")
    wider = dense(f"{HERE}:digits").model
    wider.stem.weight = nn.Parameter(torch.zeros(9, 3, 3, 3))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    for path, message in (
        (foreign, "of another network"),
        (saved(wider, tmp_path / "wider.safetensors"), "stem.weight"),
        (str(broken), "cannot be read"),
        (str(tmp_path / "none.safetensors"), "cannot be read"),
        ("weights.pth", "safetensors"),
    ):
        with pytest.raises(HyperpruneError, match=message):
            dense(f"{HERE}:digits", weights=path)


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (f"{HERE}:headless", SIZE, "does not classify"),
        (f"{HERE}:linear_without_head", SIZE, "no last layer was found"),
        (f"{HERE}:digits", (4, 32, 32), "fails on an image of 4x32x32"),
    ],
)
def test_networks_that_cannot_classify_the_images_are_refused(spec: str, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(HyperpruneError, match=message):
        dense(spec, size=size)


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(spec: str, pretrained: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("hyperprune.training.networks.load_model", offline)
    with pytest.raises(HyperpruneError, match=r"no route to host.*--weights"):
        load_network(TrainingSettings("timm/resnet10t", "photos", macs=0.5, pretrained=True))
