"""Norms written out in forward(): which forms are known, and what looks like one but is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import Net, couple

WIDTH = 6
Written = Callable[[nn.Module, Tensor], Tensor]


def root_of_squares(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def off_mean(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def llama(layer: nn.Module, x: Tensor) -> Tensor:
    y = x.to(torch.float64)
    return layer.scale * (y * root_of_squares(y)).to(x.dtype)


def convnext(layer: nn.Module, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return layer.scale[None, None, :] * ((x - mean) / torch.sqrt(variance + 1e-6)) + layer.shift


def with_variance(layer: nn.Module, x: Tensor, unbiased: bool = False, more: float = 0) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=unbiased)
    scale = layer.scale + more if more else layer.scale
    return off_mean(x) * torch.rsqrt(variance + 1e-6) * scale + layer.shift


def once_off(layer: nn.Module, x: Tensor) -> Tensor:
    off = off_mean(x)
    return off / ((off * off).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.scale + layer.shift


def of_one_half(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([(x * root_of_squares(x))[..., :3], x[..., 3:]], -1) * layer.scale


def lengths_of(x: Tensor, keepdim: bool = True) -> Tensor:
    return x.norm(p=2, dim=1, keepdim=keepdim)


def convnext_v2(layer: nn.Module, x: Tensor) -> Tensor:
    g = lengths_of(x)
    return layer.scale * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + layer.shift + x


def timms_v2(layer: nn.Module, x: Tensor) -> Tensor:
    g = lengths_of(x)
    share = g / (g.mean(-1, keepdim=True) + 1e-6)
    return x + torch.addcmul(layer.shift.view(1, 1, -1), layer.scale.view(1, 1, -1), x * share)


def scaled_first(layer: nn.Module, x: Tensor, power: float = 0.5) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=False)
    return layer.scale * off_mean(x) / torch.pow(variance + 1e-8, power) + layer.shift


def ssd(layer: nn.Module, x: Tensor) -> Tensor:
    length = x.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-10
    x = torch.div(x, length)
    return layer.scale.unsqueeze(0).unsqueeze(1).expand_as(x) * x


KNOWN: dict[str, tuple[Written, str]] = {
    "rms": (lambda layer, x: x * root_of_squares(x) * layer.scale, "rms"),
    "rms by square": (lambda layer, x: x * (x.square().mean(-1, True) + 1e-6).rsqrt() * layer.scale, "rms"),
    "rms by a product": (lambda layer, x: layer.scale * (x * ((x * x).mean(-1, True) + 1e-6).rsqrt()), "rms"),
    "rms in another type": (llama, "rms"),
    "rms scaled by one more than the scale": (lambda layer, x: x * root_of_squares(x) * (1.0 + layer.scale), "rms"),
    "layer norm scaled by its scale and one": (lambda layer, x: with_variance(layer, x, more=1.0), "layer"),
    "layer norm with Bessel's correction": (lambda layer, x: with_variance(layer, x, unbiased=True), "layer"),
    "layer norm by the deviation": (
        lambda layer, x: layer.scale * off_mean(x) / (x.std(-1, keepdim=True) + 1e-6) + layer.shift,
        "layer",
    ),
    "by the deviation alone": (lambda layer, x: x / x.std(-1, keepdim=True, unbiased=False) * layer.scale, "layer"),
    "response norm": (convnext_v2, "response"),
    "response norm in timm's words": (timms_v2, "response"),
    "unit norm by the root of a sum (SSD)": (ssd, "unit"),
    "unit norm with an epsilon under the root": (
        lambda layer, x: x / torch.sqrt(torch.sum(x * x, -1, keepdim=True) + 1e-6) * layer.scale,
        "unit",
    ),
    "unit norm by a length that is stretched": (
        lambda layer, x: layer.scale.expand_as(x) * (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6).expand_as(x)),
        "unit",
    ),
    "layer norm": (convnext, "layer"),
    "layer norm with a call for the variance": (with_variance, "layer"),
    "layer norm that takes the mean off once": (once_off, "layer"),
    "layer norm that is scaled before it is divided": (scaled_first, "layer"),
    "layer norm times the power of minus a half": (
        lambda layer, x: (off := off_mean(x)) * (off.square().mean(-1, True) + 1e-6) ** -0.5 * layer.scale,
        "layer",
    ),
}
UNKNOWN: dict[str, Written] = {
    "a correction of two": lambda layer, x: (
        off_mean(x) * torch.rsqrt(x.var(-1, correction=2, keepdim=True) + 1e-6) * layer.scale
    ),
    "a deviation that multiplies": lambda layer, x: off_mean(x) * (x.std(-1, keepdim=True) + 1e-6) * layer.scale,
    "Bessel's correction over positions too": lambda layer, x: (
        (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-6) * layer.scale
    ),
    "what enters is used once more": lambda layer, x: once_off(layer, x) + x,
    "the mean is used once more": lambda layer, x: once_off(layer, x) + x.mean(-1, keepdim=True),
    "what is off the mean is used once more": lambda layer, x: (
        (off := off_mean(x)) * torch.rsqrt((off * off).mean(-1, keepdim=True) + 1e-6) * layer.scale + off
    ),
    "the root divides where its inverse should": lambda layer, x: (
        off_mean(x) * (off_mean(x).square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.scale
    ),
    "upside down": lambda layer, x: (
        (off_mean(x).square().mean(-1, keepdim=True) + 1e-6).sqrt() / off_mean(x) * layer.scale
    ),
    "another power": lambda layer, x: scaled_first(layer, x, power=0.4),
    "divided by a power that multiplies": lambda layer, x: scaled_first(layer, x, power=-0.5),
    "what is scaled first is used once more": lambda layer, x: (
        (y := layer.scale * off_mean(x)) / torch.pow(x.var(-1, keepdim=True, unbiased=False) + 1e-8, 0.5) + y
    ),
    "no epsilon": lambda layer, x: off_mean(x) / off_mean(x).square().mean(-1, keepdim=True).sqrt() * layer.scale,
    "the scale, and what is one more, scale it": lambda layer, x: (
        x * root_of_squares(x) * (1 + layer.scale) * layer.scale
    ),
    "the scale times two": lambda layer, x: x * root_of_squares(x) * (2 * layer.scale),
    "the scale is added too": lambda layer, x: x * root_of_squares(x) * layer.scale + layer.scale,
    "no scale": lambda layer, x: x * root_of_squares(x) + layer.shift,
    "a scale from elsewhere": lambda layer, x: x * root_of_squares(x) * torch.arange(1, WIDTH + 1) * layer.shift,
    "something else is scaled": lambda layer, x: layer.shift * root_of_squares(x) * layer.scale,
    "cubes": lambda layer, x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 9) * layer.scale,
    "another mean": lambda layer, x: (x - x.amax(-1, keepdim=True)) * root_of_squares(x) * layer.scale,
    "a part of the result": of_one_half,
    "a sum of cubes": lambda layer, x: x / (x.pow(3).sum(-1, keepdim=True) + 99).sqrt() * layer.scale,
    "a sum without a root": lambda layer, x: x / (x.square().sum(-1, keepdim=True) + 1e-6) * layer.scale,
    "the root of a sum multiplies": lambda layer, x: x * x.square().sum(-1, keepdim=True).sqrt() * layer.scale,
    "the sum is used once more": lambda layer, x: (
        x / ((total := x.square().sum(-1, keepdim=True)).sqrt() + 1e-6) * layer.scale + total
    ),
    "not what enters the layer": lambda layer, x: llama(layer, torch.relu(x)),
    "the lengths' mean is used once more": lambda layer, x: (
        x * ((g := lengths_of(x)) / ((mean := g.mean(-1, keepdim=True)) + 1e-6)) * layer.scale + mean
    ),
    "the mean is divided": lambda layer, x: (
        x * ((lengths_of(x).mean(-1, keepdim=True) + 1e-6) / lengths_of(x)) * layer.scale
    ),
    "the share scales nothing that enters": lambda layer, x: (
        torch.relu(x) * ((g := lengths_of(x)) / (g.mean(-1, keepdim=True) + 1e-6)) * layer.scale
    ),
    "lengths along fewer axes": lambda layer, x: (
        x * ((g := lengths_of(x, False)) / (g.mean(-1, keepdim=True) + 1e-6)) * layer.scale
    ),
    "over space too": lambda layer, x: off_mean(x) * torch.rsqrt(
        off_mean(x).square().mean((1, 2), keepdim=True) + 1e-6
    ) * layer.scale,
}  # fmt: skip


def network(written: Written) -> nn.Module:
    scale, shift = (nn.Parameter(torch.rand(WIDTH, generator=torch.Generator().manual_seed(0)) + 0.5) for _ in "ab")
    norm = Net({"scale": scale, "shift": shift}, written)
    return nn.Sequential(nn.Linear(3, WIDTH), norm, nn.Linear(WIDTH, 2))


@pytest.mark.parametrize("form", KNOWN)
def test_a_norm_that_a_layer_writes_out_is_known_by_its_scale(form: str) -> None:
    written, kind = KNOWN[form]
    coupling = couple(network(written), torch.randn(1, 4, 3))
    (norm,) = coupling.norms
    assert (norm.module, norm.weight, norm.axis, norm.kind) == ("1", "1.scale", -1, kind)
    assert coupling.units == WIDTH


@pytest.mark.parametrize("form", UNKNOWN)
def test_what_is_no_norm_of_its_own_keeps_its_channels(form: str) -> None:
    coupling = couple(network(UNKNOWN[form]), torch.randn(1, 4, 3))
    assert coupling.norms == ()
    assert "0" in {stays.layer for stays in coupling.frozen}


def test_the_scale_must_be_the_layers_own() -> None:
    model = Net(
        {"a": nn.Linear(3, WIDTH), "inner": nn.Identity(), "scale": nn.Parameter(torch.ones(WIDTH))},
        lambda net, x: F.linear(net.a(x) * root_of_squares(net.a(x)) * net.scale, torch.ones(2, WIDTH)),
    )
    assert couple(model, torch.randn(1, 4, 3)).norms == ()


CALLED: dict[str, Written] = {
    "layer_norm": lambda layer, x: F.layer_norm(x, (WIDTH,), layer.scale, layer.shift),
    "rms_norm": lambda layer, x: F.rms_norm(x, (WIDTH,), layer.scale),
    "group_norm": lambda layer, x: F.group_norm(x.mT, 1, layer.scale, layer.shift).mT,
    "normalize": lambda layer, x: F.normalize(x, dim=-1) * layer.scale,
}


@pytest.mark.parametrize("inside", [False, True], ids=["network", "block"])
@pytest.mark.parametrize("form", [*KNOWN, *CALLED])
def test_a_norm_amid_other_layers_keeps_its_channels(form: str, inside: bool) -> None:
    """Its module may not be shown other numbers at its input: the norm reads what a layer inside makes."""
    written = CALLED[form] if form in CALLED else KNOWN[form][0]
    scale, shift = (nn.Parameter(torch.ones(WIDTH)) for _ in "ab")
    parts = {"scale": scale, "shift": shift, "before": nn.Linear(3, WIDTH), "after": nn.Linear(WIDTH, 4)}
    block = Net(parts, lambda net, x: net.after(written(net, net.before(x))))
    head = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))
    whole = Net({"block": block, "head": head}, lambda net, x: net.head(net.block(x)))
    coupling = couple(whole if inside else block, torch.randn(1, 4, 3))
    assert coupling.norms == ()
    assert any(stays.layer.endswith("before") for stays in coupling.frozen)
