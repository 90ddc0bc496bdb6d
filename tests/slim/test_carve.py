"""Carving: slices of tensors, and the sizes that layers keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune.errors import SlimmingError
from hyperprune.plan import Rescale, Resize, Slice, WidthPlan, plans_of
from hyperprune.slim import carve_
from hyperprune.slim.sizes import resize_
from hyperprune.slim.structure import adjust_
from tests.models import assert_same, residual, snapshot


def cut(tensor: str, axis: int, size: int, *kept: int) -> Slice:
    return Slice(tensor, axis, size, kept)


def test_positions_are_kept_in_order_along_every_axis() -> None:
    layer = nn.Conv2d(4, 5, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    model = nn.Sequential(layer)
    plan = WidthPlan((cut("0.weight", 0, 5, 1, 4), cut("0.weight", 1, 4, 0, 2, 3), cut("0.bias", 0, 5, 1, 4)))
    assert carve_(model, plan) is model
    assert torch.equal(model[0].weight, weight[[1, 4]][:, [0, 2, 3]])
    assert torch.equal(model[0].bias, bias[[1, 4]])
    assert (model[0].in_channels, model[0].out_channels) == (3, 2)


@pytest.mark.parametrize(
    "bad",
    [
        cut("nowhere.weight", 0, 6, 0),
        cut("stem.scale", 0, 6, 0),
        cut("stem.weight", 0, 7, 0),
        cut("stem.weight", 4, 6, 0),
        cut("", 0, 6, 0),
    ],
    ids=str,
)
def test_a_foreign_plan_is_refused_and_changes_nothing(bad: Slice) -> None:
    model = residual()
    before = snapshot(model)
    with pytest.raises(SlimmingError, match="plan"):
        carve_(model, WidthPlan((cut("stem.weight", 0, 6, 0, 1), bad)))
    assert_same(before, snapshot(model))


def test_an_empty_plan_changes_nothing() -> None:
    model = residual()
    before = snapshot(model)
    carve_(model, WidthPlan(()))
    assert_same(before, snapshot(model))


def test_buffers_are_sliced_and_stay_buffers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].running_mean.copy_(torch.arange(4.0))
    names = ("weight", "bias", "running_mean", "running_var")
    carve_(model, WidthPlan(tuple(cut(f"0.{name}", 0, 4, 1, 3) for name in names)))
    assert model[0].running_mean.tolist() == [1.0, 3.0]
    assert set(dict(model.named_buffers())) == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert model[0].num_features == 2


@pytest.mark.parametrize("trained", [True, False])
def test_requires_grad_is_kept(trained: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4).requires_grad_(trained))
    carve_(model, WidthPlan((cut("0.weight", 0, 4, 0, 1), cut("0.bias", 0, 4, 0, 1))))
    assert {p.requires_grad for p in model.parameters()} == {trained}
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in model.parameters())


def test_channels_last_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    carve_(model, WidthPlan((cut("0.weight", 0, 6, 0, 1, 5), cut("0.weight", 1, 4, 1, 2))))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()


def test_the_dtype_is_kept_and_old_memory_let_go() -> None:
    model = nn.Sequential(nn.Linear(100, 100).bfloat16())
    carve_(model, WidthPlan((cut("0.weight", 0, 100, 7),)))
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.untyped_storage().nbytes() == 100 * 2


def test_a_parameter_of_the_model_itself_is_sliced() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.arange(4.0))
    carve_(model, WidthPlan((cut("scale", 0, 4, 0, 3),)))
    assert model.scale.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("layer", "slices", "expected", "shape"),
    [
        (
            nn.Conv2d(8, 8, 3, groups=8),
            [("weight", 0, 8, (1, 2, 7)), ("bias", 0, 8, (1, 2, 7))],
            (3, 3, 3),
            (1, 3, 4, 4),
        ),
        (nn.Conv2d(8, 4, 1, groups=4, bias=False), [("weight", 0, 4, (0, 3))], (4, 2, 2), (1, 4, 4, 4)),
        (nn.Conv2d(4, 8, 1, groups=4, bias=False), [("weight", 0, 8, (2, 3))], (1, 2, 1), (1, 1, 4, 4)),
        (
            nn.ConvTranspose2d(4, 6, 2),
            [("weight", 0, 4, (1, 2)), ("weight", 1, 6, (0, 5)), ("bias", 0, 6, (0, 5))],
            (2, 2, 1),
            (1, 2, 4, 4),
        ),
        (nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), [("weight", 0, 4, (2, 3))], (2, 3, 1), (1, 2, 4, 4)),
        (nn.Conv1d(4, 4, 3, groups=2, bias=False), [("weight", 0, 4, (0, 1))], (2, 2, 1), (1, 2, 9)),
    ],
    ids=["depthwise", "grouped down", "grouped up", "transposed", "grouped transposed", "grouped 1-d"],
)
def test_a_convolutions_attributes_follow_its_weight_and_it_runs(
    layer: nn.Module,
    slices: list[tuple[str, int, int, tuple[int, ...]]],
    expected: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    model = nn.Sequential(layer)
    carve_(model, WidthPlan(tuple(Slice(f"0.{name}", axis, size, kept) for name, axis, size, kept in slices)))
    assert (layer.in_channels, layer.out_channels, layer.groups) == expected
    assert model(torch.randn(shape)).shape[1] == expected[1]


def test_other_layers_attributes_follow_their_weights() -> None:
    linear, prelu = nn.Linear(5, 4), nn.PReLU(4)
    carve_(nn.ModuleList([linear, prelu]), WidthPlan((cut("0.weight", 1, 5, 0, 1), cut("1.weight", 0, 4, 2))))
    assert (linear.in_features, linear.out_features, prelu.num_parameters) == (2, 4, 1)


def test_adjusting_an_unsliced_layer_changes_nothing() -> None:
    layers = [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Linear(3, 2),
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        nn.PReLU(),
    ]
    for layer in layers:
        before = str(layer)
        adjust_(layer)
        assert str(layer) == before


def block(**attributes: object) -> nn.Module:
    made = nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_a_size_is_replaced_in_ints_tuples_and_lists() -> None:
    made = block(width=8, sizes=(8, 16, 3), rows=[8, 8], other=7)
    resize_(made, [(8, 5), (16, 11)])
    assert (made.width, made.sizes, made.rows, made.other) == (5, (5, 11, 3), [5, 5], 7)


def test_only_whole_numbers_are_sizes() -> None:
    made = block(flag=True, rate=8.0, name="8", mixed=(8, None), nested=[(8,)], empty=())
    resize_(made, [(8, 5), (1, 3)])
    assert (made.flag, made.rate, made.name, made.mixed, made.nested, made.empty) == (
        True,
        8.0,
        "8",
        (8, None),
        [(8,)],
        (),
    )


def test_a_number_that_would_become_two_different_ones_is_left_alone() -> None:
    made = block(width=8, other=4)
    resize_(made, [(8, 5), (8, 6), (4, 2)])
    assert (made.width, made.other) == (8, 2)


def test_standard_layers_keep_their_own_sizes() -> None:
    layer = nn.Conv2d(8, 8, 3)
    resize_(layer, [(8, 5), (3, 2)])
    assert (layer.in_channels, layer.out_channels) == (8, 8)


def test_a_plans_resizes_reach_the_module_they_name() -> None:
    model = nn.ModuleList([block(width=8), block(width=8)])
    carve_(model, WidthPlan((), (Resize("1", 8, 3),)))
    assert (model[0].width, model[1].width) == (8, 3)


def test_a_plan_of_another_architecture_or_of_other_widths_is_told_apart() -> None:
    with pytest.raises(
        SlimmingError,
        match=r"^the plan slices 'stem.scale', which ResNet does not have\. "
        r"The plan belongs to another architecture\.$",
    ):
        carve_(residual(), WidthPlan((cut("stem.scale", 0, 6, 0),)))
    with pytest.raises(
        SlimmingError,
        match=r"^the plan expects 7 positions along axis 0 of 'stem.weight', but its shape is \(6, 3, 3, 3\)\. "
        r"The plan belongs to other widths\.$",
    ):
        carve_(residual(), WidthPlan((cut("stem.weight", 0, 7, 0),)))


def test_a_bare_layers_own_tensors_are_sliced_by_their_names_alone() -> None:
    layer = carve_(nn.Conv2d(4, 8, 1, groups=4), WidthPlan((cut("weight", 0, 8, 2, 3), cut("bias", 0, 8, 2, 3))))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (1, 2, 1)


@pytest.mark.parametrize("path", ["", "0."])
def test_rows_are_rescaled_in_the_old_numbering_and_then_sliced(path: str) -> None:
    layer = nn.Linear(2, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    scaled = (Rescale(f"{path}weight", (1, 2), 0.5), Rescale(f"{path}bias", (1,), 3.0))
    carve_(nn.Sequential(layer) if path else layer, WidthPlan((cut(f"{path}weight", 0, 3, 0, 2),), (), scaled))
    assert torch.equal(layer.weight, torch.stack([weight[0], weight[2] * 0.5]))
    assert torch.equal(layer.bias, bias * torch.tensor([1.0, 3.0, 1.0]))


@pytest.mark.parametrize("trained", [True, False])
def test_rescaling_keeps_what_is_trained_and_lets_the_old_tensor_be(trained: bool) -> None:
    layer = nn.Linear(2, 3).requires_grad_(trained)
    old = layer.weight
    before = old.detach().clone()
    carve_(layer, WidthPlan((), (), (Rescale("weight", (0,), 2.0),)))
    assert (layer.weight.requires_grad, layer.weight.is_leaf) == (trained, True)
    assert torch.equal(old, before)


def test_rescaling_no_row_is_no_error() -> None:
    layer = nn.Linear(2, 1)
    before = snapshot(layer)
    carve_(layer, WidthPlan((), (), (Rescale("weight", (), 2.0),)))
    assert_same(before, snapshot(layer))


@pytest.mark.parametrize("bad", [Rescale("0.scale", (0,), 2.0), Rescale("0.weight", (0, 3), 2.0)], ids=str)
def test_rows_of_another_model_are_refused_before_anything_changes(bad: Rescale) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    before = snapshot(model)
    with pytest.raises(
        SlimmingError,
        match=rf"^the plan multiplies rows of '{bad.tensor}', which Sequential does not have\. "
        r"The plan belongs to another architecture\.$",
    ):
        carve_(model, WidthPlan((cut("0.weight", 0, 3, 1),), (), (Rescale("0.weight", (2,), 2.0), bad)))
    assert_same(before, snapshot(model))


def test_rows_of_a_tensor_with_two_names_may_be_given_by_either() -> None:
    layer = nn.Linear(2, 3)
    model = nn.Sequential(layer, layer)
    before = layer.weight.detach().clone()
    carve_(model, WidthPlan((), (), (Rescale("1.weight", (0, 1, 2), 2.0),)))
    assert torch.equal(layer.weight, 2 * before)


def test_every_size_of_a_module_is_replaced_at_once() -> None:
    model = nn.ModuleList([block(inner=8, outer=4)])
    carve_(model, WidthPlan((), (Resize("0", 8, 4), Resize("0", 4, 2))))
    assert (model[0].inner, model[0].outer) == (4, 2)


def test_the_plan_is_noted_and_what_was_worked_out_from_old_weights_is_let_go() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.cache: dict[str, torch.Tensor] = {"double": torch.ones(4)}

        def train(self, mode: bool = True) -> Cached:
            self.cache = {}
            return super().train(mode)

    model, plan = Cached().eval(), WidthPlan((cut("scale", 0, 4, 0, 3),))
    carve_(model, plan)
    assert (model.cache, model.training) == ({}, False)
    assert plans_of(model) == (plan,)


def test_a_tensor_of_four_axes_that_is_not_channels_last_does_not_become_it() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    carve_(model, WidthPlan((cut("0.weight", 0, 6, 0, 1, 5),)))
    assert model[0].weight.is_contiguous()
    assert not model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_may_lose_everything_along_an_axis() -> None:
    layer = carve_(nn.Linear(3, 4), WidthPlan((cut("weight", 1, 3),)))
    assert layer.weight.shape == (4, 0)
    assert layer.in_features == 0
    assert torch.equal(layer(torch.zeros(2, 0)), layer.bias.expand(2, 4))


def test_attributes_of_a_parameter_are_those_of_what_is_left_of_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight.no_decay = True
    rows = (cut("0.weight", 0, 4, 1, 3), cut("0.bias", 0, 4, 1, 3))
    carve_(model, WidthPlan(rows, rescales=(Rescale("0.weight", (1,), 2.0),)))
    assert (vars(model[0].weight), vars(model[0].bias)) == ({"no_decay": True}, {})
