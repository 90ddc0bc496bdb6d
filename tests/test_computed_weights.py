"""Weights that forward() computes before use: standardised rows, masks, scales, split attention, branches, mixtures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, SplitAttn, StdConv2d, StdConv2dSame
from timm.layers.cond_conv2d import CondConv2d
from timm.models.byobnet import MobileOneBlock, RepVggBlock
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune import DHP, Budget, HyperModel, export_pruned, hyperize
from hyperprune.budget import Ladder
from hyperprune.errors import ProofError
from hyperprune.export import export_with_proof
from hyperprune.verify import compare
from tests.halving import halved, stays, units_of
from tests.models import Net, randomise_norms_, relative_error, searched

KINDS = [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def norm_free(kind: type[nn.Conv2d], width: int = 12) -> nn.Module:
    """A residual network of standardised convolutions, with raw weights far from mean 0 and gains far from 1."""
    torch.manual_seed(0)
    parts = {
        "stem": kind(3, width, 3, stride=2),
        "a": kind(width, 16, 1),
        "g": kind(16, 16, 3, groups=4),
        "b": kind(16, width, 1),
        "fc": nn.Linear(width, 4),
    }
    for part in list(parts.values())[:-1]:
        with torch.no_grad():
            part.weight.add_(0.3 * torch.rand(len(part.weight), 1, 1, 1))
            for gain in [part.gain] if hasattr(part, "gain") else []:
                gain.uniform_(0.5, 1.5)
    return Net(parts, _norm_free)


def _norm_free(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = x + net.b(F.silu(net.g(F.silu(net.a(F.silu(x))))))
    return net.fc(x.mean((2, 3)) / 50)


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def without(hyper: HyperModel, layer: str, count: int) -> HyperModel:
    """Remove the first units of the group whose channels a layer makes."""
    start = hyper.coupling.group(layer).start
    units = torch.arange(hyper.coupling.units)
    hyper.bank.remove_((units >= start) & (units < start + count))
    return hyper


@every_kind
class TestStandardisedConvolutions:
    def test_every_width_of_a_norm_free_network_may_go(self, kind: type[nn.Conv2d]) -> None:
        hyper, slim = halved(norm_free(kind), image())
        assert [units_of(hyper, layer) for layer in ("stem", "a", "g", "b")] == [12, 16, 16, 12]
        assert slim.b.weight.shape == (slim.stem.out_channels, slim.g.out_channels, 1, 1)

    def test_the_export_is_exact_in_double_precision(self, kind: type[nn.Conv2d]) -> None:
        model, x = norm_free(kind).double(), image().double()
        _, slim = halved(model, x, bound=1e-12)
        assert slim.stem.out_channels < 12

    def test_searched_latents_are_folded_in_exactly(self, kind: type[nn.Conv2d]) -> None:
        hyper = searched(norm_free(kind), image(), Budget(macs=0.5))
        assert not torch.equal(hyper.bank.latents, torch.ones_like(hyper.bank.latents))
        slim, proof = export_with_proof(hyper)
        assert proof.relative_error <= 1e-5
        assert slim.a.out_channels < 16

    def test_what_the_slim_layer_computes_is_its_own_formula_on_its_own_weight(self, kind: type[nn.Conv2d]) -> None:
        model = norm_free(kind)
        slim = export_pruned(without(hyperize(model, image()), "stem", 5))
        raw = model.a.weight[:, 5:]
        assert torch.equal(slim.a.weight, raw)
        mean, variance = raw.mean((1, 2, 3), keepdim=True), raw.var((1, 2, 3), correction=0, keepdim=True)
        rows = (raw - mean) / (variance + slim.a.eps).sqrt()
        if hasattr(slim.a, "gain"):
            rows = rows * slim.a.gain * slim.a.scale
        x = torch.randn(2, 7, 4, 4)
        assert compare(F.conv2d(x, rows, slim.a.bias), slim.a(x)).relative_error < 1e-5

    def test_a_removed_channel_is_felt_by_the_rows_only_through_their_statistics(self, kind: type[nn.Conv2d]) -> None:
        wide, x = norm_free(kind, width=64), image()
        hyper = hyperize(wide, x)
        before = hyper.model.a.weight.detach()
        without(hyper, "stem", 1)
        after = hyper.model.a.weight.detach()
        standard = [F.batch_norm(w.reshape(1, 16, -1), None, None, training=True)[0] for w in (before, after)]
        assert standard[1][:, 0].abs().max() < 1e-4  # the dead entry
        shown = standard[1][:, 1:] * (63 / 64) ** 0.5  # what the division of the input by s makes of it
        assert relative_error(standard[0][:, 1:], shown) < 0.2

    def test_every_latent_feels_the_loss(self, kind: type[nn.Conv2d]) -> None:
        hyper = hyperize(norm_free(kind), image())
        hyper(image()).square().sum().backward()
        assert hyper.bank.latents.grad is not None
        assert (hyper.bank.latents.grad != 0).all()

    def test_a_dead_channel_cannot_be_felt_even_where_its_producer_explodes(self, kind: type[nn.Conv2d]) -> None:
        hyper = without(hyperize(norm_free(kind), image()), "a", 1)  # one group of four channels
        before = hyper(image())
        hyper.model.g.register_forward_hook(lambda m, a, out: torch.cat([out[:, :4] * 1e6, out[:, 4:]], 1))
        assert torch.equal(hyper(image()), before)

    def test_the_layers_are_plain_again_after_export(self, kind: type[nn.Conv2d]) -> None:
        slim = export_pruned(without(hyperize(norm_free(kind), image()), "stem", 3))
        assert not any(parametrize.is_parametrized(module) for module in slim.modules())
        assert not any(module._forward_pre_hooks for module in slim.modules())
        assert {type(slim.stem), type(slim.a), type(slim.b)} == {kind}


@every_kind
def test_a_pointwise_layer_keeps_two_channels_for_torch_does_not_standardise_a_single_number(kind: type) -> None:
    hyper = hyperize(norm_free(kind), image())
    assert [group.least for group in hyper.coupling.groups] == [2, 2]
    assert Ladder.of(hyper.coupling.groups, Budget(macs=0.5)).lowest.tolist() == [2, 2]
    for group in hyper.coupling.groups:
        without(hyper, group.name, group.size - 2)
    _, proof = export_with_proof(hyper)
    assert proof.relative_error <= 1e-5
    with pytest.raises(ProofError, match="more than 1 value"):
        export_with_proof(without(hyper, "stem", hyper.coupling.group("stem").size - 1))


def test_standardised_convolutions_work_with_the_hypernetwork_of_dhp() -> None:
    hyper = hyperize(norm_free(ScaledStdConv2d), image(), generator=DHP())
    without(hyper, "stem", 4)
    assert export_with_proof(hyper)[1].relative_error <= 1e-6


def test_a_layer_that_reads_its_input_twice_keeps_what_it_reads() -> None:
    class Gated(StdConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.mean((1, 2, 3), keepdim=True).sigmoid()

    parts = {"stem": nn.Conv2d(3, 6, 1), "std": Gated(6, 8, 1), "out": nn.Conv2d(8, 2, 1)}
    hyper, slim = halved(Net(parts, lambda net, x: net.out(net.std(net.stem(x)))), image())
    assert units_of(hyper, "stem") == 0
    assert slim.std.out_channels < 8


def test_an_activation_inside_the_layer_keeps_what_it_reads() -> None:
    class Activated(StdConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.silu(x))

    parts = {"stem": nn.Conv2d(3, 6, 1), "std": Activated(6, 8, 1), "out": nn.Conv2d(8, 2, 1)}
    hyper, slim = halved(Net(parts, lambda net, x: net.out(net.std(net.stem(x)))), image())
    assert "computed in forward()" in stays(hyper, "stem")
    assert slim.std.out_channels < 8


class Multiplied(nn.Conv2d):
    """A convolution whose weight a second tensor multiplies: a mask (PixelCNN), a scale for each channel."""

    def __init__(self, inputs: int, outputs: int, by: Tensor, **options: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, **options)
        if by.is_floating_point():
            self.by = nn.Parameter(by)
        else:
            self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.by.to(self.weight) * self.weight
        return F.conv2d(x, weight, self.bias, padding=1, groups=self.groups)


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4


FACTORS = {
    "a mask": mask(10, 6, 3, 3),
    "a scale for each element": 0.5 + torch.rand(10, 6, 3, 3),
    "a scale for each channel made": 0.5 + torch.rand(10, 1, 1, 1),
    "a scale for each channel read": 0.5 + torch.rand(6, 1, 1),
    "a scale for each pair of channels": 0.5 + torch.rand(10, 6, 1, 1),
    "one mask for all channels": mask(3, 3),
    "a mask too large to name each element of": mask(200, 160, 3, 3),
}


@pytest.mark.parametrize("generator", [None, DHP()], ids=["lean", "DHP"])
@pytest.mark.parametrize("by", FACTORS)
def test_what_multiplies_a_weight_loses_the_same_channels(by: str, generator: DHP | None) -> None:
    factor = FACTORS[by]
    outputs, inputs = factor.shape[:2] if factor.ndim == 4 and factor.shape[1] > 1 else (10, 6)
    parts = {"a": nn.Conv2d(3, inputs, 1), "b": Multiplied(inputs, outputs, factor), "out": nn.Conv2d(outputs, 2, 1)}
    model = Net(parts, lambda net, x: net.out(torch.relu(net.b(torch.relu(net.a(x))))))
    hyper = hyperize(model, image(), generator=generator)
    assert (units_of(hyper, "a"), units_of(hyper, "b")) == (inputs, outputs)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 2 == 0)
    slim, proof = export_with_proof(hyper)
    assert slim.b.weight.shape[:2] == (outputs // 2, inputs // 2)
    assert proof.relative_error <= 1e-6


def test_a_scale_for_each_depthwise_filter_goes_with_it() -> None:
    """A fixed mask as the weight, a trained scale for each channel (edge-oriented convolutions, ECBSR)."""
    parts = {
        "a": nn.Conv2d(3, 8, 1),
        "edges": Multiplied(8, 8, 0.5 + torch.rand(8, 1, 1, 1), groups=8),
        "out": nn.Conv2d(8, 2, 1),
    }
    parts["edges"].weight.requires_grad_(False)
    hyper, slim = halved(Net(parts, lambda net, x: net.out(net.edges(net.a(x)))), image())
    assert units_of(hyper, "a") == 8
    assert len(slim.edges.by) == slim.edges.groups == slim.out.in_channels < 8


def test_a_number_over_a_weight_is_no_weight() -> None:
    class Inverse(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, 1 / (self.weight.abs() + 1), self.bias)

    parts = {"a": nn.Conv2d(3, 6, 1), "b": Inverse(6, 8, 1), "c": nn.Conv2d(8, 7, 1), "out": nn.Conv2d(7, 2, 1)}
    hyper, _ = halved(Net(parts, lambda net, x: net.out(net.c(net.b(net.a(x))))), image())
    assert "computed in forward()" in stays(hyper, "a")
    assert units_of(hyper, "c") == 7


@pytest.mark.parametrize(("radix", "groups"), [(1, 1), (2, 1), (4, 1)])
def test_split_attention_loses_the_same_channels_of_every_split(radix: int, groups: int) -> None:
    attention = SplitAttn(16, 24, radix=radix, groups=groups, norm_layer=nn.BatchNorm2d, rd_channels=8)
    parts = {"stem": nn.Conv2d(3, 16, 1), "attention": attention, "out": nn.Conv2d(24, 2, 1)}
    model = randomise_norms_(Net(parts, lambda net, x: net.out(net.attention(torch.relu(net.stem(x))))))
    _, slim = halved(model, image())
    assert slim.attention.conv.groups == radix
    assert slim.attention.conv.out_channels == radix * slim.out.in_channels < radix * 24
    assert slim.stem.out_channels == slim.attention.conv.in_channels < 16


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": lambda: RepVggBlock(8, 8),
    "MobileOne": lambda: MobileOneBlock(8, 8, num_conv_branches=2),
    "depthwise MobileOne": lambda: MobileOneBlock(8, 8, group_size=1),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_parallel_branches_of_one_block_lose_the_same_channels(name: str) -> None:
    parts = {"stem": nn.Conv2d(3, 8, 1), "block": BRANCHES[name](), "out": nn.Conv2d(8, 2, 1)}
    model = randomise_norms_(Net(parts, lambda net, x: net.out(net.block(torch.relu(net.stem(x))))))
    hyper, slim = halved(model, image())
    assert units_of(hyper, "stem") == 8
    assert slim.out.in_channels == slim.stem.out_channels < 8  # the identity branch ties both ends


class Mixture(nn.Module):
    """A convolution whose kernel is a mixture of experts, chosen by the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.route, self.cond = nn.Linear(6, 4), CondConv2d(6, 10, 3, padding=1, num_experts=4)
        self.last, self.out = nn.Conv2d(10, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mid(torch.relu(self.stem(x))))
        x = torch.relu(self.cond(x, self.route(x.mean((2, 3))).sigmoid()))
        return self.out(torch.relu(self.last(x)))


def test_a_mixture_of_kernels_stays_with_a_reason_and_the_rest_goes() -> None:
    hyper, slim = halved(Mixture(), image())
    assert "computed in forward()" in stays(hyper, "mid")
    assert (slim.mid.out_channels, slim.cond.out_channels) == (6, 10)
    assert slim.stem.out_channels < 8
    assert slim.last.out_channels < 12
