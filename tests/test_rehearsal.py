"""Rehearsal: what is offered as prunable has been exported once; sizes in forward() are mended or let go of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from hyperprune import export_pruned, hyperize, load_pruned, save_pruned
from hyperprune.errors import ModelError, NothingPrunableError
from hyperprune.labels.reasons import INEXACT, RANDOM
from hyperprune.rehearsal import Choices
from hyperprune.rehearsal.first import tied
from hyperprune.rehearsal.rehearse import excerpts_for, rehearse
from hyperprune.trace import ExampleInputs
from hyperprune.verify import Proof
from tests.models import Net, couple, layout, random_half, relative_error, residual, zeroed
from tests.second_opinion import second_opinion

IMAGE = (2, 3, 4, 4)


class Mendable(nn.Module):
    """Splits by numbers that it keeps as attributes, as Res2Net does."""

    def __init__(self, left: int = 4, right: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, left + right, 1)
        self.a, self.b = nn.Conv2d(left, 5, 1), nn.Conv2d(right, 5, 1)
        self.sizes = (left, right)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), self.sizes, dim=1)
        return self.out(self.a(left) + self.b(right))


class Literal(nn.Module):
    """Splits by numbers written into the code; everything else in it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 10, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), [4, 6], dim=1)
        return self.out(self.a(left) + self.b(right))


class Shuffle(nn.Module):
    """A channel shuffle by view, between two convolutions."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.a, self.b, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = (y := self.a(x)).shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.out(self.b(y))


class Rows(nn.Module):
    """Averages rows of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.out(self.a(x).view(n, -1, 4, h, w).mean(1))


class FirstTwo(nn.Module):
    """Takes the first two channels by a number in the code."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, before, 1), nn.Conv2d(before, 5, 1)
        self.b, self.out, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.stem(x))
        return self.last(self.out(y) + self.b(y[:, :2]))


class Stale(nn.Module):
    """Divides by a width it remembers under a float, where no repair can find it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y) * (8 / y.shape[1])


def exact(model: nn.Module, x: Tensor, times: int = 5) -> Any:
    """Hyperize, and check random exports against zeroed weights; return the map."""
    model, x = model.double().eval(), x.double()
    hyper = hyperize(model, x)
    for seed in range(times):
        keep = random_half(hyper, torch.Generator().manual_seed(seed), share=0.6)
        hyper.bank.keep_(keep)
        assert relative_error(zeroed(hyper, keep)(x), export_pruned(hyper)(x)) < 1e-10
    return hyper.coupling


class Twins(Mendable):
    """As Mendable, but each size is an attribute of its own."""

    def __init__(self) -> None:
        super().__init__(5, 5)
        del self.sizes
        self.left, self.right = 5, 5

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), [self.left, self.right], dim=1)
        return self.out(self.a(left) + self.b(right))


