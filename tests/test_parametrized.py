"""Layers whose weights the user's own parametrizations make: weight norm's lose channels, others keep them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations
from torch.nn.utils.prune import l1_unstructured

from hyperprune import (
    DHP,
    Budget,
    HyperModel,
    Search,
    export_onnx,
    export_pruned,
    hyperize,
    load_pruned,
    save_pruned,
    transfer_optimizer,
)
from hyperprune.labels.reasons import PARAMETRIZED
from tests.models import assert_same, snapshot
from tests.second_opinion import second_opinion

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.9))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


KINDS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm over what is read": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm over all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight norm, scaled": lambda layer: register_parametrization(weight_norm(layer), "weight", Scaled()),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "of a weight": lambda layer: register_parametrization(layer, "weight", Scaled()),
    "of a bias": lambda layer: register_parametrization(layer, "bias", Scaled()),
}


def network(parametrized: Callable[[nn.Module], object]) -> nn.Module:
    """Five convolutions; the third is parametrized."""
    torch.manual_seed(0)
    widths = (3, 10, 8, 12, 6, 4)
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths)]
    parametrized(layers[2])
    return nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.Tanh())), layers[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrized_layer_keeps_its_channels_and_its_parametrization(kind: str, tmp_path: Path) -> None:
    model = network(KINDS[kind])
    before = snapshot(model)
    hyper = hyperize(model, X)
    assert_same(before, snapshot(model))
    assert torch.equal(hyper.eval()(X), model.eval()(X))
    assert {group.name for group in hyper.coupling.groups} == {"0", "6"}
    assert {frozen.reason for frozen in hyper.coupling.frozen if frozen.layer == "2"} == {PARAMETRIZED}

    hyper.train()
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=1e-2))
    search = Search(hyper, optimizer, Budget(macs=0.6), steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        hyper(X).square().mean().backward()
        optimizer.step()
        search.step()
    slim = export_pruned(hyper)
    assert is_parametrized(slim[4])
    assert (slim[0].out_channels, slim[6].out_channels) < (10, 6)
    names = dict(slim.named_parameters())
    trained = {id(p) for group in transfer_optimizer(hyper, slim, optimizer).param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in names.values()}

    save_pruned(slim, tmp_path / "slim.safetensors")
    loaded = load_pruned(network(KINDS[kind]), tmp_path / "slim.safetensors")
    assert torch.equal(loaded.eval()(X), slim.eval()(X))


class Wide(nn.Module):
    """A residual block of WDSR: wide activations, weight norm."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(channels, wide, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(wide, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class WDSR(nn.Module):
    """Super-resolution, x2, in the form of WDSR: weight norm in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.body = nn.Sequential(Wide(16, 64), Wide(16, 512))
        self.tail = weight_norm(nn.Conv2d(16, 12, 3, padding=1))
        self.skip = weight_norm(nn.Conv2d(3, 12, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.tail(self.body(self.head(x))) + self.skip(x), 2)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, features and batch norm behind weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = weight_norm(nn.Conv2d(3, 12, 1))
        self.deep = weight_norm(nn.Conv2d(12, 12, 3, groups=12))
        self.b = weight_norm(nn.Conv2d(12, 10, 1))
        self.norm = nn.BatchNorm2d(10)
        self.c = weight_norm(nn.Linear(10, 9))
        self.d = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.norm(self.b(self.deep(self.a(x)).relu())).mean((2, 3))).relu())


class Attention(nn.Module):
    """Queries, keys and values by linear layers with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.into = nn.Linear(3, 32)
        self.q, self.k, self.v, self.out = (weight_norm(nn.Linear(32, 32)) for _ in range(4))
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x.flatten(2).transpose(1, 2))
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(seen.transpose(1, 2).flatten(2)))


def lengthened(model: nn.Module) -> nn.Module:
    """Give the rows of weight norm lengths of their own: they start as those of their weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("original0", "weight_g")):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model.eval()


def saved_and_loaded(slim: nn.Module, into: nn.Module, path: Path) -> nn.Module:
    save_pruned(slim, path)
    return load_pruned(into, path)


def searched(hyper: HyperModel, steps: int = 4) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(hyper.train().parameter_groups(lr=1e-2), momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        hyper(X).square().mean().backward()
        optimizer.step()
        search.step()
    return optimizer


@pytest.fixture(params=["parametrization", "hook"])
def either_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take torch's weight norm of today, and that of old, which a hook computes at each call."""
    if request.param == "hook":
        monkeypatch.setitem(globals(), "weight_norm", nn.utils.weight_norm)


