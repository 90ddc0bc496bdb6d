from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import export_pruned, hyperize
from hyperprune.export import export_with_proof
from hyperprune.labels.reasons import REDUCED
from tests.halving import halved, units_of
from tests.models import Net


class Residual(nn.Module):
    """A pre-norm residual block: the stream is read by a norm, a layer and the head."""

    def __init__(self, norm: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 1)
        self.norm = norm
        self.inner = nn.Conv2d(width, 20, 1)
        self.out = nn.Conv2d(20, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.out(torch.relu(self.normed(x)))
        return self.head(x.mean((2, 3)))

    def normed(self, x):
        return self.inner(self.norm(x))


class ChannelsLast(Residual):
    def normed(self, x):
        return self.inner(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class OwnLayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Gammas(nn.Module):
    """A layer norm whose parameters have other names, and whose size is an attribute."""

    def __init__(self, width):
        super().__init__()
        self.width, self.gamma, self.beta = (width,), nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return nn.functional.layer_norm(x, self.width, self.gamma, self.beta)


class Float64(Gammas):
    """A layer norm that computes in another type."""

    def forward(self, x):
        gamma, beta = self.gamma.double(), self.beta.double()
        return nn.functional.layer_norm(x.double(), self.width, gamma, beta).to(x.dtype)


class WrittenOut(Gammas):
    """The layer norm over an image's channels as ConvNeXt's authors write it."""

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.gamma[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.beta[:, None, None]


class Turned(Gammas):
    """The norm over channels and space that Asteroid writes, which scales its result with the channels last."""

    def forward(self, x):
        axes = torch.arange(1, x.ndim).tolist()
        x = (x - x.mean(axes, keepdim=True)) / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-8)
        return (self.gamma * x.transpose(1, -1) + self.beta).transpose(1, -1)


class Llama(Gammas):
    """The RMS norm of language models: in float32, whatever the type of its input."""

    def forward(self, x):
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.gamma * y.to(x.dtype)


class Deviations(Gammas):
    """The layer norm of the Annotated Transformer: by the deviation, with Bessel's correction."""

    def forward(self, x):
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.gamma * (x - mean) / (deviation + 0.1) + self.beta


class Corrected(Gammas):
    """A layer norm whose variance has Bessel's correction."""

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 0.1).sqrt() * self.gamma + self.beta


class Simple(Gammas):
    """timm's SimpleNorm2d: by the root of the variance alone, over channels that it turns last first."""

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = x * torch.rsqrt(torch.var(x, dim=(-1,), keepdim=True) + 0.1) * self.gamma + self.beta
        return x.permute(0, 3, 1, 2)


class Responses(Gammas):
    """ConvNeXt V2's: each channel's norm over space beside the mean of all of them."""

    def forward(self, x):
        lengths = x.norm(p=2, dim=(1, 2), keepdim=True)
        share = lengths / (lengths.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


NETWORKS = {
    "response norm": lambda: ChannelsLast(Responses(12)),
    "layer norm with names of its own": lambda: ChannelsLast(Gammas(12)),
    "layer norm in another type": lambda: ChannelsLast(Float64(12)),
    "layer norm written out": lambda: Residual(WrittenOut(12)),
    "norm over all written out": lambda: Residual(Turned(12)),
    "layer norm by the deviation": lambda: ChannelsLast(Deviations(12)),
    "layer norm with a corrected variance": lambda: ChannelsLast(Corrected(12)),
    "norm by the corrected variance alone": lambda: Residual(Simple(12)),
    "rms norm written out": lambda: ChannelsLast(Llama(12)),
    "layer norm": lambda: ChannelsLast(nn.LayerNorm(12)),
    "layer norm with its own permutation": lambda: Residual(OwnLayerNorm2d(12)),
    "rms norm": lambda: ChannelsLast(nn.RMSNorm(12)),
    "group norm": lambda: Residual(nn.GroupNorm(3, 12)),
    "group norm of one group": lambda: Residual(nn.GroupNorm(1, 12)),
}


def trained(name: str) -> nn.Module:
    """A network whose norm has weights and biases that matter."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.norm.parameters():  # as they start, some are ones and some zeros
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", NETWORKS)
class TestNormsOverChannels:
    def test_hyperize_is_bit_exact_in_eval_and_train_mode(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        for mode in (False, True):
            assert torch.equal(hyper.train(mode)(x), model.train(mode)(x))

    def test_the_residual_stream_is_prunable_and_the_export_exact(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        stream = hyper.coupling.group("embed")
        hyper.bank.remove_(torch.arange(hyper.coupling.units).eq(stream.start))
        slim, proof = export_with_proof(hyper)
        assert slim.embed.out_channels == 12 - stream.width
        assert proof.relative_error < 1e-6

    def test_removing_a_channel_changes_what_the_norm_computes_for_the_others(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        before = hyper(x)
        hyper.bank.remove_(torch.arange(hyper.coupling.units).eq(hyper.coupling.group("embed").start))
        assert (hyper(x) - before).abs().max() > 1e-3

    def test_the_norm_is_a_plain_layer_again_after_export(self, name):
        model, x = trained(name), torch.randn(1, 3, 5, 5)
        slim = export_pruned(hyperize(model, x))
        assert type(slim.norm) is type(model.norm)
        assert not slim.norm._forward_pre_hooks
        for made, given in zip(slim.norm.parameters(), model.norm.parameters(), strict=True):
            assert torch.equal(made, given)


@pytest.mark.parametrize(("norm", "least"), [(Deviations, 2), (Corrected, 2), (Gammas, 1)])
def test_two_channels_stay_where_the_variance_of_one_is_none(norm, least):
    hyper = hyperize(ChannelsLast(norm(12)), torch.randn(2, 3, 5, 5))
    assert hyper.coupling.group("embed").least == least


def test_the_users_own_hooks_stay_on_the_norm():
    calls = []
    model = ChannelsLast(nn.LayerNorm(12))
    model.norm.register_forward_pre_hook(lambda module, args: calls.append(len(args)))
    slim = export_pruned(hyperize(model, torch.randn(1, 3, 5, 5)))
    calls.clear()
    slim(torch.randn(1, 3, 5, 5))
    assert calls == [1]


def test_a_norm_called_inside_another_layers_forward_keeps_its_channels():
    class Functional(Residual):
        def normed(self, x):
            rows = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (12,), self.norm.weight, self.norm.bias)
            return self.inner(rows.permute(0, 3, 1, 2))

    hyper = hyperize(Functional(nn.LayerNorm(12)), torch.randn(1, 3, 5, 5))
    assert [group.name for group in hyper.coupling.groups] == ["inner"]
    assert any("norm reads all channels" in frozen.reason for frozen in hyper.coupling.frozen)


def test_a_norm_whose_input_is_passed_by_name_counts_the_living_too():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.norm(input=self.a(x)))

    hyper = hyperize(Named(), torch.randn(2, 3))
    hyper.bank.remove_(torch.arange(8) < 3)
    slim, proof = export_with_proof(hyper)
    assert slim.norm.normalized_shape == (5,)
    assert not slim.norm._forward_pre_hooks
    assert not slim.norm._forward_pre_hooks_with_kwargs
    assert proof.relative_error < 1e-6


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_may_be_called_on_inputs_of_different_ranks(kind: type[nn.Module]):
    parts = {"embed": nn.Linear(5, 8), "norm": kind(8), "inner": nn.Linear(8, 8), "out": nn.Linear(8, 3)}

    def run(net: Any, x: Tensor) -> Tensor:
        tokens = net.norm(net.embed(x))
        return net.out(net.norm((tokens + net.inner(tokens)).mean(1)))

    hyper, slim = halved(Net(parts, run), torch.randn(2, 6, 5))
    assert units_of(hyper, "embed") == 8
    assert slim.norm.normalized_shape == (slim.embed.out_features,)


class SixGroups(nn.Module):
    """A group norm with a number of groups that is an attribute."""

    def __init__(self, width):
        super().__init__()
        self.parts = 6
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x):
        return nn.functional.group_norm(x, self.parts, self.scale, self.shift)


class AlwaysSixGroups(SixGroups):
    """A group norm with a number of groups that is written into forward()."""

    def forward(self, x):
        return nn.functional.group_norm(x, 6, self.scale, self.shift)


class ByGroups(SixGroups):
    """A norm over groups written out, positions beside channels."""

    def forward(self, x):
        rows = x.flatten(2).reshape(len(x), self.parts, -1)
        rows = (rows - rows.mean(-1, keepdim=True)) / (rows.float().var(-1, keepdim=True) + 1e-5).sqrt()
        return rows.reshape(x.shape) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class Evo(SixGroups):
    """EvoNorm-S0: what passes a gate of its own is divided by the standard deviation of its group."""

    def forward(self, x):
        rows = x.reshape(len(x), self.parts, -1, *x.shape[2:])
        spread = rows.float().var((2, 3, 4), keepdim=True).add(1e-5).sqrt().expand(rows.shape).reshape(x.shape)
        return x * x.sigmoid() / spread * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


def half_removed(model):
    """Hyperize, remove every second unit of every group, export; the searched network, the slim one and the proof."""
    hyper = hyperize(model, torch.randn(1, 3, 5, 5))
    hyper.bank.remove_(torch.cat([torch.arange(group.size) % 2 for group in hyper.coupling.groups]) == 1)
    return hyper, *export_with_proof(hyper)


class TestNormsOfGroups:
    """Whole groups of a group norm go where that leaves more widths than the same channels of every group would."""

    @pytest.mark.parametrize(("groups", "units", "left"), [(6, 6, 3), (4, 4, 2), (12, 12, 6)])
    @pytest.mark.parametrize("affine", [True, False])
    def test_whole_groups_go_and_the_others_compute_what_they_did(self, groups, units, left, affine):
        hyper, slim, proof = half_removed(Residual(nn.GroupNorm(groups, 12, affine=affine)))
        assert hyper.coupling.group("embed").size == units
        assert hyper.coupling.norms == ()
        assert (slim.norm.num_groups, slim.norm.num_channels) == (left, 12 * left // groups)
        assert proof.relative_error < 1e-6

    @pytest.mark.parametrize(("groups", "units", "left"), [(3, 4, 6), (2, 6, 6)])
    def test_few_large_groups_lose_the_same_channels_each(self, groups, units, left):
        hyper, slim, proof = half_removed(Residual(nn.GroupNorm(groups, 12)))
        assert hyper.coupling.group("embed").size == units
        assert [norm.module for norm in hyper.coupling.norms] == ["norm"]
        assert (slim.norm.num_groups, slim.norm.num_channels) == (groups, left)
        assert proof.relative_error < 1e-6

    def test_a_number_of_groups_that_is_an_attribute_follows(self):
        hyper, slim, proof = half_removed(Residual(SixGroups(12)))
        assert hyper.coupling.group("embed").size == 6
        assert (slim.norm.parts, len(slim.norm.scale)) == (3, 6)
        assert proof.relative_error < 1e-6

    @pytest.mark.parametrize("kind", [ByGroups, Evo])
    def test_whole_groups_go_of_a_norm_that_is_written_out(self, kind):
        hyper, slim, proof = half_removed(Residual(kind(12)))
        assert hyper.coupling.group("embed").size == 6
        assert (slim.norm.parts, len(slim.norm.scale)) == (3, 6)
        assert proof.relative_error < 1e-6

    @pytest.mark.parametrize("kind", [ByGroups, Evo])
    def test_a_convolution_in_wide_groups_loses_those_that_the_norm_behind_it_wants_whole(self, kind):
        parts = (nn.Conv2d(3, 48, 1), kind(48), nn.Conv2d(48, 48, 3, groups=6), kind(48), nn.Conv2d(48, 2, 1))
        hyper, slim, proof = half_removed(nn.Sequential(*parts))
        assert [group.size for group in hyper.coupling.groups] == [6]
        assert (slim[2].groups, slim[2].out_channels, slim[3].parts) == (3, 24, 3)
        assert proof.relative_error < 1e-6

    def test_a_number_of_groups_written_into_forward_stays_and_each_group_gets_thinner(self):
        hyper, slim, proof = half_removed(Residual(AlwaysSixGroups(12)))
        assert hyper.coupling.group("embed").size == 2
        assert len(slim.norm.scale) == 6
        assert proof.relative_error < 1e-6

    def test_all_norms_of_a_network_are_read_alike(self):
        """Read one by one, the norm behind the concatenation would tie all channels of both branches."""
        model = nn.ModuleDict({"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(3, 16, 1), "out": nn.Conv2d(32, 2, 1)})
        model["one"], model["both"] = nn.GroupNorm(4, 16), nn.GroupNorm(4, 32)
        whole = Net(dict(model.items()), lambda net, x: net.out(net.both(torch.cat([net.one(net.a(x)), net.b(x)], 1))))
        hyper = hyperize(whole, torch.randn(1, 3, 5, 5))
        assert [group.size for group in hyper.coupling.groups] == [2, 2]
        assert hyper.coupling.norms == ()


def test_a_norm_that_casts_to_the_type_its_input_has_still_reads_the_stream():
    """OpenAI's CLIP: the cast returns its input itself, and the residual sum around the norm uses it too."""

    class Casting(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.type(torch.float32).contiguous()).type(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = Casting(12), nn.Linear(12, 20), nn.Linear(20, 12)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x)).relu())

    torch.manual_seed(0)
    hyper = hyperize(
        nn.Sequential(nn.Linear(3, 12), Block(), Block(), Casting(12), nn.Linear(12, 2)), torch.randn(2, 3)
    )
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("0", 12), ("1.up", 20), ("2.up", 20)]
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 1)
    assert export_with_proof(hyper)[1].relative_error < 1e-6


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 12), nn.GroupNorm(3, 12), OwnLayerNorm2d(12)], ids=str)
def test_a_stream_of_which_nothing_lives_is_zero_and_no_more(norm):
    """Rules that press on all latents alike may empty a group before the last step."""
    hyper = hyperize(Residual(norm), torch.randn(2, 3, 4, 4))
    with torch.no_grad():
        hyper.bank.latents.zero_()
    out = hyper(torch.randn(2, 3, 4, 4))
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in hyper.parameters())