class Bias(nn.Module):
    """A bias per head, read by a method that is not forward()."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.table = heads, nn.Linear(2, heads)

    def get_bias(self, places: Tensor) -> Tensor:
        return self.table(places).view(-1, self.heads)


class CallsAMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.a, self.bias, self.out = 4, nn.Linear(5, 4), Bias(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, self.heads) * self.bias.get_bias(x[..., :2]))


@pytest.mark.parametrize("sizes", [(4, 6), (7, 3), (2, 8), (5, 5)])
def test_sizes_kept_as_attributes_are_mended(sizes: tuple[int, int]) -> None:
    coupling = exact(Mendable(*sizes), torch.randn(IMAGE))
    assert layout(coupling, ("conv",))["conv"] == "abcdefghij"


def test_two_equal_sizes_that_would_become_different_stay_equal() -> None:
    coupling = exact(Twins(), torch.randn(IMAGE))
    assert layout(coupling, ("conv", "a")) == {"conv": "abcdeabcde", "a": "fghij", "b": "fghij", "out": ".."}


def test_a_module_whose_other_methods_are_called_takes_over_the_sizes_of_its_caller() -> None:
    model = nn.Sequential(CallsAMethod())
    coupling = exact(model, torch.randn(3, 5))
    assert coupling.group("0.a").makers == ("0.a", "0.bias.table")
    assert {size.module for size in coupling.sizes} == {"0", "0.bias"}


def test_the_slim_model_holds_the_new_sizes_and_the_model_keeps_the_old() -> None:
    model = Mendable()
    hyper = hyperize(model, torch.randn(IMAGE))
    hyper.bank.remove_(torch.isin(torch.arange(hyper.coupling.units), torch.tensor([0, 5, 6])))
    gone = [u for s in hyper.coupling.sites if s.tensor == "conv.weight" for u in s.units[:4] if not hyper.living()[u]]
    slim = export_pruned(hyper)
    assert sum(slim.sizes) == slim.conv.out_channels
    assert slim.sizes[0] == 4 - len(gone)
    assert model.sizes == hyper.model.sizes == (4, 6)


def test_sizes_written_into_the_code_are_let_go_of_with_a_reason_and_the_rest_is_offered() -> None:
    coupling = exact(Literal(), torch.randn(IMAGE))
    assert layout(coupling, ("a",)) == {"conv": ".........." , "a": "abcde", "b": "abcde", "out": ".."}  # fmt: skip
    (stays,) = [frozen for frozen in coupling.frozen if frozen.layer == "conv"]
    assert stays.reason == "a size written into forward() could not be repaired"
    assert "aten.split_with_sizes" in stays.where
    assert "test_rehearsal.py:" in stays.where


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_a_channel_shuffle_by_view_loses_the_same_index_of_every_group(groups: int) -> None:
    coupling = exact(Shuffle(groups), torch.randn(IMAGE))
    inner = "abcdefghijkl"[: 12 // groups]
    assert layout(coupling, ("a",))["a"] == inner * groups


def test_rows_of_channels_that_are_averaged_stay() -> None:
    with pytest.raises(NothingPrunableError, match=r"a reduction reads all channels together \(aten\.mean\.dim"):
        hyperize(Rows(), torch.randn(IMAGE))


@pytest.mark.parametrize("before", range(2, 16))
def test_no_mask_can_break_what_is_offered_however_the_rehearsal_fell_out(before: int) -> None:
    """The width in front moves the numbers that the rehearsal draws for the two channels."""
    coupling = exact(FirstTwo(before), torch.randn(IMAGE), times=6)
    assert layout(coupling, ("a",))["a"].startswith("..")


def test_a_size_that_nothing_can_find_is_frozen_or_refused_but_never_offered() -> None:
    with pytest.raises((ModelError, NothingPrunableError)) as refused:
        hyperize(Stale(), torch.randn(IMAGE))
    assert "Stale" in str(refused.value)


class Scaled(nn.Module):
    """Divides by the root of a width in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 6), (6, 7), (7, 2)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.relu(self.a(x))))
        return self.out(torch.relu(self.c(y / y.shape[1] ** 0.5)))


class Equalised(nn.Conv2d):
    """Scales its weight by the number of its inputs, as StyleGAN's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.in_channels**-0.5, self.bias)


class Sampled(nn.Module):
    """Draws noise in the shape of its middle, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mean, self.b, self.out = (nn.Linear(i, o) for i, o in ((5, 12), (12, 4), (4, 8), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(torch.relu(self.a(x)))
        return self.out(torch.relu(self.b(mean + torch.randn_like(mean))))


class Block(nn.Module):
    """Has a width, a length and a number of classes that happen to be one number."""

    def __init__(self, width: int = 16, length: int = 16, classes: int = 16) -> None:
        super().__init__()
        self.n_embd, self.d_model, self.block_size, self.nc = width, width, length, classes
        self.a, self.b, self.out = nn.Linear(5, width), nn.Linear(width, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x[:, -self.block_size :]))
        return self.out(torch.relu(self.b(y.view(*y.shape[:2], self.n_embd))))


def test_attributes_that_equal_a_width_by_chance_keep_their_numbers(tmp_path: Path) -> None:
    hyper = hyperize(Block(), torch.randn(2, 2, 5))
    assert {spared.attribute for spared in hyper.coupling.spared} == {"block_size", "nc"}
    assert type(hyper.coupling).from_json(json.loads(hyper.coupling.dumps())) == hyper.coupling
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 3 == 0)
    slim = export_pruned(hyper).eval()
    assert (slim.block_size, slim.nc, slim.d_model, slim.n_embd) == (16, 16, *[slim.a.out_features] * 2)
    long = torch.randn(2, 20, 5)
    torch.testing.assert_close(slim(long), hyper.eval()(long))
    save_pruned(slim, tmp_path / "slim.safetensors")
    loaded = load_pruned(Block(), tmp_path / "slim.safetensors")
    assert (loaded.block_size, loaded.n_embd) == (16, slim.n_embd)
    assert torch.equal(loaded.eval()(long), slim(long))


