"""Numbers that a module's forward() reads: those that follow channels change, no others."""

from __future__ import annotations

import copy

import pytest
import torch
from einops.layers.torch import Rearrange
from torch import nn

from hyperprune.plan import Resize, WidthPlan
from hyperprune.slim.sizes import doubtful, resize_
from tests.slim.test_carve import block


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_sizes_of_the_parts_are_replaced_in_their_order(kind: type) -> None:
    made = block(splits=kind((4, 4)), others=kind((4, 8)), three=kind((4, 4, 4)))
    resize_(made, [((4, 4), (1, 3)), ((4, 8), (4, 5))])
    assert (made.splits, made.others, made.three) == (kind((1, 3)), kind((4, 5)), kind((4, 4, 4)))


def test_private_attributes_change_too() -> None:
    made = block(_width=4)
    resize_(made, [(4, 3)])
    assert made._width == 3


def test_a_layer_of_einops_is_told_its_sizes_twice() -> None:
    layer = Rearrange("b (h d) -> b h d", h=4)
    resize_(layer, [(4, 3)])
    assert layer(torch.zeros(1, 6)).shape == copy.deepcopy(layer)(torch.zeros(1, 6)).shape == (1, 3, 2)


def test_parts_that_would_become_two_different_things_are_left_alone() -> None:
    made = block(splits=[4, 4])
    resize_(made, [((4, 4), (1, 3)), ((4, 4), (2, 2))])
    assert made.splits == [4, 4]


def test_a_size_that_stays_in_one_place_does_not_keep_it_from_changing_in_another() -> None:
    made = block(width=8)
    resize_(made, [(8, 8), (8, 5)])
    assert made.width == 5


@pytest.mark.parametrize(
    "name",
    [
        *("kernel_size", "stride", "padding", "dilation", "shift_size", "window", "patch_size", "grid", "img_size"),
        *("image_size", "resolution", "spatial_dims", "scale_factor", "ratio", "depth", "num_layers", "level", "steps"),
        *("axis", "axes", "KernelSize"),
        *("max_len", "seq_len", "num_classes", "num_labels", "vocab_size", "topk", "num_queries", "n_frames"),
    ],
)
def test_places_and_distances_never_change(name: str) -> None:
    made = block(**{name: 8, "heads": 8})
    resize_(made, [(8, 5)])
    assert (vars(made)[name], made.heads) == (8, 5)


def test_a_norm_without_tensors_is_told_its_size_as_any_module_is() -> None:
    bare, full = nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.BatchNorm2d(8)
    for layer in (bare, full):
        resize_(layer, [(8, 5)])
    assert (bare.num_features, full.num_features) == (5, 8)


def test_names_say_which_numbers_follow_channels() -> None:
    block = nn.Module()
    for name in ("num_features", "d_model", "c2", "nf", "hidden", "nc", "block_size", "T", "max_position_embeddings"):
        setattr(block, name, 8)
    found = doubtful(block, WidthPlan((), (Resize("", 8, 5),)))
    assert [spared.attribute for spared in found] == ["nc", "block_size", "T"]
    resize_(block, [(8, 5)], {"nc", "block_size", "T"})
    kept = [name for name, value in vars(block).items() if value == 8]
    assert kept == ["nc", "block_size", "T", "max_position_embeddings"]