def test_half_precision_counts_and_adds_up_in_full():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    nn.init.ones_(model[0].bias)
    hyper = hyperize(model, torch.randn(1, 3, 8, 8)).half()
    x = torch.randn(1, 3, 96, 96).half()
    assert torch.equal(hyper(x), copy.deepcopy(model).half()(x))


class PixelNorm(nn.Module):
    """Divides each position by the root of the channels' mean square, as ProGAN does."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, 1)


class ThenShifted(nn.Module):
    """Goes on after its norm: dividing what it hands out would divide the shift too."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, 1) + 1


BARE = {
    "group norm": lambda: nn.GroupNorm(1, 12, affine=False),
    "group norm of two": lambda: nn.GroupNorm(2, 12, affine=False),
    "PixelNorm": PixelNorm,
    "functional": Functional,
    "layer norm": lambda: nn.LayerNorm(12, elementwise_affine=False),
    "RMS norm": lambda: nn.RMSNorm(12, elementwise_affine=False),
}


@pytest.mark.parametrize("kind", BARE)
def test_a_norm_without_a_weight_counts_the_living(kind: str) -> None:
    made = (ChannelsLast if kind in ("layer norm", "RMS norm") else Residual)(BARE[kind]())
    hyper, slim, proof = half_removed(made)
    x = torch.randn(2, 3, 4, 4)
    assert [norm.module for norm in hyper.coupling.norms] == ["norm"]
    assert len(slim.embed.weight) < 12
    assert proof.relative_error < 1e-6
    assert not slim.norm._forward_hooks
    assert not slim.norm._forward_pre_hooks
    whole = hyperize(made.eval(), x)
    assert torch.equal(whole(x), made(x))
    torch.testing.assert_close(copy.deepcopy(hyper)(x), slim(x))