class Folded(nn.Module):
    """A linear layer in the manner of GPT-2's: it notes the width that it makes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Stream(nn.Module):
    """A stream that stays, beside branches of several widths, one of them the stream's own."""

    def __init__(self, *inner: int) -> None:
        super().__init__()
        self.stem = Folded(8, 8)
        self.up = nn.ModuleList(Folded(8, width) for width in inner)
        self.down = nn.ModuleList(Folded(width, 8) for width in inner)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return x


def test_a_number_that_is_a_width_that_stays_and_one_that_changes_follows_the_one_it_stands_for() -> None:
    hyper = hyperize(Stream(8, 12, 8), torch.randn(2, 5, 8))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("up.0", 8), ("up.1", 12), ("up.2", 8)]
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 3 == 0)
    slim = export_pruned(hyper)
    assert [layer.nf for layer in (*slim.up, *slim.down)] == [3, 4, 3, 8, 8, 8]


class Distilling(nn.Module):
    """Cuts what each of its layers makes in two, as IMDN's blocks do: one part stays, one goes on."""

    def __init__(self, width: int = 12, distilled: int = 4) -> None:
        super().__init__()
        self.distilled, self.going_on = distilled, width - distilled
        self.a = nn.Conv2d(6, width, 1)
        self.b, self.c = (nn.Conv2d(self.going_on, width, 1) for _ in range(2))
        self.out = nn.Conv2d(3 * distilled + self.going_on, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        found, y = [], self.a(x)
        for layer in (self.b, self.c):
            kept, y = torch.split(y, (self.distilled, self.going_on), 1)
            found.append(kept)
            y = layer(torch.relu(y))
        return x + self.out(torch.cat([*found, *torch.split(y, (self.distilled, self.going_on), 1)], 1))


def test_what_a_module_cuts_alike_loses_the_same_channels_where_one_number_stands_for_all() -> None:
    hyper = hyperize(nn.Sequential(nn.Conv2d(3, 6, 1), Distilling(), nn.Conv2d(6, 3, 1)), torch.randn(IMAGE))
    assert sorted(group.size for group in hyper.coupling.groups) == [4, 6, 8]
    assert {group.makers for group in hyper.coupling.groups if group.size != 6} == {("1.a", "1.b", "1.c")}
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 2 == 0)
    slim = export_pruned(hyper)
    assert (slim[1].distilled, slim[1].going_on) == (2, 4)


