"""The paper's networks: the published counts, everything prunable, every latent fed, exact exports."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from examples.networks import (
    EDSR,
    DenseNet,
    DnCNN,
    ResNet,
    SRResNet,
    UNet,
    densenet_12_40,
    mobilenet_v1,
    mobilenet_v2,
    resnet20,
    resnet56,
    resnet110,
    resnet164,
    vgg16_bn,
)
from examples.networks.resnet import Basic, Bottleneck
from hyperprune import hyperize
from hyperprune.cost import count_with_fvcore
from tests.halving import halved

PUBLISHED = 0.01  # how far our counts may be from the published ones
PATCH = 32
PATCHES = (128 // PATCH) ** 2  # in the published patch; these networks cost the same at every pixel


def fractions_off(found: float, published: float) -> float:
    return abs(found - published) / published


def multiplied_as_published(model: nn.Module, x: torch.Tensor) -> int:
    """Count transposed convolutions as the paper's counter does: the whole kernel at every output position."""
    extra = 0

    def add(layer: nn.ConvTranspose2d, _: object, out: torch.Tensor) -> None:
        nonlocal extra
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        met = taps // (layer.stride[0] * layer.stride[1])
        extra += (taps - met) * layer.in_channels * layer.out_channels * out[0, 0].numel()

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return count_with_fvcore(model, x).macs + extra


# Table of the paper: parameters in millions, GMACs "on a patch of 128 x 128". For super-resolution that is the
# low-resolution side: only then do both counts come out.
@pytest.mark.parametrize(
    ("make", "colours", "params", "macs"),
    [
        (EDSR, 3, 3.70e6, 90.37e9),
        (SRResNet, 3, 1.54e6, 32.83e9),
        (DnCNN, 1, 0.56e6, 9.13e9),
        (UNet, 1, 7.76e6, 3.41e9),
    ],
)
def test_restoration_networks_cost_what_the_paper_says(
    make: Callable[[], nn.Module], colours: int, params: float, macs: float
) -> None:
    model, x = make().eval(), torch.zeros(1, colours, PATCH, PATCH)
    assert fractions_off(sum(p.numel() for p in model.parameters()), params) < PUBLISHED
    assert fractions_off(PATCHES * multiplied_as_published(model, x), macs) < PUBLISHED


def test_the_published_count_of_the_unet_overcounts_its_transposed_convolutions() -> None:
    model, x = UNet().eval(), torch.zeros(1, 1, PATCH, PATCH)
    assert fractions_off(PATCHES * count_with_fvcore(model, x).macs, 3.01e9) < 0.001


# He et al. 2016 (ResNet-20: 0.27 M, -56: 0.85 M, -164: 1.7 M), Huang et al. 2017 (1.0 M), and arithmetic for the rest.
@pytest.mark.parametrize(
    ("make", "params", "macs", "bound"),
    [
        (resnet20, 0.27e6, 40.8e6, 0.01),
        (resnet56, 0.85e6, 125.7e6, 0.01),
        (resnet164, 1.7e6, 247.6e6, 0.01),
        (vgg16_bn, 14.72e6, 313.2e6, 0.01),
        (densenet_12_40, 1.0e6, 264.8e6, 0.02),  # published to one digit
    ],
)
def test_classifiers_cost_what_is_published(
    make: Callable[[], nn.Module], params: float, macs: float, bound: float
) -> None:
    cost = count_with_fvcore(make().eval(), torch.zeros(1, 3, 32, 32))
    assert fractions_off(cost.params, params) < bound
    assert fractions_off(cost.macs, macs) < bound


@pytest.mark.parametrize(("make", "depth"), [(resnet20, 20), (resnet56, 56), (resnet110, 110), (resnet164, 164)])
def test_a_resnet_is_as_deep_as_its_name(make: Callable[[], nn.Module], depth: int) -> None:
    layers = [
        name
        for name, layer in make().named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth


def test_a_densenet_has_forty_layers() -> None:
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in densenet_12_40().modules()) == 40