class Inline(Residual):
    """A norm that is no layer of its own."""

    def normed(self, x: Tensor) -> Tensor:
        return self.inner(x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-8))


def test_a_norm_within_a_block_keeps_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Inline(nn.Identity()))
    hyper = hyperize(model, torch.randn(2, 3, 4, 4))
    assert hyper.coupling.norms == ()
    assert {group.name for group in hyper.coupling.groups} == {"0", "1.inner"}


def test_a_layer_that_goes_on_after_its_norm_keeps_its_channels() -> None:
    hyper = hyperize(Residual(ThenShifted()), torch.randn(2, 3, 4, 4))
    assert hyper.coupling.norms == ()
    assert "embed" not in {group.name for group in hyper.coupling.groups}


class Shared(nn.Module):
    """One PixelNorm behind two layers of different widths, as in ProGAN's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 10, 1), nn.Conv2d(10, 16, 1)
        self.d, self.norm = nn.Conv2d(16, 4, 1), PixelNorm()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.b(self.norm(torch.relu(self.a(x))))))
        return self.d(torch.relu(self.c(y)))


class Auxiliary(nn.Module):
    """The same norm once more in train mode, over channels that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 1), PixelNorm()
        self.p = nn.Sequential(nn.Conv2d(12, 6, 1), nn.Conv2d(6, 4, 1))
        self.q = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.p(self.norm(self.a(x)))
        return (y, self.q(self.norm(self.b(x)))) if self.training else y


class InATuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),)


class Behind(nn.Module):
    """Its tensor is not its first argument."""

    def forward(self, scale: None, *, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("model", [Shared, Auxiliary])
def test_a_norm_without_a_weight_that_is_called_twice_keeps_its_channels(model: type[nn.Module]) -> None:
    hyper = hyperize(model(), torch.randn(2, 3, 4, 4))
    assert hyper.coupling.norms == ()
    assert {frozen.reason for frozen in hyper.coupling.frozen if frozen.layer == "a"} == {REDUCED}


@pytest.mark.parametrize(("norm", "calls"), [(InATuple, lambda n, x: n(x)[0]), (Behind, lambda n, x: n(None, x=x))])
def test_other_ways_to_call_a_norm_without_a_weight_are_exact_or_keep_its_channels(norm: Any, calls: Any) -> None:
    made = Net(
        {"a": nn.Conv2d(3, 12, 1), "norm": norm(), "b": nn.Conv2d(12, 9, 1), "out": nn.Conv2d(9, 2, 1)},
        lambda net, x: net.out(net.b(calls(net.norm, net.a(x))).relu()),
    )
    hyper = hyperize(made, torch.randn(2, 3, 4, 4))
    assert "b" in {group.name for group in hyper.coupling.groups}
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 2 == 0)
    export_pruned(hyper)