class ManyHeads(nn.Module):
    """Attention with as many heads as each has channels, and as many buckets for its bias as channels in all."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.buckets = heads, width, heads * width
        self.q, self.k, self.v = (nn.Linear(10, heads * width) for _ in range(3))
        self.o = nn.Linear(heads * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            y.view(batch, tokens, self.heads, self.head_dim).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x))
        )
        places = torch.arange(tokens, device=x.device)
        bias = ((places[None] - places[:, None]) % self.buckets).to(x.dtype) / 10
        made = nn.functional.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2)
        return self.o(made.reshape(batch, tokens, self.heads * self.head_dim))


@pytest.mark.parametrize(("heads", "width"), [(4, 4), (2, 6), (6, 2)])
def test_as_many_heads_as_each_has_channels_hide_no_head(heads: int, width: int) -> None:
    x = torch.randn(2, 9, 10)
    hyper = hyperize(nn.Sequential(nn.Linear(10, 10), ManyHeads(heads, width), ManyHeads(heads, width)), x)
    assert [group.size for group in hyper.coupling.groups if group.name.endswith("q")] == [heads, heads]
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    keep[hyper.coupling.group("1.q").start] = False
    hyper.bank.keep_(keep)
    slim = export_pruned(hyper)
    assert (slim[1].heads, slim[1].head_dim, slim[1].buckets) == (heads - 1, width, heads * width)
    assert (slim[2].heads, slim[2].head_dim) == (heads, width)


class LinearAttention(nn.Module):
    """EfficientViT's: query, key and value of two scales, in heads whose width is called dim."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        width = 3 * heads * dim
        self.dim = dim
        self.qkv, self.scaled = nn.Conv2d(4, width, 1), nn.Conv2d(width, width, 1, groups=3 * heads)
        self.proj = nn.Conv2d(2 * heads * dim, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        rows = torch.cat([qkv, self.scaled(qkv)], 1).reshape(len(x), -1, 3 * self.dim, x.shape[2] * x.shape[3]).mT
        q, k, v = rows.chunk(3, -1)
        sums = q.relu() @ (k.relu().mT @ nn.functional.pad(v, (0, 1), value=1.0))
        mixed = sums[..., :-1] / (sums[..., -1:] + 0.1)
        return x + self.proj(mixed.mT.reshape(len(x), -1, *x.shape[2:]))


@pytest.mark.parametrize(("heads", "dim"), [(4, 8), (4, 4), (3, 8)])
def test_a_width_that_equals_a_number_of_heads_hides_none_whatever_its_name(heads: int, dim: int) -> None:
    """Of two scales there are twice as many heads: eight, each eight wide."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), LinearAttention(heads, dim), nn.Conv2d(4, 2, 1))
    hyper = hyperize(model, torch.randn(2, 3, 4, 5))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("0", 4), ("1.qkv", heads)]


def test_a_number_worked_out_from_a_width_costs_the_channels_that_it_counts_and_no_others() -> None:
    coupling = exact(Scaled(), torch.randn(IMAGE))
    found = layout(coupling, ("a", "c"))
    assert (found["b"], len(set(found["a"])), len(set(found["c"]))) == ("......", 8, 7)
    assert [frozen.reason for frozen in coupling.frozen if frozen.layer == "b"] == [INEXACT]


class Modulated(nn.Module):
    """Scales and shifts each channel by what a layer made of a condition (diffusion, FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.both, self.outer = nn.Conv2d(6, 10, 1), nn.Linear(4, 20), nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.both(condition)[:, :, None, None].chunk(2, 1)
        return x + self.outer(torch.relu(self.inner(x) * (1 + scale) + shift))


class Attending(nn.Module):
    """Attention over positions that divides by the root of its stream's width."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Conv1d(i, o, 1) for i, o in ((6, 9), (6, 9), (6, 7), (7, 6)))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, length = x.shape
        flat = x.reshape(batch, width, -1)
        weights = (self.query(flat).mT @ self.key(flat) * width**-0.5).softmax(-1)
        return x + self.out((weights @ self.value(flat).mT).mT).reshape(batch, width, height, length)


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 1), Modulated()
        self.attention, self.head = Attending(), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.head(self.attention(self.block(self.stem(x), condition)))


def test_a_number_from_a_width_in_one_class_costs_no_channels_whose_sizes_another_class_holds() -> None:
    hyper = hyperize(Conditioned().eval(), (torch.randn(IMAGE), torch.randn(2, 4)))
    assert {"block.inner", "attention.value"} <= {maker for group in hyper.coupling.groups for maker in group.makers}
    assert "stem" not in {maker for group in hyper.coupling.groups for maker in group.makers}


def test_a_layer_that_scales_by_its_own_inputs_keeps_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Equalised(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    coupling = exact(model, torch.randn(IMAGE))
    assert [(group.name, group.size) for group in coupling.groups] == [("2", 6)]


def test_noise_in_the_shape_of_channels_keeps_them() -> None:
    hyper = hyperize(Sampled().eval(), torch.randn(4, 5))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("a", 12), ("b", 8)]
    assert [frozen.reason for frozen in hyper.coupling.frozen if frozen.layer == "mean"] == [RANDOM]


@pytest.mark.parametrize("masked", [
    lambda y, x: y + (x[:, 0] > 0) * -10_000.0,
    lambda y, x: y.masked_fill(x[:, 0] > 0, -1000.0),
    lambda y, x: torch.stack([y, 1280 * x[:, 1]]),
], ids=["an added -10,000", "a fill of -1,000", "coordinates beside scores"])  # fmt: skip
def test_large_numbers_beside_small_ones_hide_no_wrong_width(masked: Callable[[Tensor, Tensor], Tensor]) -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(net.a(x))
        return masked(net.out(torch.relu(net.b(y / y.shape[1] ** 0.5)))[:, 0], x)

    parts = {"a": nn.Conv2d(3, 32, 1), "b": nn.Conv2d(32, 16, 1), "out": nn.Conv2d(16, 1, 1)}
    hyper = hyperize(Net(parts, run).eval(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in hyper.coupling.groups] == ["b"]


def test_a_model_that_insists_on_its_type_or_mixes_types_is_rehearsed_in_it() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return net.out(torch.relu(net.b(torch.relu(net.a(x)) * net.scale.float())))

    scale = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    parts = {"scale": scale, "a": nn.Linear(5, 8), "b": nn.Linear(8, 7), "out": nn.Linear(7, 3)}
    hyper = hyperize(Net(parts, run).eval(), torch.randn(2, 5))
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 3 == 0)
    assert export_pruned(hyper)(torch.randn(4, 5)).shape == (4, 3)


def test_a_rehearsal_of_a_sound_network_is_a_proof() -> None:
    model, x = residual().eval(), torch.randn(2, 3, 8, 8)
    outcome = rehearse(model, couple(model, x), ExampleInputs.of(x))
    assert isinstance(outcome, Proof)
    assert outcome.holds


def test_a_branch_that_starts_at_zero_is_rehearsed_all_the_same() -> None:
    """Blind to a branch of zeros, a comparison would let a wrong size in it pass."""
    model = Literal()
    nn.init.zeros_(model.a.weight)
    nn.init.zeros_(model.a.bias)
    coupling = exact(model, torch.randn(IMAGE))
    assert layout(coupling)["conv"] == "." * 10


@contextmanager
def inputs_of_runs() -> Iterator[set[tuple[int, ...]]]:
    """Note the shapes that ``nn.Sequential`` is given with real numbers."""
    shapes: set[tuple[int, ...]] = set()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Sequential) and not isinstance(args[0], FakeTensor):
            shapes.add(tuple(args[0].shape))

    hook = register_module_forward_pre_hook(note)
    yield shapes
    hook.remove()


def test_a_large_batch_is_rehearsed_on_corners_of_two_images_or_on_two_images_where_sizes_are_fixed() -> None:
    stem = [nn.Conv2d(3, 8, 3, stride=16), nn.ReLU()]
    anything = nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    fixed = nn.Sequential(*stem, nn.Flatten(), nn.Linear(8 * 13 * 13, 2))
    batch = torch.rand(16, 3, 200, 200)
    with inputs_of_runs() as shapes:
        hyperize(anything, batch)
    assert shapes == {(2, 3, 96, 96)}
    with inputs_of_runs() as shapes:
        hyper = hyperize(fixed, batch)
    assert shapes == {(2, 3, 96, 96), (2, 3, 200, 200)}
    assert hyper.coupling.units == 8


def test_code_of_the_users_is_rehearsed_on_all_that_it_is_given() -> None:
    inputs = ExampleInputs.of(torch.rand(16, 3, 200, 200))
    assert list(excerpts_for(Literal(), inputs)) == [inputs]


def test_choices_take_the_next_reading_and_close_modules_without_changing() -> None:
    first = Choices()
    second = first.next(["view"]).next(["view", "chunk"]).close("block")
    assert (dict(second.readings), second.closed) == ({"view": 2, "chunk": 1}, frozenset({"block"}))
    assert (dict(first.readings), first.closed) == ({}, frozenset())


class Trained(nn.Module):
    """Does in train mode what eval mode does not."""

    def __init__(self, extra: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.width, self.extra = 16, extra
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 4)
        self.register_buffer("fired", torch.zeros(16, dtype=torch.int64))
        self.seen = torch.zeros(16)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        shown = self.extra(self, h) if self.training else h
        y = self.head(self.second(shown).mean((2, 3)))
        return (y, h) if self.training and self.extra is features else y


def noise(net: Any, h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn(len(h), net.width, 1, 1)


def shuffle(net: Any, h: Tensor) -> Tensor:
    return h.view(len(h), 2, 8, *h.shape[2:]).transpose(1, 2).reshape(len(h), 16, *h.shape[2:])


def firings(net: Any, h: Tensor) -> Tensor:
    net.fired += (h > 0).sum((0, 2, 3))
    return h


def means(net: Any, h: Tensor) -> Tensor:
    net.seen = net.seen + h.mean((0, 2, 3)).detach()
    return h


def features(net: Any, h: Tensor) -> Tensor:
    return h


@pytest.mark.parametrize("extra", [shuffle, firings, means, features])
def test_what_train_mode_alone_does_with_channels_keeps_them(extra: Callable[[Any, Tensor], Any]) -> None:
    x = torch.randn(2, 3, 8, 8)
    hyper = hyperize(Trained(extra).eval(), x)
    assert [group.name for group in hyper.coupling.groups] == ["second"]
    hyper.bank.keep_(torch.arange(8) < 3)
    slim = export_pruned(hyper).train()
    out = slim(x)
    assert (out[0] if extra is features else out).shape == (2, 4)


def test_train_mode_that_asks_nothing_of_channels_costs_none() -> None:
    """Not even by a size that follows (``noise``), where the shapes of its outputs are drawn by chance, or where it
    cannot run without a label.
    """

    def chance(net: Any, h: Tensor) -> Tensor:
        return h[: 1 + int(torch.randint(2, ()))]

    def labelled(net: Any, h: Tensor) -> Tensor:
        raise ValueError("no label was given")

    for extra in (noise, chance, labelled):
        hyper = hyperize(Trained(extra).eval(), torch.randn(6, 3, 8, 8))
        assert [group.name for group in hyper.coupling.groups] == ["first", "second"]


def test_what_is_drawn_in_train_mode_does_not_depend_on_what_the_user_has_drawn() -> None:
    """Or ranks of a distributed run would find other groups."""

    def at_times(net: Any, h: Tensor) -> Tensor:
        return noise(net, h) if torch.rand(()) < 0.5 else h

    groups = set()
    for seed in range(4):
        torch.manual_seed(seed)
        hyper = hyperize(Trained(at_times).eval(), torch.ones(2, 3, 8, 8) * torch.arange(8.0))
        groups.add(tuple(group.name for group in hyper.coupling.groups))
    assert len(groups) == 1


class Positions(nn.Module):
    """Tokens of an image with learnt positions, which are interpolated for images of other sizes."""

    def __init__(self, width: int = 12, hidden: int = 10) -> None:
        super().__init__()
        self.embed_dim = width
        self.patches, self.pos = nn.Conv2d(3, width, 2, 2), nn.Parameter(torch.randn(1, 4, width))
        self.up, self.down, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Linear(width, 2)

    def positions(self, height: int, width: int) -> Tensor:
        image = self.pos.reshape(1, 2, 2, self.embed_dim).permute(0, 3, 1, 2)
        return F.interpolate(image, size=(height, width), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x)
        pos = self.pos if tokens.shape[2:] == (2, 2) else self.positions(*tokens.shape[2:])
        tokens = tokens.flatten(2).transpose(1, 2) + pos
        return self.out(tokens + self.down(self.up(tokens).relu()))


@pytest.mark.parametrize("size", [(4, 4), (6, 4)], ids=["the table's", "interpolated"])
def test_positions_that_are_interpolated_at_other_sizes_lose_the_streams_channels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Positions().eval()
    hyper = hyperize(model, torch.randn(1, 3, *size))
    assert hyper.coupling.units == 12 + 10
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(1)))
    slim = export_pruned(hyper)
    for other in ((4, 4), (8, 4), (6, 8)):
        x = torch.randn(2, 3, *other)
        assert relative_error(hyper.eval()(x), slim(x)) < 1e-5


class GrowingTable(nn.Module):
    """Positions by a formula, made anew for inputs that are longer than the table."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.d_model = width
        self.enter, self.up, self.out = nn.Linear(5, width), nn.Linear(width, 10), nn.Linear(10, 2)
        self.register_buffer("table", self.made(8), persistent=False)

    def made(self, length: int) -> Tensor:
        return torch.arange(length)[:, None] * torch.linspace(0, 1, self.d_model)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.table):
            self.table = self.made(x.shape[1])
        x = self.enter(x) + self.table[: x.shape[1]]
        return self.out(self.up(x.reshape(-1, self.d_model)).relu()).view(len(x), -1, 2)


def test_what_is_wrong_at_other_sizes_alone_is_warned_of() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"slim copies of GrowingTable .* at \(1, 12, 5\)"):
        hyper = hyperize(GrowingTable(), torch.randn(1, 6, 5))
    assert hyper.coupling.units == 12 + 10