# Howard et al. 2017: 569 MMACs, 4.2 M; Sandler et al. 2018: 300 MMACs, 3.4 M; both at 224 pixels and 1000 classes.
@pytest.mark.parametrize(("make", "macs"), [(mobilenet_v1, 569e6), (mobilenet_v2, 300e6)])
def test_mobilenets_with_all_strides_cost_what_is_published(make: Callable[..., nn.Module], macs: float) -> None:
    model = make(1000, 128).eval()  # 128 is the size at which no stride is dropped
    cost = count_with_fvcore(model, torch.zeros(1, 3, 224, 224))
    assert fractions_off(cost.macs, macs) < PUBLISHED


@pytest.mark.parametrize("make", [mobilenet_v1, mobilenet_v2])
@pytest.mark.parametrize("size", [32, 64])
def test_mobilenets_see_four_by_four_positions_last(make: Callable[..., nn.Module], size: int) -> None:
    seen = []
    model = make(10, size, 0.5).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[-2:])))
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    assert (4, 4) in seen
    assert min(side for shape in seen for side in shape if shape != (1, 1)) == 4


def test_mobilenets_refuse_other_sizes() -> None:
    with pytest.raises(ValueError, match="power of two"):
        mobilenet_v2(10, 48)


# Narrow or shallow ones of the same make: what may go does not depend on width and depth.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "EDSR x2": (lambda: EDSR(2, 12, 2), (1, 3, 8, 8), {"tail"}),
    "EDSR x4": (lambda: EDSR(4, 12, 2), (1, 3, 8, 8), {"tail"}),
    "SRResNet x2": (lambda: SRResNet(2, 12, 2), (1, 3, 8, 8), {"tail"}),
    "SRResNet x4": (lambda: SRResNet(4, 12, 2), (1, 3, 8, 8), {"tail"}),
    "DnCNN": (lambda: DnCNN(5, 12), (1, 1, 16, 16), {"noise.11"}),
    "U-Net": (lambda: UNet(8), (1, 1, 32, 32), {"last"}),
    "basic ResNet": (lambda: ResNet(Basic, 2), (1, 3, 32, 32), {"classifier"}),
    "bottleneck ResNet": (lambda: ResNet(Bottleneck, 2), (1, 3, 32, 32), {"classifier"}),
    "DenseNet": (lambda: DenseNet(12, 3), (1, 3, 32, 32), {"classifier"}),
    "VGG-16-BN": (vgg16_bn, (1, 3, 32, 32), {"classifier"}),
    "MobileNetV1": (lambda: mobilenet_v1(10, 32, 0.25), (1, 3, 32, 32), {"classifier"}),
    "MobileNetV2": (lambda: mobilenet_v2(10, 32, 0.25), (1, 3, 32, 32), {"classifier.1"}),
}


def alive(model: nn.Module) -> nn.Module:
    """Return a copy without ReLUs: a unit that its ReLU holds at zero gets no gradient, whatever the coupling."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.ELU())
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, set[str]]:
    make, shape, outputs = NETWORKS[request.param]
    torch.manual_seed(0)
    return make(), torch.randn(shape), outputs


def test_all_but_image_and_output_is_prunable_and_every_latent_gets_a_gradient(
    network: tuple[nn.Module, torch.Tensor, set[str]],
) -> None:
    model, x, outputs = network
    hyper = hyperize(alive(model), x)
    assert {frozen.layer for frozen in hyper.coupling.frozen} == outputs
    made = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    written = {site.tensor for site in hyper.coupling.sites if site.role == "writes"}
    assert len([name for name in written if name.endswith("weight")]) >= len(made) - len(outputs)
    hyper.train()
    torch.manual_seed(1)
    hyper(2 * torch.randn(16, *x.shape[1:])).square().mean().backward()
    assert (hyper.bank.latents.grad != 0).all()


def test_a_random_half_exports_exactly(network: tuple[nn.Module, torch.Tensor, set[str]]) -> None:
    model, x, _ = network
    halved(model, x, bound=1e-5)
