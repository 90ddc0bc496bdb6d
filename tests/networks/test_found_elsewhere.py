"""Layers of networks that others wrote (restoration, transformers), each of which once froze or went wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune import Budget, export_pruned, hyperize, prune
from hyperprune.export import export_with_proof

SEEDS = range(8)


class Attention(nn.Module):
    """Heads attend over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, c = x.shape
        return self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class OverChannels(Attention):
    """Channels of a head attend to each other."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.mT for part in self.parts(x))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        return self.proj((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(x.shape))


class InTwoSteps(Attention):
    """Query, key and value are told apart first, heads afterwards."""

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, c = x.shape
        parts = self.qkv(x).reshape(b, n, 3, c).permute(2, 0, 1, 3)
        return tuple(t.reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3) for t in parts)


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's layer norm for images, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(1, keepdim=True)
        scaled = off / torch.sqrt(off.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


def tokens_to(*parts: nn.Module, width: int = 24) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), Residual(*parts), nn.Linear(width, 4))


def perceptron(width: int = 24) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))


@pytest.mark.parametrize("seed", SEEDS)
def test_two_attentions_of_two_heads_export_whatever_is_left(seed: int) -> None:
    """Of two heads and of two units of a stream, one each was kept by every rehearsal: a wrong tie went unnoticed."""
    torch.manual_seed(seed)
    model = tokens_to(Attention(24, 2), perceptron(), OverChannels(24, 2), perceptron())
    hyper = hyperize(model, torch.randn(2, 7, 5))
    keep = torch.rand(hyper.coupling.units) < 0.6
    for group in hyper.coupling.groups:
        keep[group.start] |= not keep[group.units].any()
    hyper.bank.keep_(keep)
    export_pruned(hyper)  # proves that it is equal


def test_heads_that_come_with_a_second_reshape() -> None:
    hyper = hyperize(tokens_to(InTwoSteps(24, 3)), torch.randn(2, 7, 5))
    assert [frozen.layer for frozen in hyper.coupling.frozen] == ["2"]
    assert sorted(group.size for group in hyper.coupling.groups)[0] == 3
    prune(tokens_to(InTwoSteps(24, 3)), torch.randn(2, 7, 5), Budget(macs=0.6))


def test_two_written_norms_read_one_tensor() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 3, 1)
            self.one, self.other = ChannelsFirstNorm(24), ChannelsFirstNorm(24)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(self.c(self.one(x)) + self.other(x))

    slim = prune(Net(), torch.randn(2, 3, 9, 9), Budget(macs=0.5))
    assert slim.a.out_channels == slim.one.weight.numel() < 24


def test_a_partial_convolution_written_in_place() -> None:
    class Partial(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.width = nn.Conv2d(width, width, 5, 1, 2), width

        def forward(self, x: Tensor) -> Tensor:
            x[:, : self.width] = self.conv(x[:, : self.width])
            return x

    def block() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(16, 32, 3, 1, 1), nn.GELU(), nn.Conv2d(32, 16, 1), Partial(4), nn.Conv2d(16, 16, 1)
        )

    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), Residual(block(), block()), nn.Conv2d(16, 3, 3, 1, 1))
    hyper = hyperize(model, torch.randn(1, 3, 12, 12))
    assert [frozen.layer for frozen in hyper.coupling.frozen] == ["2"]
    slim = prune(model, torch.randn(1, 3, 12, 12), Budget(macs=0.5))
    larger = torch.randn(1, 3, 20, 20)
    assert slim(larger).shape == larger.shape


def test_layers_without_any_weight() -> None:
    """A width divided down to zero leaves them (DAT, CRAFT at small widths)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(8, 8), nn.Linear(8, 2)
            self.into_nothing, self.from_nothing = nn.Linear(2, 0), nn.Linear(0, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.a(x) + self.from_nothing(self.into_nothing(x[:, :2]))).relu())

    assert [group.size for group in hyperize(Net(), torch.randn(2, 8)).coupling.groups] == [8]