class GrowingLookup(nn.Module):
    """The same behind a table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rest = nn.Embedding(20, 5), GrowingTable()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rest(self.embedding(tokens))


def test_longer_rows_of_tokens_are_tried_too() -> None:
    with pytest.warns(UserWarning, match=r"slim copies of GrowingLookup .* at \(1, 12\)"):
        hyperize(GrowingLookup(), torch.arange(6)[None])


def test_penalties_of_train_mode_keep_no_channels() -> None:
    """Means over channels are others with fewer of these, and no less right."""

    def penalised(net: Any, h: Tensor) -> Tensor:
        return h + 0 * h.abs().mean()

    hyper = hyperize(Trained(penalised).eval(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in hyper.coupling.groups] == ["first", "second"]


def test_few_and_wide_groups_of_a_convolution_lose_inner_channels_and_many_go_whole() -> None:
    hyper = hyperize(timm.create_model("regnetx_002", num_classes=5), torch.randn(1, 3, 64, 64))
    few, many = (hyper.coupling.group(f"s{stage}.b1.conv2.conv") for stage in (1, 4))
    assert (few.size, few.width) == (8, 3)
    assert (many.size, many.width) == (46, 8)


def test_wide_groups_go_whole_where_the_rest_of_a_network_would_be_tied_else() -> None:
    hyper = hyperize(timm.create_model("nextvit_small", num_classes=5), torch.randn(1, 3, 64, 64))
    assert tied(hyper.coupling) == 0


class Insistent(nn.Module):
    """Makes sure of what it is given, by numbers that no call holds."""

    def __init__(self, channels: int, made: int, heads: int = 0) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.conv, self.mixed = nn.Conv2d(channels, made, 1), nn.Conv2d(made, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels, not {self.channels}")
        x = self.conv(x)
        if self.heads:
            x = x.view(len(x), self.heads, -1, *x.shape[2:]).relu().flatten(1, 2)
        return self.mixed(x)


@pytest.mark.parametrize("heads", [0, 4])
@pytest.mark.parametrize("made", [8, 12])
def test_a_width_that_is_made_sure_of_follows_the_layers_of_the_module(made: int, heads: int) -> None:
    stem, last = nn.Conv2d(3, 8, 1), nn.Conv2d(made, 2, 1)
    model = nn.Sequential(stem, Insistent(8, 8), nn.ReLU(), Insistent(8, made, heads), last).eval()
    hyper = hyperize(model, torch.randn(2, 3, 4, 4))
    assert {stays.layer for stays in hyper.coupling.frozen} == {"4"}
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 3 != 1)
    slim = export_pruned(hyper)
    widths = [module.in_channels for module in slim.modules() if isinstance(module, nn.Conv2d)]
    assert (slim[1].channels, slim[3].channels) == (widths[1], widths[3])
    assert second_opinion(hyper).agrees
