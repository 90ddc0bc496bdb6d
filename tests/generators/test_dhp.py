"""The hypernetwork of DHP."""

from __future__ import annotations

import math

import pytest
import torch

from hyperprune import DHP, hyperize
from hyperprune.errors import ModelError
from hyperprune.generators.collapse import collapsed
from hyperprune.generators.dhp import CONVOLUTIONS
from tests.models import SMALL, residual, small

X = (2, 3, 8, 8)


@pytest.mark.parametrize("m", [1, 3, 8])
def test_a_pair_of_channels_costs_one_plus_k_squared_times_m_parameters(m: int) -> None:
    model = residual()
    hyper = hyperize(model, torch.randn(X), generator=DHP(embedding=m))
    for path in ("stem", "block1.conv1", "block2.conv2"):
        n, c, k, _ = model.get_submodule(path).weight.shape
        made = sum(p.numel() for p in hyper.model.get_submodule(path).parameters())
        assert made == n * c * (1 + k * k) * m


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("scratch", [False, True])
def test_a_latent_of_zero_makes_exactly_zero_slices_on_both_sides(name: str, scratch: bool) -> None:
    model, x = small(name)
    hyper = hyperize(model, x, generator=DHP(scratch=scratch))
    with torch.no_grad():
        hyper.bank.latents[::2] = 0.0
    slices = 0
    for site in hyper.coupling.sites:
        module = hyper.model.get_submodule(site.module)
        if site.role == "reads" or (site.role == "writes" and isinstance(module, CONVOLUTIONS)):
            gone = [at for at, unit in enumerate(site.units) if unit >= 0 and unit % 2 == 0]
            assert (module.weight.index_select(site.axis, torch.tensor(gone, dtype=torch.long)) == 0).all()
            slices += len(gone)
    assert slices >= hyper.coupling.units


def test_a_weight_is_the_product_of_both_factors_and_both_latents() -> None:
    hyper = hyperize(residual(), torch.randn(X), generator=DHP(embedding=4, scratch=True))
    layer = hyper.model.block1.conv1
    w1, w2 = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    z_in, z_out = hyper.bank.latent("stem"), hyper.bank.latent("block1.conv1")
    embedded = w1 * (z_out[:, None] * z_in[None, :])[..., None]
    torch.testing.assert_close(layer.weight.flatten(2), (w2 * embedded[:, :, None, :]).sum(-1), rtol=1e-5, atol=1e-6)


def test_linear_layers_are_gated_where_they_read() -> None:
    model = residual()
    hyper = hyperize(model, torch.randn(X), generator=DHP())
    with torch.no_grad():
        hyper.bank.latents.fill_(0.25)
    assert torch.equal(hyper.model.fc.weight, 0.25 * model.fc.weight)


def test_from_scratch_the_factors_have_the_papers_ranges_and_variances() -> None:
    """w1 ~ U(-sqrt 3, sqrt 3) has variance 1; W2 ~ U(-a, a) with a = sqrt(3 / (m c k^2)) has 1 / (m c k^2)."""
    m = 8
    hyper = hyperize(residual(width=32, inner=48), torch.randn(X), generator=DHP(scratch=True))
    layer = hyper.model.block1.conv2
    w1, w2 = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    (c, k2), a = (48, 9), math.sqrt(3 / (m * 48 * 9))
    assert w1.shape == (32, c, m)
    assert w2.shape == (32, c, k2, m)
    assert 0.99 * math.sqrt(3) < w1.abs().max() <= math.sqrt(3)
    assert 0.99 * a < w2.abs().max() <= a
    assert w1.var().item() == pytest.approx(1.0, rel=0.03)
    assert w2.var().item() == pytest.approx(1 / (m * c * k2), rel=0.03)


def test_from_scratch_latents_are_standard_normal_and_weights_have_variance_one_over_fan_in() -> None:
    hyper = hyperize(residual(width=64, inner=96), torch.randn(X), generator=DHP(scratch=True))
    latents = hyper.bank.latents
    assert latents.mean().item() == pytest.approx(0, abs=0.2)
    assert latents.std().item() == pytest.approx(1, rel=0.15)
    weight = hyper.model.block1.conv2.weight
    assert weight.var().item() == pytest.approx(1 / (96 * 9), rel=0.35)


def test_from_pretrained_the_spare_dimensions_are_alive_but_contribute_nothing() -> None:
    model = residual()
    hyper = hyperize(model, torch.randn(X), generator=DHP(embedding=8, spread=0.1))
    layer, weight = hyper.model.block1.conv1, model.block1.conv1.weight
    w1, w2 = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert torch.equal(layer.weight, weight)
    assert (w1[..., 1:] == 0).all()
    assert 0 < w2[..., 1:].abs().max() <= 0.1 * weight.std(correction=0) * (1 + 1e-6)
    layer.weight.sum().backward()
    assert (w1.grad[..., 1:] != 0).all()


def test_two_starts_differ_only_if_the_seed_does() -> None:
    def start(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = residual()
        torch.manual_seed(seed)
        return hyperize(model, torch.zeros(X), generator=DHP(scratch=True)).bank.latents

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize("embedding", [0, -1])
def test_an_embedding_has_at_least_one_dimension(embedding: int) -> None:
    with pytest.raises(ModelError, match="at least 1"):
        DHP(embedding=embedding)


@pytest.mark.parametrize("pairs", [(3, 4), (3, 1), (1, 4), (1, 1)])
def test_the_collapsed_product_and_its_gradients_are_those_of_the_published_order(pairs: tuple[int, int]) -> None:
    shapes = ((3, 4, 2), (3, 4, 5, 2), pairs)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    embedding, explicit, latents = parts
    published = torch.matmul(explicit, (embedding * latents[..., None])[..., None])[..., 0]
    torch.testing.assert_close(collapsed(*parts), published)
    assert torch.autograd.gradcheck(collapsed, parts)
