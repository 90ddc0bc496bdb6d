"""Attributes that follow the layers inside: those that code outside ``forward`` reads, and no others."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from hyperprune import Budget, export_pruned, hyperize, load_pruned, prune, save_pruned
from hyperprune.slim.followers import follow_, names_read, sizes_in
from tests.models import relative_error

IMAGE = (2, 3, 64, 64)


def pruned(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(IMAGE)
    return prune(model, x, Budget(macs=0.4), criterion="random").eval(), x


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "efficientvit_b0"])
def test_a_new_classifier_fits_a_slim_backbone(name: str) -> None:
    slim, x = pruned(name)
    slim.reset_classifier(7)
    assert slim(x).shape == (2, 7)


@pytest.mark.parametrize("name", ["repvgg_b1g4", "mobileone_s0", "fastvit_t8"])
@torch.no_grad()
def test_branches_of_a_slim_network_are_merged_exactly(name: str) -> None:
    slim, x = pruned(name)
    assert relative_error(slim(x), reparameterize_model(slim)(x)) < 1e-5


def test_a_loaded_network_follows_alike(tmp_path: object) -> None:
    slim, _ = pruned("resnet18")
    save_pruned(slim, f"{tmp_path}/slim.safetensors")
    loaded = load_pruned(timm.create_model("resnet18"), f"{tmp_path}/slim.safetensors")
    assert loaded.num_features == slim.num_features == slim.fc.in_features < 512


class Conditional(nn.Module):
    """Reads one of its numbers in a condition of ``forward``, by way of a property; another one nowhere."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_features = 3, width, width
        self.conv = nn.Conv2d(3, width, 1)

    @property
    def keeps_width(self) -> bool:
        return self.in_channels == self.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.keeps_width else self.conv(x)


def test_what_a_forward_pass_reads_is_left_alone() -> None:
    block = Conditional()
    assert {"in_channels", "out_channels"} <= names_read(block)
    before = sizes_in(block)
    block.conv.out_channels = 3
    follow_(block, before)
    assert (block.out_channels, block.num_features) == (8, 3)


class Encoder(nn.Module):
    """Adds its input where its numbers say that nothing changes, asked by the module around it."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.in_ch, self.out_ch, self.conv = i, o, nn.Conv2d(i, o, 1)

    def by_method(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if self.in_ch == self.out_ch else self.conv(x)

    def by_function(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if keeps_width(self) else self.conv(x)

    def by_text(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if getattr(self, "in_ch") == self.out_ch else self.conv(x)  # noqa: B009


def keeps_width(block: Encoder) -> bool:
    return block.in_ch == block.out_ch


class Encoders(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b, self.out = way, Encoder(3, 8), Encoder(8, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(getattr(self.b, self.way)(getattr(self.a, self.way)(x).relu()).relu())


@pytest.mark.parametrize("way", ["by_method", "by_function", "by_text"])
def test_conditions_hold_when_widths_become_equal(way: str) -> None:
    torch.manual_seed(0)
    hyper = hyperize(Encoders(way).eval(), torch.randn(1, 3, 4, 4))
    assert hyper.coupling.units == 8 + 16
    hyper.bank.keep_(torch.cat([torch.arange(8) < 5, torch.arange(16) < 5]))
    assert export_pruned(hyper).b.conv.weight.shape[:2] == (5, 5)


class Abstract(nn.Module):
    @property
    def num_features(self) -> int:
        raise NotImplementedError


def test_properties_are_not_asked() -> None:
    model = Abstract()
    model.conv = nn.Conv2d(3, 8, 1)
    assert list(sizes_in(model).values()) == [{}, {"in_channels": 3, "out_channels": 8, "groups": 1}]


def test_heads_are_no_channels() -> None:
    model = nn.Module()
    model.num_heads, model.fc = 4, nn.Linear(8, 4)
    before = sizes_in(model)
    model.fc.out_features = 3
    follow_(model, before)
    assert model.num_heads == 4


def test_layers_that_became_different_numbers_decide_nothing() -> None:
    model = nn.Module()
    model.width, model.a, model.b = 8, nn.Linear(4, 8), nn.Linear(8, 2)
    before = sizes_in(model)
    model.a.out_features, model.b.in_features = 5, 6
    follow_(model, before)
    assert model.width == 8


def test_the_nearest_layers_decide() -> None:
    inner, model = nn.Sequential(nn.ReLU(), nn.Linear(4, 8)), nn.Module()
    model.num_features, model.body, model.fc = 8, nn.ModuleDict({"block": inner}), nn.Linear(8, 2)
    before = sizes_in(model)
    inner[1].out_features = model.fc.in_features = 5
    follow_(model, before)
    assert model.num_features == 5
