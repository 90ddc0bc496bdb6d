"""What the examples share: images, quality measures and rivals."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.common.images import (
    TEST_COLOUR,
    TEST_GREY,
    TRAIN_COLOUR,
    TRAIN_GREY,
    batches,
    in_equal_parts,
    padded,
    pairs_of_scales,
    recoloured,
    resized,
    shipped,
    with_noise,
    zipped,
)
from examples.common.quality import luma, quality
from examples.common.rivals import RIVALS, torch_pruning_by_hand
from examples.networks import EDSR, DnCNN
from hyperprune import HyperpruneError
from hyperprune.cost import count_with_fvcore

pytest.importorskip("skimage", reason="scikit-image is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the PSNR of equal images


def test_the_images_lie_in_the_wheel_and_no_test_image_is_trained_on() -> None:
    assert not set(TRAIN_GREY + TRAIN_COLOUR) & set(TEST_GREY + TEST_COLOUR)
    for names, channels in ((TRAIN_GREY + TEST_GREY, 1), (TRAIN_COLOUR + TEST_COLOUR, 3)):
        for image in shipped(names, channels).values():
            assert image.dtype == torch.uint8
            assert image.shape[0] == channels
            assert min(image.shape[1:]) >= 64


def test_a_zip_is_read_in_place(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "grey.png", "set/grey.png")
        archive.writestr("set/notes.txt", "not an image")
    assert torch.equal(zipped(tmp_path / "set.zip", 1)["grey"], torch.from_numpy(pixels)[None])
    assert zipped(tmp_path / "set.zip", 3)["grey"].shape == (3, 6, 8)


def test_psnr_and_ssim_are_those_of_the_formula() -> None:
    clean = torch.full((1, 32, 32), 100 / 255)
    assert quality(clean + 10 / 255, clean).psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)


def test_equal_images_are_equal() -> None:
    image = torch.rand(1, 32, 32)
    assert quality(image, image).ssim == pytest.approx(1.0)


def test_the_border_does_not_count() -> None:
    clean = torch.rand(1, 32, 32)
    spoilt = clean.clone()
    spoilt[:, :2] = 1 - spoilt[:, :2]
    assert quality(spoilt, clean, border=2).psnr == np.inf
    assert quality(spoilt, clean).psnr < 30


def test_colour_is_compared_by_its_luma() -> None:
    white, black = torch.ones(3, 8, 8), torch.zeros(3, 8, 8)
    assert luma(white) == pytest.approx(235.0, abs=0.01)
    assert luma(black) == pytest.approx(16.0, abs=0.01)


def test_resizing_keeps_means_and_whole_numbers() -> None:
    image = shipped(["astronaut"], 3)["astronaut"][None] / 255
    small = resized(image, 0.25)
    assert small.shape == (1, 3, 128, 128)
    assert float((small * 255 - (small * 255).round()).abs().max()) < 1e-4
    assert float(small.mean() - image.mean()) == pytest.approx(0, abs=1e-3)


def test_patches_of_both_scales_show_the_same_scene() -> None:
    (pair,) = pairs_of_scales(shipped(["chelsea"], 3), 2).values()
    assert [2 * side for side in pair[0].shape[1:]] == list(pair[1].shape[1:])
    (small, large), *_ = batches([pair], 16, 4, 2, seed=3)
    assert small.shape == (4, 3, 16, 16)
    assert large.shape == (4, 3, 32, 32)
    assert float((resized(large, 0.5) - small).abs().mean()) < 0.01


def test_kinds_are_drawn_in_equal_parts() -> None:
    few, many = ({f"{n}": (torch.zeros(1), torch.ones(1)) for n in range(count)} for count in (5, 400))
    drawn = in_equal_parts(few, many)
    assert len(drawn) == 800
    assert sum(any(pair is other for other in few.values()) for pair in drawn) == 400


def test_the_same_seed_gives_the_same_patches_and_the_same_noise() -> None:
    (image,) = shipped(["camera"], 1).values()
    runs = [next(batches([(image, image)], 16, 4, 1, seed)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])
    noise = with_noise(torch.zeros(1, 200, 200), 25, 0)
    assert torch.equal(noise, with_noise(torch.zeros(1, 200, 200), 25, 0))
    assert float(noise.std()) == pytest.approx(25 / 255, rel=0.02)


def test_recoloured_patches_keep_their_three_colours_each_in_an_order_of_its_own() -> None:
    pairs = [(image, image) for image in (torch.arange(3).repeat_interleave(64).reshape(3, 8, 8).byte(),)]
    ((small, large),) = recoloured(batches(pairs, 4, 32, steps=1, seed=0), seed=0)
    shown = {tuple(round(255 * float(level)) for level in patch[:, 0, 0]) for patch in small}
    assert shown == set(itertools.permutations(range(3)))
    assert torch.equal(small, large)
    ((again, _),) = recoloured(batches(pairs, 4, 32, steps=1, seed=0), seed=0)
    assert torch.equal(small, again)


def test_padding_reaches_the_multiple_and_keeps_the_image() -> None:
    image = torch.rand(1, 1, 33, 47)
    assert padded(image, 16).shape == (1, 1, 48, 48)
    assert torch.equal(padded(image, 16)[..., :33, :47], image)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_meet_the_budget_and_leave_the_dense_network_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = DnCNN(4, 16), torch.rand(1, 1, 16, 16)
    before = [p.clone() for p in model.parameters()]
    slim = RIVALS[name](model, x, 0.5, 0)
    assert 0.4 < count_with_fvcore(slim.eval(), x).macs / count_with_fvcore(model.eval(), x).macs <= 0.5
    assert slim(x).shape == x.shape
    assert all(p.requires_grad for p in slim.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_uniform_widths_are_uniform() -> None:
    slim = RIVALS["uniform"](DnCNN(5, 20), torch.rand(1, 1, 16, 16), 0.5, 0)
    widths = {m.out_channels for m in slim.modules() if isinstance(m, nn.Conv2d)} - {1}
    assert len(widths) == 1


def test_torch_pruning_says_where_it_fails() -> None:
    with pytest.raises(HyperpruneError, match="Torch-Pruning fails"):
        RIVALS["Torch-Pruning"](EDSR(2, 8, 1), torch.rand(1, 3, 8, 8), 0.5, 0)


def test_torch_pruning_goes_on_where_the_layers_before_pixel_shuffle_are_kept() -> None:
    torch.manual_seed(0)
    model, x = EDSR(2, 16, 4), torch.rand(1, 3, 8, 8)
    slim = torch_pruning_by_hand(model, x, 0.7, 0)
    (kept,) = (m.out_channels for m in slim.upsample.modules() if isinstance(m, nn.Conv2d))
    assert kept == 64
    assert count_with_fvcore(slim.eval(), x).macs / count_with_fvcore(model.eval(), x).macs <= 0.7
    assert slim(x).shape == model(x).shape