def bare_rms(layer: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def weighted_rms(layer: Any, x: Tensor) -> Tensor:
    return bare_rms(layer, x) * layer.weight


@pytest.mark.parametrize("weight", [None, nn.Parameter(torch.rand(12) + 0.5)], ids=["bare", "weighted"])
def test_a_written_out_norm_over_the_last_axis_serves_inputs_of_any_rank(weight: nn.Parameter | None) -> None:
    norm = Net({} if weight is None else {"weight": weight}, bare_rms if weight is None else weighted_rms)
    hyper = hyperize(nn.Sequential(nn.Linear(8, 12), norm, nn.Linear(12, 4)), torch.randn(2, 5, 8)).eval()
    hyper.bank.keep_(torch.arange(12) % 3 != 0)
    slim = export_pruned(hyper).eval()
    for shape in ((5, 8), (2, 5, 8), (3, 2, 12, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(slim(x), hyper(x))


class ByLength(nn.Module):
    """A unit norm times a table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1) * self.table


def test_a_norm_by_the_length_may_be_scaled_by_a_buffer() -> None:
    hyper = hyperize(nn.Sequential(nn.Linear(3, 8), ByLength(8), nn.Linear(8, 2)), torch.randn(4, 3))
    hyper.bank.remove_(torch.arange(8) < 3)
    assert export_pruned(hyper)[1].table.shape == (5,)


def test_a_norm_that_a_buffer_scales_keeps_its_channels() -> None:
    """Only a parameter can be divided while channels die: such an export would have failed after the search."""

    class ByMeanSquare(ByLength):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.table

    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), ByMeanSquare(8), nn.Linear(8, 2))
    hyper = hyperize(model, torch.randn(4, 3))
    assert [group.name for group in hyper.coupling.groups] == ["0"]
    hyper.bank.remove_(torch.arange(8) < 3)
    assert export_pruned(hyper)[0].out_features == 5


def test_a_layer_norm_whose_weight_is_a_buffer_keeps_its_channels() -> None:
    norm = nn.LayerNorm(8)
    weight = norm.weight.detach().clone()
    del norm.weight
    norm.register_buffer("weight", weight)
    hyper = hyperize(
        nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8), norm, nn.Linear(8, 2)), torch.randn(4, 3)
    )
    assert [group.name for group in hyper.coupling.groups] == ["0"]
