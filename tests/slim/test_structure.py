"""The sizes that torch's own layers keep: read back from sliced tensors, so that the layers still run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune.plan import Slice, WidthPlan
from hyperprune.slim import carve_, is_standard
from hyperprune.slim.structure import adjust_, is_bare


def thinned(model: nn.Module, kept: dict[tuple[str, int], tuple[int, ...]]) -> nn.Module:
    """Carve a model by the positions that stay along each axis."""
    state = model.state_dict()
    return carve_(model, WidthPlan(tuple(Slice(t, axis, state[t].shape[axis], at) for (t, axis), at in kept.items())))


@pytest.mark.parametrize(
    ("layer", "tensors", "size", "shape"),
    [
        (nn.LayerNorm(6), ("weight", "bias"), "normalized_shape", (3, 2)),
        (nn.RMSNorm(6), ("weight",), "normalized_shape", (3, 2)),
        (nn.GroupNorm(2, 6), ("weight", "bias"), "num_channels", (3, 2, 4)),
        (nn.PReLU(6), ("weight",), "num_parameters", (3, 2, 4)),
        (nn.BatchNorm1d(6, affine=False), ("running_mean", "running_var"), "num_features", (3, 2)),
        (nn.BatchNorm2d(6, track_running_stats=False), ("weight", "bias"), "num_features", (3, 2, 4, 4)),
        (nn.InstanceNorm2d(6, affine=True), ("weight", "bias"), "num_features", (3, 2, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_knows_its_new_width_and_runs(
    layer: nn.Module, tensors: tuple[str, ...], size: str, shape: tuple[int, ...]
) -> None:
    assert is_standard(layer)
    before = getattr(layer, size)
    thinned(layer, {(name, 0): (1, 4) for name in tensors})
    after = getattr(layer, size)
    assert type(after) is type(before)
    assert after == ((2,) if isinstance(before, tuple) else 2)
    assert layer(torch.randn(shape)).shape == shape


def test_a_norm_over_several_axes_or_without_weights_keeps_its_shape() -> None:
    for layer in (
        nn.LayerNorm((4, 6)),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.GroupNorm(2, 6, affine=False),
        nn.BatchNorm1d(6, affine=False, track_running_stats=False),
    ):
        before = str(layer)
        adjust_(layer)
        assert str(layer) == before


@pytest.mark.parametrize(
    ("kept", "heads", "head_dim"),
    [((0, 1, 4, 5), 2, 2), ((2, 3), 1, 2), ((0, 2, 4, 6), 4, 1), ((0, 1, 2, 3, 4, 5, 6, 7), 4, 2)],
    ids=["two heads", "one head", "thinner heads", "all"],
)
def test_attention_keeps_the_heads_that_have_a_channel_left(kept: tuple[int, ...], heads: int, head_dim: int) -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 4))
    rows = tuple(8 * part + at for part in range(3) for at in kept)
    thinned(
        model,
        {
            ("0.in_proj_weight", 0): rows,
            ("0.in_proj_weight", 1): kept,
            ("0.in_proj_bias", 0): rows,
            ("0.out_proj.weight", 0): kept,
            ("0.out_proj.weight", 1): kept,
            ("0.out_proj.bias", 0): kept,
        },
    )
    layer, width = model[0], len(kept)
    assert (layer.num_heads, layer.head_dim) == (heads, head_dim)
    assert (layer.embed_dim, layer.kdim, layer.vdim) == (width, width, width)
    assert type(layer.head_dim) is int
    assert (layer.out_proj.in_features, layer.out_proj.out_features) == (width, width)
    x = torch.randn(5, 2, width)
    assert layer(x, x, x)[0].shape == x.shape


def test_attention_with_inputs_of_three_widths_reads_each_back() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 4, kdim=6, vdim=5, bias=False))
    kept = (0, 1, 6, 7)
    thinned(
        model,
        {
            ("0.q_proj_weight", 0): kept,
            ("0.q_proj_weight", 1): kept,
            ("0.k_proj_weight", 0): kept,
            ("0.k_proj_weight", 1): (0, 2, 5),
            ("0.v_proj_weight", 0): kept,
            ("0.v_proj_weight", 1): (1, 4),
            ("0.out_proj.weight", 0): kept,
            ("0.out_proj.weight", 1): kept,
        },
    )
    layer = model[0]
    assert (layer.embed_dim, layer.kdim, layer.vdim) == (4, 3, 2)
    assert (layer.num_heads, layer.head_dim) == (2, 2)
    assert layer(torch.randn(5, 1, 4), torch.randn(7, 1, 3), torch.randn(7, 1, 2))[0].shape == (5, 1, 4)


def test_attention_whose_heads_lose_nothing_keeps_them() -> None:
    layer = nn.MultiheadAttention(8, 4)
    adjust_(layer)
    assert (layer.num_heads, layer.head_dim, layer.embed_dim, layer.kdim, layer.vdim) == (4, 2, 8, 8, 8)


@pytest.mark.parametrize("inputs", [4, 8])
def test_groups_stay_if_every_one_of_them_loses_rows(inputs: int) -> None:
    layer = nn.Conv2d(inputs, 6, 1, groups=2, bias=False)
    thinned(layer, {("weight", 0): (0, 2, 3, 5)})
    assert (layer.in_channels, layer.out_channels, layer.groups) == (inputs, 4, 2)
    assert layer(torch.randn(1, inputs, 2, 2)).shape == (1, 4, 2, 2)


def test_a_convolution_in_one_piece_stays_in_one_piece() -> None:
    layer = nn.Conv2d(4, 6, 1, bias=False)
    thinned(layer, {("weight", 0): (4, 5)})
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 2, 1)


def test_a_convolution_that_loses_every_row_is_still_one_group() -> None:
    layer = nn.Conv2d(4, 6, 1, bias=False)
    thinned(layer, {("weight", 0): ()})
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 0, 1)


def test_groups_whose_rows_all_stay_are_as_many_as_before() -> None:
    layer = nn.Conv2d(4, 6, 1, groups=2, bias=False)
    adjust_(layer, None)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 6, 2)


def test_only_norms_without_any_tensor_are_bare() -> None:
    assert is_bare(nn.BatchNorm2d(4, affine=False, track_running_stats=False))
    assert is_bare(nn.InstanceNorm1d(4))
    assert is_bare(nn.GroupNorm(2, 4, affine=False))
    assert not is_bare(nn.GroupNorm(2, 4))
    assert not is_bare(nn.BatchNorm2d(4, affine=False))
    assert not is_bare(nn.BatchNorm2d(4, track_running_stats=False))
    assert not is_bare(nn.Identity())


def test_containers_and_layers_without_channels_are_not_standard() -> None:
    assert not any(is_standard(module) for module in (nn.Sequential(), nn.Module(), nn.ReLU(), nn.Dropout()))
