"""The lean generator: weight = A z on the side that reads."""

from __future__ import annotations

import pytest
import torch

from hyperprune import HyperModel, hyperize
from hyperprune.coupling import STAYS
from tests.models import SMALL, mobile, residual, small


def loss(hyper: HyperModel, x: torch.Tensor) -> torch.Tensor:
    output = hyper(x)
    return (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_of_a_latent_is_the_inner_product_of_its_slices_with_their_gradients(name: str) -> None:
    """With A the weight at z = 1: dL/dz_i = sum over all slices i of A * dL/dweight."""
    model, x = small(name)
    model = model.double().train()
    hyper = hyperize(model, x.double())
    output = model(x.double())
    (output * torch.linspace(-1, 2, output.numel()).view_as(output).double()).sum().backward()
    expected = torch.zeros(hyper.coupling.units, dtype=torch.float64)
    for site in hyper.coupling.sites:
        if site.role == "reads":
            weight = model.get_parameter(site.tensor)
            product = (weight * weight.grad).detach()
            by_position = product.sum(dim=[axis for axis in range(product.ndim) if axis != site.axis])
            for unit, value in zip(site.units, by_position.tolist(), strict=True):
                if unit != STAYS:
                    expected[unit] += value
    y = hyper(x.double())
    (y * torch.linspace(-1, 2, y.numel()).view_as(y).double()).sum().backward()
    gradient = hyper.bank.latents.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_alive_at_zero_so_a_shrunken_unit_can_grow_back() -> None:
    hyper = hyperize(residual().train(), torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        hyper.bank.latents[::2] = 0.0
    loss(hyper, torch.randn(4, 3, 8, 8)).backward()
    gradient = hyper.bank.latents.grad
    assert gradient is not None
    assert (gradient[::2] != 0).all()


def test_a_weight_is_the_product_of_its_matrix_and_the_latents_it_reads() -> None:
    model = residual()
    hyper = hyperize(model, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        hyper.bank.latents.copy_(torch.linspace(0.1, 2, hyper.coupling.units))
    z = hyper.bank.latent("stem").detach()
    assert torch.equal(hyper.model.block1.conv1.weight, model.block1.conv1.weight * z[None, :, None, None])
    assert torch.equal(hyper.model.fc.weight, model.fc.weight * z[None, :])


def test_makers_and_depthwise_layers_are_not_gated() -> None:
    model = mobile()
    hyper = hyperize(model, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        hyper.bank.latents.fill_(0.5)
    assert torch.equal(hyper.model[0].weight, model[0].weight), "the stem reads the image"
    assert torch.equal(hyper.model[4].weight, model[4].weight), "depthwise"
    assert torch.equal(hyper.model[8].weight, 0.5 * model[8].weight)


def test_the_latents_are_its_only_further_parameters() -> None:
    model = residual()
    hyper = hyperize(model, torch.randn(2, 3, 8, 8))
    extra = sum(p.numel() for p in hyper.parameters()) - sum(p.numel() for p in model.parameters())
    assert extra == hyper.coupling.units