@pytest.mark.usefixtures("either_kind")
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("generator", [None, DHP(embedding=2)], ids=["lean", "dhp"])
@pytest.mark.parametrize(("make", "groups"), [
    (WDSR, {"head", "body.0.first", "body.1.first"}), (Separable, {"a", "b", "c"}), (Attention, {"into", "q"}),
])  # fmt: skip
def test_layers_with_weight_norm_lose_channels_and_keep_their_norm(
    make: Callable[[], nn.Module], groups: set[str], generator: DHP | None, tmp_path: Path
) -> None:
    model = lengthened(make())
    before = snapshot(model)
    hyper = hyperize(model, X, generator=generator)
    assert_same(before, snapshot(model))
    assert torch.equal(hyper(X), model(X))
    assert {group.name for group in hyper.coupling.groups} == groups
    assert second_opinion(hyperize(lengthened(make()).double(), X.double())).agrees
    searched(hyper)
    slim = export_pruned(hyper)
    assert {path for path, module in slim.named_modules() if is_parametrized(module)} == {
        path for path, module in model.named_modules() if is_parametrized(module)
    }
    loaded = saved_and_loaded(slim, make(), tmp_path / "slim.safetensors")
    assert torch.equal(loaded.eval()(X), slim.eval()(X))
    for module in (*slim.modules(), *loaded.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            made, read = module.weight.shape[:2]
            sizes = (module.out_channels, module.in_channels // module.groups) if isinstance(module, nn.Conv2d) else (
                module.out_features, module.in_features)  # fmt: skip
            assert sizes == (made, read)
    assert export_onnx(slim, X, tmp_path / "slim.onnx").relative_error < 1e-5


def test_rows_are_as_long_as_they_were_when_columns_go() -> None:
    """Weight norm divides by the length of the living columns, in the searched network as in the slim one."""
    hyper = hyperize(lengthened(WDSR()), X)
    searched(hyper)
    second = hyper.model.body[1].second
    assert bool((second.weight.flatten(2).abs().sum((0, 2)) == 0).any()), "dead columns are zero"
    torch.testing.assert_close(
        second.weight.flatten(1).norm(dim=1), second.parametrizations.weight.original0.flatten().abs()
    )


def test_momentum_goes_over_to_slim_layers_with_weight_norm() -> None:
    hyper = hyperize(lengthened(WDSR()), X)
    hyper.bank.latents.requires_grad_(False)
    optimizer = torch.optim.SGD(hyper.train().parameters(), lr=1e-2, momentum=0.9)
    hyper(X).square().mean().backward()
    optimizer.step()
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    keep[::3] = False
    hyper.bank.keep_(keep)
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, optimizer)
    for network, its in ((hyper, optimizer), (slim, carried)):
        for _ in range(2):
            its.zero_grad()
            network(X).square().mean().backward()
            its.step()
    torch.testing.assert_close(export_pruned(hyper)(X), slim(X), rtol=1e-4, atol=1e-5)


def test_the_norm_can_be_removed_from_the_slim_network_alone() -> None:
    model = lengthened(WDSR())
    hyper = hyperize(model, X)
    searched(hyper)
    slim = export_pruned(hyper)
    expected = slim(X)
    for layer in [module for module in slim.modules() if is_parametrized(module)]:
        remove_parametrizations(layer, "weight")
    torch.testing.assert_close(slim(X), expected)
    assert torch.equal(export_pruned(hyper)(X), expected)
    assert model(X).shape == expected.shape


def test_branches_of_layers_with_weight_norm_stay_open() -> None:
    """Closed while searching, the last layer would be rows of zeros, which have no length to be divided by."""
    assert not hyperize(WDSR(), X).coupling.branches


def test_weight_norm_of_transposed_convolutions_stays() -> None:
    """It divides by the length over the channels that they make, of which nothing gates the dead."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        weight_norm(nn.ConvTranspose2d(8, 6, 2, 2)),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.Conv2d(5, 2, 1),
    )
    hyper = hyperize(model, X)
    assert {group.name for group in hyper.coupling.groups} == {"3"}
    assert {frozen.reason for frozen in hyper.coupling.frozen if frozen.layer == "0"} == {PARAMETRIZED}


def test_channels_inside_heads_stay_where_weight_norm_makes_queries_and_keys() -> None:
    """Dead ones would need rows of zeros, which have no length to be divided by; those of the values go."""
    hyper = hyperize(lengthened(Attention()), X, attention="width")
    assert {group.name for group in hyper.coupling.groups} == {"into"}


def test_layers_that_torch_has_pruned_by_a_mask_know_their_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    l1_unstructured(model[1], "weight", 0.5)
    hyper = hyperize(model, X)
    searched(hyper)
    slim = export_pruned(hyper)
    made, read = slim[1].weight_orig.shape[:2]
    assert (slim[1].out_channels, slim[1].in_channels) == (made, read)
    assert made < 8
    assert slim[1].weight_mask.shape == slim[1].weight_orig.shape