class BiasFreeNorm(nn.Module):
    """Restormer's layer norm without a bias: the mean stays in what is divided."""

    def __init__(self, width: int, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        return scaled if self.weight is None else scaled * self.weight


class Unbiased(BiasFreeNorm):
    """The same, with Bessel's correction."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)
        return scaled if self.weight is None else scaled * self.weight


@pytest.mark.parametrize("norm", [BiasFreeNorm, Unbiased])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_norm_that_leaves_the_mean_in(norm: type[BiasFreeNorm], weighted: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 24), norm(24, weighted), nn.Linear(24, 4)).double()
    hyper = hyperize(model, torch.randn(3, 4).double())
    hyper.bank.keep_(torch.arange(24) % 3 > 0)
    slim, proof = export_with_proof(hyper)
    assert slim[0].out_features == 16
    assert proof.relative_error < 1e-12


class UnitNorm(nn.Module):
    """Divides tokens by their length, in one of the ways that people multiply them again."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5) if "gain" in way else None
        self.scale, self.way = width**0.5, way

    def forward(self, x: Tensor) -> Tensor:
        made = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6) if "by hand" in self.way else F.normalize(x, dim=-1)
        if "number" in self.way:
            made = made * self.scale
        if self.gain is not None:
            made = made * self.gain
        return made * x.shape[-1] ** 0.5 if "width" in self.way else made


WAYS = ["plain", "gain", "number", "number gain", "number gain by hand", "width", "gain width"]


@pytest.mark.parametrize("way", WAYS)
def test_norms_by_the_length_know_where_their_number_comes_from(way: str) -> None:
    norm = UnitNorm(24, way)
    model = nn.Sequential(nn.Linear(5, 24), Residual(nn.Sequential(norm, nn.Linear(24, 24))), nn.Linear(24, 4)).double()
    x = torch.randn(2, 7, 5).double()
    hyper = hyperize(model, x)
    assert torch.equal(hyper(x), model(x))
    assert [found.kind for found in hyper.coupling.norms] == ["rms" if "width" in way else "unit"]
    hyper.bank.keep_(torch.arange(24) % 3 > 0)
    slim, proof = export_with_proof(hyper)
    assert slim[0].out_features == 16
    assert proof.relative_error < 1e-12


class SizeOfAPart(nn.Module):
    """Takes a size of a part of its tokens, without gradients: torch.export forgets who reads that part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        part = y[:, 1:]
        with torch.no_grad():
            places = torch.linspace(0, 1, part.shape[1]).sin()
        return self.last(y) * places.mean()


def test_a_size_that_a_region_without_gradients_takes() -> None:
    hyper = hyperize(SizeOfAPart(), torch.randn(2, 6, 8))
    assert [group.size for group in hyper.coupling.groups] == [8]


class Pairs(nn.Module):
    """A block whose channels come in pairs; it keeps their number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x + self.other(self.one(x).view(b, c // 2, 2, h, w).transpose(1, 2).reshape(b, c, h, w))


class Sliced(nn.Module):
    """Runs slices of a container, one by one and as a whole (RT-DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), Pairs(), Pairs(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1](self.layers[1:3](x))


def test_layers_of_a_sliced_container_keep_their_names() -> None:
    hyper = hyperize(Sliced(), torch.randn(2, 3, 6, 6))
    assert {size.module for size in hyper.coupling.sizes} <= {"layers.1", "layers.2"}
    prune(Sliced(), torch.randn(2, 3, 6, 6), Budget(macs=0.6))


@pytest.mark.parametrize("container", [nn.Sequential, nn.ModuleList])
def test_slices_of_containers_name_the_layers_that_run(container: type[nn.Module]) -> None:
    """torch.export records how a slice was reached where the network holds one module under two names."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = [Pairs() for _ in range(4)]
            self.parts = container(*parts) if container is nn.Sequential else container(parts)
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
            self.one = self.same = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(self.first(x))
            for part in self.parts[1:][1:]:
                x = part(x)
            return self.last(self.same(self.parts[:2][1](x)))

    hyper = hyperize(Net(), torch.randn(2, 3, 6, 6))
    assert {size.module for size in hyper.coupling.sizes} == {"parts.1", "parts.2", "parts.3"}
    prune(Net(), torch.randn(2, 3, 6, 6), Budget(macs=0.6))


class Windows(nn.Module):
    """Windows of one pixel, as einops lays them out: strides of axes of length 1 tell kernels apart (CrossFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 512), nn.Conv2d(512, 512, 1, bias=False), nn.Conv2d(512, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).unflatten(-1, (-1, 32)).transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return self.c(self.b(y.unflatten(2, (1, 1)).permute(0, 1, 4, 2, 3).flatten(1, 2)))


def test_outputs_stay_bit_equal_behind_axes_of_length_one() -> None:
    model, x = Windows(), torch.randn(49, 1, 8)
    assert torch.equal(hyperize(model, x)(x), model(x))


class ToAPart(nn.Module):
    """Attention to a part of the channels (SHViT): its values are as many as that part, by one attribute."""

    def __init__(self, width: int, keys: int, part: int) -> None:
        super().__init__()
        self.dim, self.qk_dim, self.pdim, self.scale = width, keys, part, keys**-0.5
        self.norm, self.qkv = nn.GroupNorm(1, part), nn.Conv2d(part, 2 * keys + part, 1)
        self.proj = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.pdim, self.dim - self.pdim], dim=1)
        q, k, v = torch.split(self.qkv(self.norm(first)), [self.qk_dim, self.qk_dim, self.pdim], dim=1)
        scores = (q.flatten(2).mT @ k.flatten(2)) * self.scale
        first = (v.flatten(2) @ scores.softmax(-1).mT).reshape(len(x), self.pdim, *x.shape[2:])
        return self.proj(torch.cat([first, rest], 1))


def test_values_as_many_as_the_part_of_the_channels_that_is_cut_off() -> None:
    torch.manual_seed(0)
    blocks = Residual(ToAPart(32, 8, 12), ToAPart(32, 8, 12))
    model = nn.Sequential(nn.Conv2d(3, 32, 3), blocks, nn.Conv2d(32, 4, 1))
    hyper = hyperize(model, torch.randn(2, 3, 8, 8))
    assert {group.name: group.size for group in hyper.coupling.groups} == {
        "0": 12, "0#2": 20, "1.parts.0.qkv": 8, "1.parts.1.qkv": 8,
    }  # fmt: skip
    assert [frozen.layer for frozen in hyper.coupling.frozen] == ["2"]
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 3 > 0)
    slim = export_pruned(hyper)
    assert (slim[1].parts[0].pdim, slim[1].parts[0].qk_dim) == (8, 5)
    assert slim[1].parts[0].dim == slim[0].out_channels


class AsManyHeadsAsKeys(nn.Module):
    """Queries, keys and values lie in one axis, by a number that equals the number of heads (CPUBone)."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.num_heads, self.num_keys, self.head_dim, self.inner = heads, 3, head, heads * head
        self.qkv, self.proj = nn.Conv2d(width, 3 * self.inner, 1), nn.Conv2d(self.inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x).reshape(b, self.num_heads, self.num_keys * self.head_dim, h * w).permute(0, 1, 3, 2)
        q, k, v = qkv.chunk(3, dim=3)
        return self.proj(F.scaled_dot_product_attention(q, k, v).permute(0, 1, 3, 2).reshape(b, self.inner, h, w))


def test_three_heads_are_told_from_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(AsManyHeadsAsKeys(8, 3, 5)), nn.Conv2d(8, 4, 1))
    hyper = hyperize(model, torch.randn(2, 3, 6, 6))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("0", 8), ("1.parts.0.qkv", 3)]
    hyper.bank.remove_(torch.arange(11) == 8)
    slim = export_pruned(hyper)
    assert (slim[1].parts[0].num_heads, slim[1].parts[0].num_keys, slim[1].parts[0].inner) == (2, 3, 10)


