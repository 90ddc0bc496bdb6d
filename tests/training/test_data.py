"""Images: their order and augmentation are a function of seed, epoch and index; folders of every usual shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hyperprune import HyperpruneError
from hyperprune.training.data import Preparation, batches, in_order, load_data, steps_per_epoch

SMALL = Preparation((3, 12, 12), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.875, "bilinear")
COLOURS = {"blue": (20, 40, 220), "red": (230, 30, 20)}


def draw(folder: Path, count: int, classes: dict[str, tuple[int, int, int]] = COLOURS) -> Path:
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for at in range(count):
            Image.new("RGB", (18 + at, 16), tuple(max(0, part - 7 * at) for part in colour)).save(
                folder / name / f"{at}.png"
            )
    return folder


@pytest.fixture
def split(tmp_path: Path) -> Path:
    draw(tmp_path / "train", 6)
    draw(tmp_path / "val", 2)
    return tmp_path


def epoch(folder: Path, number: int, **options: int) -> list[tuple[Tensor, Tensor]]:
    return list(batches(load_data(str(folder), SMALL, 0).train, 4, seed=5, epoch=number, **options))


def assert_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    assert len(one) == len(other) > 0
    for (x, y), (u, v) in zip(one, other, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_a_folder_with_parts_is_read_as_it_stands(split: Path) -> None:
    data = load_data(str(split), SMALL, 0)
    assert (len(data.train), len(data.test), data.classes) == (12, 4, ("blue", "red"))
    images, labels = next(in_order(data.test, 4))
    assert images.shape == (4, 3, 12, 12)
    assert labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(images[0, :, 6, 6], (torch.tensor([20, 40, 220]) / 255 - 0.5) / 0.25)


def test_a_folder_without_parts_is_split_by_class_and_seed(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    data, again, other = (load_data(str(tmp_path), SMALL, seed) for seed in (0, 0, 1))
    assert (len(data.train), len(data.test)) == (16, 4)
    assert [label for _, label in (data.test.source[at] for at in data.test.indices)] == [0, 0, 1, 1]
    assert set(data.train.indices) | set(data.test.indices) == set(range(20))
    assert list(again.test.indices) == list(data.test.indices) != list(other.test.indices)


def test_an_epoch_is_the_same_every_time_and_no_epoch_is_like_another(split: Path) -> None:
    assert_same(epoch(split, 3), epoch(split, 3))
    with pytest.raises(AssertionError):
        assert_same(epoch(split, 3), epoch(split, 4))


def test_an_epoch_can_begin_in_its_middle(split: Path) -> None:
    assert_same(epoch(split, 3)[2:], epoch(split, 3, start=2))


def test_workers_load_the_same_images(split: Path) -> None:
    assert_same(epoch(split, 3), epoch(split, 3, workers=2))


def test_loading_leaves_the_global_random_state_alone(split: Path) -> None:
    before = torch.get_rng_state()
    epoch(split, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_incomplete_batch_is_left_out_unless_it_is_the_only_one(split: Path) -> None:
    train = load_data(str(split), SMALL, 0).train
    assert [len(x) for x, _ in batches(train, 5, seed=0, epoch=0)] == [5, 5]
    assert [len(x) for x, _ in batches(train, 64, seed=0, epoch=0)] == [12]
    assert (steps_per_epoch(train, 5), steps_per_epoch(train, 64)) == (2, 1)


def test_grey_networks_get_grey_images(split: Path) -> None:
    grey = Preparation((1, 12, 12), SMALL.mean, SMALL.std, 0.875, "bicubic")
    images, _ = next(in_order(load_data(str(split), grey, 0).test, 1))
    assert images.shape == (1, 1, 12, 12)


def test_digits_come_in_any_size_and_are_shifted_in_training_only() -> None:
    data = load_data("sklearn/digits", SMALL, 0)
    assert (len(data.train), len(data.test), len(data.classes)) == (1297, 500, 10)
    images, _ = next(in_order(data.test, 2))
    assert images.shape == (2, 3, 12, 12)
    plain = data.train.source[data.train.indices[0]][0]
    shifted = [data.train.transform(plain) for _ in range(4)]
    assert not all(torch.equal(image, plain) for image in shifted)
    assert torch.equal(data.test.transform(plain), plain)


def test_bad_folders_are_explained(split: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty, single = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("single")
    draw(single, 1)
    lonely = tmp_path_factory.mktemp("lonely")
    draw(lonely / "train", 3)
    (split / "val" / "green").mkdir()
    Image.new("RGB", (9, 9)).save(split / "val" / "green" / "0.png")
    for folder, message in (
        (split / "nowhere", "is no folder"),
        (empty, "no folder of images by class"),
        (single, "too few images"),
        (lonely, "has train/ but no"),
        (split, "different classes: green"),
    ):
        with pytest.raises(HyperpruneError, match=message):
            load_data(str(folder), SMALL, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(split: Path, workers: int) -> None:
    (split / "train" / "red" / "3.png").write_bytes(b"no picture")
    with pytest.raises(HyperpruneError, match=r"3\.png cannot be read"):
        epoch(split, 0, workers=workers)