class Seeds(nn.Module):
    """Learned queries attend to tokens (set transformers)."""

    def __init__(self, *, added: bool) -> None:
        super().__init__()
        self.added, self.seeds = added, nn.Parameter(torch.randn(3, 8))
        self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.k(x)
        pooled = (self.seeds @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1) @ self.v(x)
        return self.out(self.seeds + pooled if self.added else pooled)


@pytest.mark.parametrize("added", [False, True])
def test_learned_queries_whose_scores_are_divided_by_the_root_of_the_width(added: bool) -> None:
    torch.manual_seed(0)
    hyper = hyperize(Seeds(added=added), torch.randn(2, 5, 6))
    assert [frozen.layer for frozen in hyper.coupling.frozen] == ["out"]
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 0)
    export_pruned(hyper)


def test_a_matrix_times_a_vector_is_no_mix_of_tokens() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.weight = nn.Linear(3, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ self.b(self.a(x).relu()).mean((0, 1))

    hyper = hyperize(Head(), torch.randn(2, 5, 3))
    assert [group.name for group in hyper.coupling.groups] == ["a"]


@pytest.mark.parametrize("between", [nn.ReLU(), nn.LayerNorm(8)])
def test_learned_queries_of_what_no_layer_makes(between: nn.Module) -> None:
    class Queried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.between, self.queries = nn.Linear(6, 8), between, nn.Parameter(torch.randn(3, 8))
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.between(self.a(x))
            return self.out((self.queries @ y.mT).softmax(-1) @ y)

    torch.manual_seed(0)
    hyper = hyperize(Queried(), torch.randn(2, 5, 6))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("a", 8)]
    hyper.bank.remove_(torch.arange(8) < 3)
    assert export_pruned(hyper).queries.shape == (3, 5)
