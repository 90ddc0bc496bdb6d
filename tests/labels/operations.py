"""The one-operation table: a tiny network per row, and which of its channels are tied, written out by hand.

Spelling (see ``tests.models.layout``): one letter per unit, a dot for a channel that stays. Layers that are not
listed stay whole; the reader ``out`` makes the network's output and always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.models import Net, SqueezeExcite

aten = torch.ops.aten


class GlobalNorm(nn.Module):
    """A norm over channels and time, in plain arithmetic (Conv-TasNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.rand(1, width, 1) + 0.5) for _ in range(2))

    def forward(self, y: Tensor) -> Tensor:
        mean = y.mean(dim=(1, 2), keepdim=True)
        variance = torch.pow(y - mean, 2).mean(dim=(1, 2), keepdim=True)
        return self.gamma * (y - mean) / torch.pow(variance + 1e-8, 0.5) + self.beta


class WrittenRMSNorm(nn.Module):
    """An RMS norm over an image's channels, in plain arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * self.weight.reshape(1, -1, 1, 1)


def _standardised(weight: Tensor) -> Tensor:
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, training=True).reshape_as(weight)


IMAGE = (2, 3, 4, 6)
SIGNAL = (2, 3, 12)
VOLUME = (2, 3, 2, 4, 6)
TOKENS = (2, 5, 3)


@dataclass(frozen=True, eq=False)
class Row:
    """A network, and the ties its channels must get.

    ``offered`` is what ``hyperize`` offers after the rehearsal, where that differs from the first reading.
    """

    says: str
    parts: Callable[[], dict[str, Any]]
    run: Callable[..., Any]
    expected: Mapping[str, str]
    shape: tuple[int, ...] = IMAGE
    offered: Mapping[str, str] | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return Net(self.parts(), self.run).double().eval()

    def x(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def conv(i: int, o: int, k: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **options)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    return torch.gather(x, 1, places.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


def _each_filtered(x: Tensor, filters: Tensor) -> Tensor:
    return F.conv2d(x, filters, padding=1, groups=x.shape[1])


def _with_token(token: Tensor, x: Tensor) -> Tensor:
    return torch.cat([token + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype), x], 1)


def _recurrent(net: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), net.b.weight.shape[0])
    for token in x.unbind(1):
        state = torch.tanh(net.a(token) + net.b(state))
    return net.out(state)


def _separated(net: Any, x: Tensor) -> Tensor:
    mixed = net.a(x)
    masks = net.masks(mixed).sigmoid().reshape(len(x), 2, mixed.shape[1], -1)
    return net.out((masks * mixed.unsqueeze(1)).flatten(0, 1))


def _convolutional(net: Any, x: Tensor) -> Tensor:
    image, state = net.a(x), x.new_zeros(len(x), net.b.weight.shape[0], *x.shape[2:])
    for _ in range(2):
        state = torch.tanh(net.b(torch.cat([image, state], 1)))
    return net.out(state)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def one(width: int = 4, read: int | None = None) -> Callable[[], dict[str, Any]]:
    """``a`` makes channels, ``out`` reads them."""
    return lambda: {"a": conv(3, width), "out": conv(width if read is None else read, 2)}


def two(a: int = 4, b: int = 4, read: int | None = None) -> Callable[[], dict[str, Any]]:
    """``a`` and ``b`` make channels from the input, ``out`` reads what comes of them."""
    return lambda: {"a": conv(3, a), "b": conv(3, b), "out": conv(a if read is None else read, 2)}


def flat(width: int = 4, read: int | None = None) -> Callable[[], dict[str, Any]]:
    """``a`` is linear over the last axis, ``out`` too."""
    return lambda: {"a": nn.Linear(3, width), "out": nn.Linear(width if read is None else read, 2)}


def scaled(**parameters: tuple[int, ...]) -> Callable[[], dict[str, Any]]:
    """``a`` and ``out``, and parameters that the network uses directly."""
    return lambda: {**one()(), **{name: nn.Parameter(torch.randn(shape)) for name, shape in parameters.items()}}


def through(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """The forward pass out(change(a(x)))."""
    return lambda net, x: net.out(change(net.a(x)))


def meet(join: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    """The forward pass out(join(a(x), b(x)))."""
    return lambda net, x: net.out(join(net.a(x), net.b(x)))


APART = {"a": "abcd"}
TIED = {"a": "abcd", "b": "abcd"}
NOTHING: dict[str, str] = {}

LAYERS = [
    Row("conv2d ties nothing", one(), through(lambda a: a), APART),
    Row(
        "two convolutions in a row make units of their own",
        lambda: {"a": conv(3, 4), "b": conv(4, 3), "out": conv(3, 2)},
        lambda net, x: net.out(net.b(net.a(x))),
        {"a": "abcd", "b": "efg"},
    ),
    Row(
        "a convolution used twice ties what it reads to what it makes",
        lambda: {"a": conv(3, 4), "b": conv(4, 4), "out": conv(4, 2)},
        lambda net, x: net.out(net.b(net.b(net.a(x)))),
        {"a": "abcd", "b": "abcd"},
    ),
    Row(
        "a group of a grouped convolution goes as a whole",
        lambda: {"a": conv(3, 6), "g": conv(6, 6, 3, padding=1, groups=3), "out": conv(6, 2)},
        lambda net, x: net.out(net.g(net.a(x))),
        {"a": "aabbcc", "g": "aabbcc"},
    ),
    Row(
        "a grouped convolution may widen",
        lambda: {"a": conv(3, 6), "g": conv(6, 9, groups=3), "out": conv(9, 2)},
        lambda net, x: net.out(net.g(net.a(x))),
        {"a": "aabbcc", "g": "aaabbbccc"},
    ),
    Row(
        "of few and wide groups all lose the same inner channels, once that leaves more",
        lambda: {"a": conv(3, 6), "g": conv(6, 4, groups=2), "out": conv(4, 2)},
        lambda net, x: net.out(net.g(net.a(x))),
        {"a": "aaabbb", "g": "aabb"},
        offered={"a": "abcabc", "g": "dede"},
    ),
    Row(
        "groups that all meet each other lose the same inner channels",
        lambda: {"a": conv(3, 8), "g": conv(8, 8, groups=2), "h": conv(8, 8, groups=2), "out": conv(8, 2)},
        lambda net, x: net.out(net.h(F.channel_shuffle(net.g(net.a(x)), 2)) + net.a(x)),
        {"a": "........", "g": "........", "h": "........"},
        offered={"a": "abcdabcd", "g": "efefefef", "h": "abcdabcd"},
    ),
    Row(
        "groups whose channels are laid out in rows afterwards all lose the same inner ones",
        lambda: {"a": conv(3, 4), "g": conv(4, 8, 3, padding=1, groups=2), "out": conv(4, 2)},
        lambda net, x: net.out(torch.relu(net.g(net.a(x))).unflatten(1, (2, -1)).sum(1)),
        {"a": "abab", "g": "cdefcdef"},
    ),
    Row(
        "depthwise ties channel i to channel i",
        lambda: {"a": conv(3, 4), "g": conv(4, 4, 3, groups=4), "out": conv(4, 2)},
        lambda net, x: net.out(net.g(net.a(x))),
        {"a": "abcd", "g": "abcd"},
    ),
    Row(
        "depthwise with a multiplier ties each channel to all it makes",
        lambda: {"a": conv(3, 4), "g": conv(4, 8, groups=4), "out": conv(8, 2)},
        lambda net, x: net.out(net.g(net.a(x))),
        {"a": "abcd", "g": "aabbccdd"},
    ),
    Row("conv1d", lambda: {"a": nn.Conv1d(3, 4, 3), "out": nn.Conv1d(4, 2, 3)}, through(lambda a: a), APART, SIGNAL),
    Row(
        "a pointwise convolution over tokens mixes them within each channel",
        lambda: {"a": nn.Linear(3, 4), "mix": nn.Conv1d(5, 6, 1), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.mix(net.a(x)).relu()),
        APART,
        TOKENS,
    ),
    Row(
        "a wider convolution over tokens reads several channels at a time: these stay",
        lambda: {"a": nn.Linear(3, 4), "mix": nn.Conv1d(5, 6, 3, padding=1), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.mix(net.a(x)).relu()),
        NOTHING,
        TOKENS,
    ),
    Row("conv3d", lambda: {"a": nn.Conv3d(3, 4, 1), "out": nn.Conv3d(4, 2, 1)}, through(lambda a: a), APART, VOLUME),
    Row(
        "an image without a batch axis",
        one(),
        through(lambda a: a),
        APART,
        (3, 4, 6),
    ),
    Row("conv_transpose2d", lambda: {"a": nn.ConvTranspose2d(3, 4, 2), "out": conv(4, 2)}, through(lambda a: a), APART),
    Row(
        "a transposed convolution reads along weight axis 0",
        lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 5, 2, stride=2), "out": conv(5, 2)},
        lambda net, x: net.out(net.t(net.a(x))),
        {"a": "abcd", "t": "efghi"},
    ),
    Row(
        "conv_transpose1d",
        lambda: {"a": nn.ConvTranspose1d(3, 4, 2), "out": nn.ConvTranspose1d(4, 2, 2)},
        through(lambda a: a),
        APART,
        SIGNAL,
    ),
    Row(
        "conv_transpose3d",
        lambda: {"a": nn.ConvTranspose3d(3, 4, 2), "out": nn.Conv3d(4, 2, 1)},
        through(lambda a: a),
        APART,
        VOLUME,
    ),
    Row(
        "a grouped transposed convolution goes by groups",
        lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 6, 2, groups=2), "out": conv(6, 2)},
        lambda net, x: net.out(net.t(net.a(x))),
        {"a": "aabb", "t": "aabb"},  # of t, the axis that is sliced is the one that reads
    ),
    Row(
        "a depthwise transposed convolution",
        lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 4, 2, groups=4), "out": conv(4, 2)},
        lambda net, x: net.out(net.t(net.a(x))),
        {"a": "abcd", "t": "abcd"},
    ),
    Row(
        "linear makes features along the last axis",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(net.b(net.a(x))),
        {"a": "abcd", "b": "efg"},
        (2, 5, 3),
    ),
    Row(
        "a weight times a number is that weight",
        lambda: {"a": conv(3, 4), "b": conv(4, 5), "out": conv(5, 2)},
        lambda net, x: net.out(F.conv2d(net.a(x), net.b.weight * 2, net.b.bias)),
        {"a": "abcd", "b": "efghi"},
    ),
    Row(
        "a weight computed in forward keeps what it reads",
        lambda: {"a": conv(3, 4), "b": conv(4, 4), "c": conv(4, 3), "out": conv(3, 2)},
        lambda net, x: net.out(net.c(F.conv2d(net.a(x), net.b.weight.tanh(), net.b.bias))),
        {"c": "abc"},
    ),
    Row(
        "one filter for all channels, laid out by forward, passes them",
        scaled(k=(1, 1, 3, 3)),
        lambda net, x: net.out(_each_filtered(net.a(x), net.k.repeat(net.a.out_channels, 1, 1, 1))),
        APART,
    ),
    Row(
        "a filter of each channel that forward computes goes with it",
        scaled(k=(4, 1, 3, 3)),
        lambda net, x: net.out(_each_filtered(net.a(x), net.k.tanh())),
        {"a": "abcd", "k": "abcd"},
    ),
    Row(
        "a grouped weight computed in forward keeps what it reads",
        scaled(k=(4, 2, 3, 3)),
        lambda net, x: net.out(F.conv2d(net.a(x), net.k.tanh(), padding=1, groups=2)),
        NOTHING,
    ),
    Row(
        "a linear weight computed in forward keeps what it reads",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(net.c(F.linear(net.a(x), net.b.weight.tanh()))),
        {"c": "abc"},
        (2, 3),
    ),
    Row(
        "a transposed weight computed in forward keeps what it reads",
        lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 4, 1), "c": conv(4, 3), "out": conv(3, 2)},
        lambda net, x: net.out(net.c(F.conv_transpose2d(net.a(x), net.t.weight.tanh()))),
        {"c": "abc"},
    ),
    Row(
        "batch norm passes channels through",
        lambda: {**one()(), "bn": nn.BatchNorm2d(4)},
        lambda net, x: net.out(net.bn(net.a(x))),
        APART,
    ),
    Row(
        "batch norm of features",
        lambda: {**flat()(), "bn": nn.BatchNorm1d(4)},
        lambda net, x: net.out(net.bn(net.a(x))),
        APART,
        (2, 3),
    ),
    Row(
        "instance norm passes channels through",
        lambda: {**one()(), "norm": nn.InstanceNorm2d(4, affine=True)},
        lambda net, x: net.out(net.norm(net.a(x))),
        APART,
    ),
    Row(
        "prelu with a slope per channel",
        lambda: {**one()(), "act": nn.PReLU(4)},
        lambda net, x: net.out(net.act(net.a(x))),
        APART,
    ),
    Row(
        "prelu with one slope for all",
        lambda: {**one()(), "act": nn.PReLU()},
        lambda net, x: net.out(net.act(net.a(x))),
        APART,
    ),
    Row(
        "layer norm counts the living channels",
        lambda: {**flat()(), "norm": nn.LayerNorm(4)},
        lambda net, x: net.out(net.norm(net.a(x))),
        APART,
        (2, 5, 3),
    ),
    Row(
        "a norm over channels and time, written out, counts the living",
        lambda: {"a": nn.Conv1d(3, 4, 1), "norm": GlobalNorm(4), "out": nn.Conv1d(4, 2, 1)},
        lambda net, x: net.out(net.norm(net.a(x))),
        APART,
        SIGNAL,
    ),
    Row(
        "a layer norm over channels and the space behind them counts the living (GCNet's context)",
        lambda: {"a": conv(3, 4), "norm": nn.LayerNorm([4, 1, 1]), "out": conv(4, 2)},
        lambda net, x: net.out(net.norm(net.a(x).mean((2, 3), keepdim=True))),
        APART,
    ),
    Row(
        "a layer norm over whole images counts the living",
        lambda: {"a": conv(3, 4), "norm": nn.LayerNorm([4, 4, 6]), "out": conv(4, 2)},
        lambda net, x: net.out(net.norm(net.a(x)).relu()),
        APART,
    ),
    Row(
        "a layer norm over several axes of which channels are the last keeps all",
        lambda: {"a": nn.Linear(3, 4), "norm": nn.LayerNorm([5, 4]), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.norm(net.a(x))),
        NOTHING,
        TOKENS,
    ),
    Row(
        "a layer norm without a layer of its own keeps what it reads",
        lambda: {**flat()(), "scale": nn.Parameter(torch.ones(4))},
        lambda net, x: net.out(F.layer_norm(net.a(x), (4,), net.scale)),
        NOTHING,
        (2, 5, 3),
    ),
    Row(
        "group norm loses whole groups",
        lambda: {**one(6)(), "norm": nn.GroupNorm(3, 6)},
        lambda net, x: net.out(net.norm(net.a(x))),
        {"a": "aabbcc"},
    ),
    Row(
        "rms norm counts the living channels",
        lambda: {**flat()(), "norm": nn.RMSNorm(4, eps=1e-6)},
        lambda net, x: net.out(net.norm(net.a(x))),
        APART,
        (2, 5, 3),
    ),
]

PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "true_divide": aten.true_divide,
    "floor_divide": lambda a, b: aten.floor_divide(a, b.abs() + 1),
    "remainder": lambda a, b: aten.remainder(a, b.abs() + 1),
    "fmod": lambda a, b: aten.fmod(a, b.abs() + 1),
    "pow": lambda a, b: aten.pow(a.abs() + 1, b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "atan2": torch.atan2,
    "copysign": torch.copysign,
    "hypot": torch.hypot,
    "subtract": aten.subtract,
    "multiply": aten.multiply,
    "divide": aten.divide,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "float_power": lambda a, b: aten.float_power(a.abs() + 1, b),
    "xlogy": lambda a, b: torch.xlogy(a, b.abs() + 1),
    "logaddexp": torch.logaddexp,
    "heaviside": torch.heaviside,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "rsub": aten.rsub,
    "where": lambda a, b: torch.where(a > 0, a, b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b.abs() + 1),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.5),
    "eq": lambda a, b: aten.eq(a, b).to(a.dtype),
    "ne": lambda a, b: aten.ne(a, b).to(a.dtype),
    "lt": lambda a, b: aten.lt(a, b).to(a.dtype),
    "le": lambda a, b: aten.le(a, b).to(a.dtype),
    "gt": lambda a, b: aten.gt(a, b).to(a.dtype),
    "ge": lambda a, b: aten.ge(a, b).to(a.dtype),
    "logical_and": lambda a, b: aten.logical_and(a > 0, b > 0).to(a.dtype),
    "logical_or": lambda a, b: aten.logical_or(a > 0, b > 0).to(a.dtype),
    "logical_xor": lambda a, b: aten.logical_xor(a > 0, b > 0).to(a.dtype),
    "bitwise_and": lambda a, b: aten.bitwise_and(a > 0, b > 0).to(a.dtype),
    "bitwise_or": lambda a, b: aten.bitwise_or(a > 0, b > 0).to(a.dtype),
}

ELEMENTWISE = [
    *(Row(f"{name} ties channel i to channel i", two(), meet(join), TIED) for name, join in PAIRWISE.items()),
    Row("adding in place ties too", two(), meet(lambda a, b: a.add_(b)), TIED),
    Row("numbers belong to no channel", one(), through(lambda a: 1 - (2 * a + 1) / 3), APART),
    Row(
        "squeeze-and-excite scales channel i by the i-th of its own",
        lambda: {**one()(), "se": SqueezeExcite(4, 2)},
        lambda net, x: net.out(net.se(net.a(x))),
        {"a": "abcd", "se.down": "ef", "se.up": "abcd"},
    ),
    Row(
        "spatial attention keeps its one channel and frees the others",
        lambda: {**one()(), "mask": conv(3, 1)},
        lambda net, x: net.out(net.a(x) * net.mask(x).sigmoid()),
        APART,
    ),
    Row(
        "channels broadcast over other channels stay, and free those",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(3, 5), "out": nn.Linear(4, 2)},
        lambda net, x: net.out((net.a(x)[:, None, :] * net.b(x)[:, :, None]).mean(1)),
        NOTHING,
        (2, 3),
    ),
    Row(
        "a sum with the network's input stays",
        lambda: {"a": conv(3, 3), "out": conv(3, 2)},
        lambda net, x: net.out(net.a(x) + x),
        NOTHING,
    ),
    Row(
        "a sum with a vector made in forward stays",
        one(),
        through(lambda a: a + torch.linspace(0, 1, 4, dtype=a.dtype).view(1, 4, 1, 1)),
        NOTHING,
    ),
    Row(
        "a layer scale is sliced along",
        scaled(scale=(4, 1, 1)),
        lambda net, x: net.out(net.a(x) * net.scale),
        {"a": "abcd", "scale": "abcd"},
    ),
    Row(
        "a layer scale that forward reshapes is sliced along",
        scaled(scale=(4,)),
        lambda net, x: net.out(net.a(x) * net.scale.view(1, -1, 1, 1)),
        {"a": "abcd", "scale": "abcd"},
    ),
    Row(
        "a positional embedding is sliced along its channels",
        scaled(position=(1, 4, 4, 6)),
        lambda net, x: net.out(net.a(x) + net.position),
        {"a": "abcd", "position": "abcd"},
    ),
    Row(
        "one number for all channels stays",
        scaled(scale=(1,)),
        lambda net, x: net.out(net.a(x) * net.scale),
        APART,
    ),
    Row(
        "a parameter vector is read by a layer like any activation",
        lambda: {"token": nn.Parameter(torch.randn(1, 4)), "b": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(net.b(net.token) + 0 * x.mean()),
        {"token": "abcd", "b": "efg"},
    ),
    Row(
        "a table of tokens that a layer reads loses the same channels in every token",
        lambda: {"tokens": nn.Parameter(torch.randn(5, 4)), "b": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(net.b(net.tokens) + 0 * x.mean()),
        {"tokens": "abcd", "b": "efg"},
    ),
    Row(
        "two tables of tokens, one behind the other, share their channels",
        lambda: {"one": table(5, 4), "two": table(3, 4), "a": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(torch.cat([net.one, net.two]) * net.a(x)[:, None]),
        {"one": "abcd", "two": "abcd", "a": "abcd"},
        (2, 3),
    ),
    Row(
        "two tables of positions, side by side, make up the channels (DETR)",
        lambda: {"rows": table(9, 2), "columns": table(9, 3), "a": nn.Linear(3, 5), "out": nn.Linear(5, 2)},
        lambda net, x: net.out(net.a(x) + torch.cat([net.rows[:5], net.columns[1:6]], -1)),
        {"rows": "ab", "columns": "cde", "a": "abcde"},
        TOKENS,
    ),
    Row(
        "tokens of a table beside others share their channels (registers)",
        lambda: {"a": nn.Linear(3, 4), "registers": table(1, 3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(torch.cat([net.a(x), net.registers.expand(len(x), -1, -1)], 1)),
        {"a": "abcd", "registers": "abcd"},
        TOKENS,
    ),
    Row(
        "a constant image times a style shares its channels (StyleGAN)",
        lambda: {"a": nn.Linear(3, 4), "image": table(1, 4, 3, 3), "b": conv(4, 3), "out": conv(3, 2)},
        lambda net, x: net.out(net.b(net.image * net.a(x)[:, :, None, None]).relu()),
        {"a": "abcd", "image": "abcd", "b": "efg"},
        (2, 3),
    ),
    Row(
        "a table that forward() crops loses the same channels everywhere",
        lambda: {"a": conv(3, 4), "map": table(1, 4, 9, 9), "out": conv(4, 2)},
        lambda net, x: net.out(net.a(x) + net.map[:, :, : x.shape[2], : x.shape[3]]),
        {"a": "abcd", "map": "abcd"},
    ),
    Row(
        "zeros that repeat a token for every example are no obstacle (CLIP)",
        lambda: {"token": table(4), "a": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(_with_token(net.token, net.a(x))),
        {"a": "abcd", "token": "abcd"},
        TOKENS,
    ),
    Row(
        "zeros of a fixed width keep what they meet",
        lambda: {"token": table(4), "a": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(torch.cat([net.token + x.new_zeros(2, 1, 4), net.a(x)], 1)),
        {"a": "abcd", "token": "abcd"},
        TOKENS,
        NOTHING,
    ),
    Row(
        "a state that starts as zeros shares the channels of the steps after it",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "out": nn.Linear(4, 2)},
        _recurrent,
        {"a": "abcd", "b": "abcd"},
        TOKENS,
    ),
    Row(
        "a state that a convolution reads (ConvGRU)",
        lambda: {"a": conv(3, 4), "b": conv(4, 4, 3, padding=1), "out": conv(4, 2)},
        lambda net, x: net.out((net.a(x) + net.b(x.new_zeros(2, net.b.weight.shape[1], *x.shape[2:]))).relu()),
        TIED,
    ),
    Row(
        "a state beside channels has channels of its own",
        lambda: {"a": conv(3, 4), "b": conv(9, 5, 3, padding=1), "out": conv(5, 2)},
        _convolutional,
        {"a": "abcd", "b": "efghi"},
    ),
    Row(
        "masks for several sources lose the channels of what they mask (Conv-TasNet)",
        lambda: {"a": nn.Conv1d(3, 4, 1), "masks": nn.Conv1d(4, 8, 1), "out": nn.Conv1d(4, 2, 1)},
        _separated,
        {"a": "abcd", "masks": "abcdabcd"},
        SIGNAL,
    ),
    Row("zeros to which channels are added are those", one(), through(lambda a: a + a.new_zeros(a.shape)), APART),
    Row(
        "tokens of zeros share the channels of those they are laid beside",
        flat(),
        through(lambda a: torch.cat([a, a.new_zeros(2, 1, a.shape[2])], 1)),
        APART,
        TOKENS,
    ),
    Row(
        "a signal of zeros beside one",
        lambda: {"a": nn.Conv1d(3, 4, 1), "b": nn.Conv1d(8, 5, 1), "out": nn.Conv1d(5, 2, 1)},
        lambda net, x: net.out(net.b(torch.cat([net.a(x), x.new_zeros(2, 4, x.shape[2])], 1))),
        {"a": "abcd", "b": "efghi"},
        SIGNAL,
        {"a": "abcd", "b": "efghi"},
    ),
    Row(
        "numbers for each token of a table leave its channels alone",
        lambda: {"f": nn.Linear(3, 6), "tokens": table(6, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out((net.f(x).relu()[..., None] * net.tokens).sum(-2)),
        {"tokens": "abcd"},
        TOKENS,
    ),
    Row(
        "positions by row and by column, added up, share the channels of the image",
        lambda: {"a": conv(3, 4), "rows": table(4, 4), "columns": table(6, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.a(x).permute(0, 2, 3, 1) + (net.rows[:, None] + net.columns[None])),
        {"a": "abcd", "rows": "abcd", "columns": "abcd"},
    ),
    Row(
        "a learned map beside channels is sliced along its own",
        lambda: {"a": conv(3, 4), "map": table(1, 3, 4, 6), "out": conv(7, 2)},
        lambda net, x: net.out(torch.cat([net.a(x), net.map.expand(len(x), -1, -1, -1)], 1)),
        {"a": "abcd", "map": "efg"},
    ),
    Row(
        "a norm of its own over a table of tokens shares its channels",
        lambda: {"tokens": table(5, 4), "norm": nn.LayerNorm(4), "a": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.norm(net.tokens) + net.norm(net.tokens.expand(2, -1, -1)) + net.a(x)),
        {"tokens": "abcd", "a": "abcd"},
        TOKENS,
    ),
    Row(
        "tokens gathered by computed places keep their channels apart (MAE)",
        lambda: {"a": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(_gathered(net.a(x), x.sum(-1).argsort(1)[:, :3])),
        APART,
        TOKENS,
    ),
    Row(
        "channels gathered by numbers stay",
        lambda: {"a": nn.Linear(3, 4), "out": nn.Linear(2, 2)},
        lambda net, x: net.out(net.a(x).gather(-1, torch.tensor([2, 0]).expand(2, 5, 2))),
        NOTHING,
        TOKENS,
    ),
    Row(
        "channels gathered at computed places stay",
        one(),
        through(lambda a: torch.gather(a, 1, torch.zeros_like(a, dtype=torch.long))),
        NOTHING,
    ),
    Row(
        "one token of each example is picked by several indices (CLIP)",
        lambda: {"a": nn.Linear(3, 4), "project": table(4, 5), "out": nn.Linear(5, 2)},
        lambda net, x: net.out(net.a(x)[torch.arange(2), x.sum(-1).argmax(-1)] @ net.project),
        {"a": "abcd", "project": "efghi"},
        TOKENS,
    ),
    Row(
        "indices with an axis between them put theirs first",
        lambda: {"a": conv(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.a(x)[torch.tensor([0, 1, 0]), :, torch.tensor([1, 3, 2])].transpose(1, 2)),
        APART,
    ),
    Row(
        "a table read along both of its axes stays",
        lambda: {"grid": table(4, 4), "b": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(net.b(net.grid) + net.b(net.grid.t()) + 0 * x.mean()),
        {"b": "abc"},
    ),
    Row(
        "bounds that are parameters are sliced along",
        scaled(low=(4, 1, 1), high=(1, 4, 1, 1)),
        lambda net, x: net.out(net.a(x).clamp(net.low, net.high).clamp_min(net.low)),
        {"a": "abcd", "low": "abcd", "high": "abcd"},
    ),
]

# Called with the channels alone, or with them and what stands here.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.1, 0.0),
    "clamp": (-0.5, 0.5),
    "clip": (-0.5, 0.5),
    "clamp_min": (0.0,),
    "clamp_max": (0.5,),
    "dropout": (0.5, False),
    "alpha_dropout": (0.5, False),
    "feature_dropout": (0.5, False),
    "feature_alpha_dropout": (0.5, False),
    "native_dropout": (0.5, False),
    "fill": (0.5,),
    "full_like": (0.5,),
    "to": (torch.float64,),
}
UNARY = [
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "silu",
    "gelu",
    "mish",
    "softplus",
    "sigmoid",
    "hardsigmoid",
    "hardswish",
    "log_sigmoid",
    "tanh",
    "hardshrink",
    "softshrink",
    "threshold",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "sqrt",
    "rsqrt",
    "square",
    "abs",
    "absolute",
    "neg",
    "negative",
    "positive",
    "sign",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "sinc",
    "erf",
    "erfc",
    "exp2",
    "reciprocal",
    "floor",
    "ceil",
    "round",
    "trunc",
    "fix",
    "rrelu",
    "frac",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "logit",
    "nan_to_num",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "native_dropout",
    "alias",
    "clone",
    "detach",
    "lift_fresh_copy",
    "to",
    "_to_copy",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "fill",
    "zero",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "bitwise_not",
]
RANDOM = {"empty_like"}  # labels say nothing about what they compute


def unary(name: str) -> Callable[[Tensor], Tensor]:
    def run(a: Tensor) -> Tensor:
        positive = a.abs() / (1 + a.abs())
        value = positive > 0.5 if name == "bitwise_not" else 1 / positive if name == "acosh" else positive
        made = getattr(aten, name)(value, *ARGUMENTS.get(name, ()))
        made = made[0] if isinstance(made, (tuple, list)) else made
        return made if made.dtype == a.dtype else made.to(a.dtype)

    return run


PASSED_THROUGH = [Row(f"labels pass through {name}", one(), through(unary(name)), APART) for name in UNARY] + [
    Row("labels pass through contiguous", one(), through(lambda a: a.mT.contiguous().mT), APART),
    Row("labels pass through type_as", one(), through(lambda a: a * (a > 0).type_as(a)), APART),
]

DRAWN = [
    Row(f"random numbers in the shape of channels keep them: {name}", one(), through(unary(name)), NOTHING)
    for name in ("rand_like", "randn_like", "bernoulli")
]

MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "new_zeros": lambda a: a.new_zeros(1),
    "new_ones": lambda a: a.new_ones(1),
    "new_full": lambda a: a.new_full((1,), 2.0),
    "new_empty": lambda a: a.new_empty(1),
    "zeros": lambda a: torch.zeros(1, dtype=a.dtype),
    "meshgrid": lambda a: torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")[0],
    "ones": lambda a: torch.ones(1, dtype=a.dtype),
    "full": lambda a: torch.full((1,), 2.0, dtype=a.dtype),
    "empty": lambda a: torch.empty(1, dtype=a.dtype),
    "arange": lambda a: torch.arange(1, dtype=a.dtype),
    "linspace": lambda a: torch.linspace(0, 1, 1, dtype=a.dtype),
    "eye": lambda a: torch.eye(1, dtype=a.dtype)[0],
    "rand": lambda a: torch.rand(1, dtype=a.dtype),
    "randn": lambda a: torch.randn(1, dtype=a.dtype),
    "scalar_tensor": lambda a: torch.scalar_tensor(2.0, dtype=a.dtype),
}
CONSTANTS = [
    Row(
        f"what {name} makes belongs to no channel",
        one(),
        lambda net, x, make=make: net.out(net.a(x) + 0 * make(x).nan_to_num()),
        APART,
    )
    for name, make in MADE.items()
]


def spatial(change: Callable[[Tensor], Any], parts: Callable[[], dict[str, Any]], shape: tuple[int, ...]) -> Any:
    return lambda name: Row(f"{name} keeps channels apart", parts, through(change), APART, shape)


def signal() -> dict[str, Any]:
    return {"a": nn.Conv1d(3, 4, 1), "out": nn.Conv1d(4, 2, 1)}


def volume() -> dict[str, Any]:
    return {"a": nn.Conv3d(3, 4, 1), "out": nn.Conv3d(4, 2, 1)}


def resized(**options: Any) -> Callable[[Tensor], Tensor]:
    return lambda a: F.interpolate(a, scale_factor=2, **options)


POOLING = [
    spatial(change, parts, shape)(name)
    for name, change, parts, shape in [
        ("max_pool1d", lambda a: F.max_pool1d(a, 2), signal, SIGNAL),
        ("max_pool1d with indices", lambda a: F.max_pool1d(a, 2, return_indices=True)[0], signal, SIGNAL),
        ("avg_pool1d", lambda a: F.avg_pool1d(a, 2), signal, SIGNAL),
        ("adaptive_avg_pool1d", lambda a: F.adaptive_avg_pool1d(a, 3), signal, SIGNAL),
        ("adaptive_max_pool1d", lambda a: F.adaptive_max_pool1d(a, 3), signal, SIGNAL),
        ("max_pool2d", lambda a: F.max_pool2d(a, 2), one(), IMAGE),
        ("max_pool2d with indices", lambda a: F.max_pool2d(a, 2, return_indices=True)[0], one(), IMAGE),
        ("avg_pool2d", lambda a: F.avg_pool2d(a, 2), one(), IMAGE),
        ("adaptive_avg_pool2d", lambda a: F.adaptive_avg_pool2d(a, 2), one(), IMAGE),
        ("adaptive_max_pool2d", lambda a: F.adaptive_max_pool2d(a, 2), one(), IMAGE),
        ("max_pool3d", lambda a: F.max_pool3d(a, 2), volume, VOLUME),
        ("max_pool3d with indices", lambda a: F.max_pool3d(a, 2, return_indices=True)[0], volume, VOLUME),
        ("avg_pool3d", lambda a: F.avg_pool3d(a, 2), volume, VOLUME),
        ("adaptive_avg_pool3d", lambda a: F.adaptive_avg_pool3d(a, 2), volume, VOLUME),
        ("adaptive_max_pool3d", lambda a: F.adaptive_max_pool3d(a, 2), volume, VOLUME),
        ("upsample_nearest1d", resized(), signal, SIGNAL),
        ("upsample_nearest_exact1d", resized(mode="nearest-exact"), signal, SIGNAL),
        ("upsample_linear1d", resized(mode="linear"), signal, SIGNAL),
        ("upsample_nearest2d", resized(), one(), IMAGE),
        ("upsample_nearest_exact2d", resized(mode="nearest-exact"), one(), IMAGE),
        ("upsample_bilinear2d", resized(mode="bilinear"), one(), IMAGE),
        ("upsample_bicubic2d", resized(mode="bicubic"), one(), IMAGE),
        ("upsample_bilinear2d_aa", resized(mode="bilinear", antialias=True), one(), IMAGE),
        ("upsample_bicubic2d_aa", resized(mode="bicubic", antialias=True), one(), IMAGE),
        ("upsample_nearest3d", resized(), volume, VOLUME),
        ("upsample_nearest_exact3d", resized(mode="nearest-exact"), volume, VOLUME),
        ("upsample_trilinear3d", resized(mode="trilinear"), volume, VOLUME),
        ("pad with zeros", lambda a: F.pad(a, (1, 2, 0, 1)), one(), IMAGE),
        ("constant_pad_nd", lambda a: aten.constant_pad_nd(a, [1, 1], 0.5), one(), IMAGE),
        ("pad by reflection", lambda a: F.pad(a, (1, 1, 1, 1), mode="reflect"), one(), IMAGE),
        ("pad by replication", lambda a: F.pad(a, (1, 1, 1, 1), mode="replicate"), one(), IMAGE),
        ("cropping by negative padding", lambda a: F.pad(a, (-1, -1)), one(), IMAGE),
        ("reflection_pad1d", lambda a: aten.reflection_pad1d(a, [1, 1]), signal, SIGNAL),
        ("reflection_pad2d", lambda a: aten.reflection_pad2d(a, [1, 1, 1, 1]), one(), IMAGE),
        ("replication_pad1d", lambda a: aten.replication_pad1d(a, [1, 1]), signal, SIGNAL),
        ("replication_pad2d", lambda a: aten.replication_pad2d(a, [1, 1, 1, 1]), one(), IMAGE),
    ]
] + [
    Row(
        "sampling at places the input gives keeps channels apart",
        one(),
        lambda net, x: net.out(F.grid_sample(net.a(x), x.permute(0, 2, 3, 1)[..., :2].tanh(), align_corners=False)),
        APART,
    ),
    Row(
        "channels that say where to sample stay",
        lambda: {"a": conv(3, 4), "grid": conv(3, 2), "both": conv(6, 3), "out": conv(3, 2)},
        lambda net, x: _sampled(net, net.a(x), net.grid(x)),
        {"a": "abcd", "both": "efg"},
    ),
    Row(
        "channels that zero padding leaves alone are free",
        lambda: {"a": conv(3, 4), "out": conv(6, 2)},
        through(lambda a: F.pad(a, (0, 0, 0, 0, 1, 1))),
        APART,
    ),
    Row(
        "a channel that meets zero padding along channels stays",
        lambda: {"a": conv(3, 4), "b": conv(3, 6), "out": conv(6, 2)},
        lambda net, x: net.out(F.pad(net.a(x), (0, 0, 0, 0, 0, 2)) + net.b(x)),
        {"a": "abcd", "b": "abcd.."},
    ),
    Row(
        "replication along channels keeps them",
        flat(read=6),
        through(lambda a: F.pad(a, (1, 1), mode="replicate")),
        NOTHING,
        (2, 5, 3),
    ),
    Row("cropping along channels keeps them", one(read=3), through(lambda a: F.pad(a, (0, 0, 0, 0, 0, -1))), NOTHING),
]


def _sampled(net: Any, a: Tensor, grid: Tensor) -> Tensor:
    moved = F.grid_sample(a, grid.permute(0, 2, 3, 1).tanh(), align_corners=False)
    return net.out(net.both(torch.cat([moved, grid], dim=1)))


def _last(change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Move the channels, do something that shows where they are, move them back."""
    return lambda a: back(change(a).relu())


MOVEMENT = [
    Row("permute", one(), through(_last(lambda a: a.permute(0, 2, 3, 1), lambda a: a.permute(0, 3, 1, 2))), APART),
    Row("transpose", one(), through(_last(lambda a: a.transpose(1, 3), lambda a: a.transpose(3, 1))), APART),
    Row("movedim", one(), through(_last(lambda a: a.movedim(1, 3), lambda a: a.movedim(3, 1))), APART),
    Row("swapaxes", one(), through(_last(lambda a: a.swapaxes(1, 2), lambda a: a.swapaxes(1, 2))), APART),
    Row("swapdims", one(), through(_last(lambda a: a.swapdims(1, 2), lambda a: a.swapdims(1, 2))), APART),
    Row("t", flat(), through(_last(lambda a: a.t(), lambda a: a.t())), APART, (2, 3)),
    Row("numpy_T", flat(), through(_last(lambda a: a.T, lambda a: a.T)), APART, (2, 3)),
    Row("mT", flat(), through(_last(lambda a: a.mT, lambda a: a.mT)), APART, (2, 5, 3)),
    Row("adjoint", flat(), through(_last(lambda a: a.adjoint(), lambda a: a.adjoint())), APART, (2, 5, 3)),
    Row("unsqueeze and squeeze", one(), through(_last(lambda a: a.unsqueeze(1), lambda a: a.squeeze(1))), APART),
    Row("squeezing every axis of length 1", flat(), through(lambda a: a.squeeze()), APART, (2, 1, 3)),
    Row("flip in space", one(), through(lambda a: a.flip(2, 3)), APART),
    Row("roll in space", one(), through(lambda a: a.roll((1, 1), (2, 3))), APART),
    Row("rot90 in space", one(), through(lambda a: torch.rot90(a, 1, (2, 3))), APART),
    Row("the diagonal of space", signal, through(lambda a: _square(a).diagonal(dim1=2, dim2=3)), APART, SIGNAL),
    Row("tril in space", one(), through(lambda a: a.tril()), APART),
    Row("triu in space", one(), through(lambda a: a.triu()), APART),
    Row("windows over space", signal, through(lambda a: a.unfold(2, 3, 3).mean(-1)), APART, SIGNAL),
    Row("repeat_interleave in space", one(), through(lambda a: a.repeat_interleave(2, 3)), APART),
    Row("flip turns the order of channels round", two(), meet(lambda a, b: a.flip(1) + b), {"a": "abcd", "b": "dcba"}),
    Row(
        "roll keeps the channels it moves: the shift is a number of channels",
        one(),
        through(lambda a: a.roll(1, 1)),
        NOTHING,
    ),
    Row("windows over channels keep them", flat(), through(lambda a: a.unfold(1, 2, 2).flatten(1)), NOTHING, (2, 3)),
    Row("a triangle over channels keeps them", flat(), through(lambda a: a.tril()), NOTHING, (2, 5, 3)),
    Row(
        "a diagonal over channels keeps them", flat(), through(lambda a: a.diagonal(dim1=1, dim2=2)), NOTHING, (2, 4, 3)
    ),
    Row(
        "repeat shows every channel twice",
        lambda: {"a": conv(3, 2), "b": conv(3, 4), "out": conv(4, 2)},
        meet(lambda a, b: a.repeat(1, 2, 1, 1) + b),
        {"a": "ab", "b": "abab"},
    ),
    Row(
        "tile shows every channel twice",
        lambda: {"a": conv(3, 2), "b": conv(3, 4), "out": conv(4, 2)},
        meet(lambda a, b: a.tile(1, 2, 1, 1) + b),
        {"a": "ab", "b": "abab"},
    ),
    Row(
        "repeat_interleave shows every channel twice in a row",
        lambda: {"a": conv(3, 2), "b": conv(3, 4), "out": conv(4, 2)},
        meet(lambda a, b: a.repeat_interleave(2, 1) + b),
        {"a": "ab", "b": "aabb"},
    ),
    Row("expand over space", one(), through(lambda a: a.mean((2, 3), keepdim=True).expand(-1, -1, 4, 6)), APART),
    *[
        Row(
            f"one gate for all channels, {says}, leaves these apart",
            lambda: {"a": conv(3, 4), "gate": conv(4, 1), "out": conv(4, 2)},
            lambda net, x, stretch=stretch: net.out((a := net.a(x)) * stretch(net.gate(a).sigmoid(), a)),
            APART,
        )
        for says, stretch in {
            "stretched": lambda gate, a: gate.expand_as(a),
            "stretched by size": lambda gate, a: gate.expand(-1, a.shape[1], -1, -1),
            "repeated": lambda gate, a: gate.repeat(1, a.shape[1], 1, 1),
        }.items()
    ],
    Row(
        "one gate repeated so many times keeps what it meets",
        lambda: {"a": conv(3, 4), "gate": conv(4, 1), "out": conv(4, 2)},
        lambda net, x: net.out((a := net.a(x)) * net.gate(a).repeat(1, 4, 1, 1)),
        APART,
        offered=NOTHING,
    ),
    Row(
        "one gate for all channels beside a gate for each, both stretched, leaves these apart",
        lambda: {"a": conv(3, 4), "each": conv(4, 4), "gate": conv(4, 1), "out": conv(4, 2)},
        lambda net, x: net.out(
            (a := net.a(x)) * (net.each(a.mean((2, 3), True)).expand_as(a) * net.gate(a).expand_as(a))
        ),
        {"a": "abcd", "each": "abcd"},
    ),
    Row("expand_as", two(), meet(lambda a, b: a * b.mean((2, 3), keepdim=True).expand_as(a)), TIED),
    Row(
        "broadcast_to", one(), through(lambda a: a.mean((2, 3), keepdim=True).broadcast_to(2, a.shape[1], 4, 6)), APART
    ),
    Row(
        "cat along channels ties nothing",
        two(4, 3, 7),
        meet(lambda a, b: torch.cat([a, b], dim=1)),
        {"a": "abcd", "b": "efg"},
    ),
    Row(
        "what is added to joined channels follows each of them",
        lambda: {"a": conv(3, 3), "b": conv(3, 2), "c": conv(3, 5), "out": conv(5, 2)},
        lambda net, x: net.out(torch.cat([net.a(x), net.b(x)], 1) + net.c(x)),
        {"a": "abc", "b": "de", "c": "abcde"},
    ),
    Row("joined input channels stay", one(read=7), lambda net, x: net.out(torch.cat([x, net.a(x)], 1)), APART),
    Row("cat along space ties channel i to channel i", two(), meet(lambda a, b: torch.cat([a, b], dim=2)), TIED),
    Row(
        "a stretched constant beside channels stays",
        lambda: {"a": conv(3, 4), "out": conv(6, 2)},
        lambda net, x: net.out(torch.cat([x.new_ones(1, 1, 1, 1).expand(2, 2, 4, 6), net.a(x)], 1)),
        APART,
    ),
    Row(
        "a stretched constant in front, along space, follows the channels",
        one(),
        lambda net, x: net.out(torch.cat([x.new_zeros(1).expand_as((y := net.a(x))[:, :, :1]), y], 2)),
        APART,
    ),
    Row(
        "a stretched constant in a stack follows the channels",
        two(),
        meet(lambda a, b: torch.stack([a.new_zeros(1).expand_as(a), a, b]).sum(0)),
        TIED,
    ),
    Row("concat", two(4, 3, 7), meet(lambda a, b: torch.concat([a, b], dim=1)), {"a": "abcd", "b": "efg"}),
    Row("concatenate", two(4, 3, 7), meet(lambda a, b: torch.concatenate([a, b], 1)), {"a": "abcd", "b": "efg"}),
    Row("stack ties channel i to channel i", two(), meet(lambda a, b: torch.stack([a, b]).sum(0)), TIED),
    Row(
        "flatten repeats each channel for every place",
        lambda: {"a": conv(3, 4), "out": nn.Linear(4 * 24, 2)},
        through(lambda a: a.flatten(1)),
        APART,
    ),
    Row("view over space", one(), through(lambda a: a.view(2, -1, 24).relu().view(a.shape)), APART),
    Row(
        "view as features",
        lambda: {"a": conv(3, 4), "out": nn.Linear(4 * 24, 2)},
        through(lambda a: a.view(a.shape[0], -1)),
        APART,
    ),
    Row(
        "features laid out as an image (a generator's first layer)",
        lambda: {"a": nn.Linear(3, 12), "norm": nn.BatchNorm1d(12), "out": conv(3, 2)},
        lambda net, x: net.out(net.norm(net.a(x)).relu().view(len(x), -1, 2, 2)),
        {"a": "aaaabbbbcccc"},
        shape=(2, 3),
    ),
    Row(
        "features laid out as an image by a layer",
        lambda: {"a": nn.Linear(3, 12), "image": nn.Unflatten(1, (3, 2, 2)), "out": nn.ConvTranspose2d(3, 2, 2)},
        lambda net, x: net.out(net.image(net.a(x)).relu()),
        {"a": "aaaabbbbcccc"},
        shape=(2, 3),
    ),
    Row("reshape_as", two(), meet(lambda a, b: a.flatten(2).reshape_as(b) + b), TIED),
    Row("view_as", two(), meet(lambda a, b: a.flatten(2).view_as(b) * b), TIED),
    Row(
        "a shape taken from channels that nothing else reads is let go of",
        two(),
        meet(lambda a, b: a.flatten(2).view_as(b)),
        APART,
        offered=NOTHING,
    ),
    Row("_unsafe_view", one(), through(lambda a: aten._unsafe_view(a, [2, a.shape[1], 24]).view(a.shape)), APART),
    Row("unflatten of space", one(), through(lambda a: a.flatten(2).unflatten(2, (4, 6))), APART),
    Row("a channel shuffle by view", one(6), through(lambda a: _shuffle(a, 2)), {"a": "abcabc"}),
    Row(
        "a channel shuffle by layer",
        lambda: {**one(6)(), "mix": nn.ChannelShuffle(2)},
        lambda net, x: net.out(net.mix(net.a(x))),
        {"a": "abcabc"},
    ),
    Row("native_channel_shuffle", one(6), through(lambda a: aten.native_channel_shuffle(a, 3)), {"a": "ababab"}),
    Row(
        "channels after a shuffle lie where it put them",
        two(6, 6),
        meet(lambda a, b: _shuffle(a, 2) + b),
        {"a": "abcabc", "b": "aabbcc"},
    ),
    Row(
        "windows side by side show every channel once per place",
        lambda: {"a": conv(3, 2), "out": conv(8, 2)},
        through(lambda a: F.unfold(a, 2).unflatten(-1, (3, 5))),
        {"a": "ab"},
    ),
    Row(
        "windows added up tie the places of one channel",
        lambda: {"a": conv(3, 8), "out": conv(2, 2)},
        through(lambda a: F.fold(a.flatten(2), (5, 7), 2)),
        {"a": "aaaabbbb"},
    ),
    Row(
        "pixel shuffle ties the r x r channels of one",
        lambda: {"a": conv(3, 8), "out": conv(2, 2)},
        through(lambda a: F.pixel_shuffle(a, 2)),
        {"a": "aaaabbbb"},
    ),
    Row(
        "pixel unshuffle shows every channel r x r times",
        lambda: {"a": conv(3, 2), "b": conv(3, 8), "out": conv(8, 2)},
        lambda net, x: net.out(F.pixel_unshuffle(net.a(x), 2) + F.avg_pool2d(net.b(x), 2)),
        {"a": "ab", "b": "aaaabbbb"},
    ),
    Row("slice of space", one(), through(lambda a: a[:, :, 1:, ::2]), APART),
    Row("a slice of all channels", one(), through(lambda a: a[:, :]), APART),
    Row(
        "a slice of channels by a number in the code is let go of",
        one(6, 3),
        through(lambda a: a[:, :3]),
        {"a": "abc..."},
        offered=NOTHING,
    ),
    Row("narrow of space", one(), through(lambda a: a.narrow(2, 1, 2)), APART),
    Row("narrow of channels keeps them", one(read=3), through(lambda a: a.narrow(1, 0, 3)), NOTHING),
    Row("select of space", signal, through(lambda a: a.unsqueeze(-1).select(3, 0)), APART, SIGNAL),
    Row("select of a channel keeps all", one(read=1), through(lambda a: a[:, 0].unsqueeze(1)), NOTHING),
    Row(
        "index_select keeps channels", one(read=2), through(lambda a: a.index_select(1, torch.tensor([2, 0]))), NOTHING
    ),
]


def _square(a: Tensor) -> Tensor:
    return a.unsqueeze(-1) * torch.ones(12, dtype=a.dtype)


def _shuffle(a: Tensor, groups: int) -> Tensor:
    n, c, h, w = a.shape
    return a.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _gate(a: Tensor, b: Tensor) -> Tensor:
    return a * b.sigmoid()


SPLITTING = [
    Row("chunk needs equal halves", one(6, 3), through(lambda a: _gate(*a.chunk(2, dim=1))), {"a": "abcabc"}),
    Row(
        "halves that go different ways lose the same",
        lambda: {"a": conv(3, 6), "b": conv(3, 4), "c": conv(3, 4), "out": conv(4, 2)},
        lambda net, x: _two_ways(net, *net.a(x).chunk(2, dim=1)),
        {"a": "abcabc", "b": "defg", "c": "defg"},
    ),
    Row("a gated linear unit is a chunk", one(6, 3), through(lambda a: F.glu(a, dim=1)), {"a": "abcabc"}),
    Row("unequal chunks keep their channels", one(5, 2), through(lambda a: a.chunk(2, dim=1)[1]), NOTHING),
    Row("chunk of space", one(), through(lambda a: _gate(*a.chunk(2, dim=2))), APART),
    Row(
        "split by a number in the code is let go of",
        one(6, 3),
        through(lambda a: _gate(*a.split(3, dim=1))),
        {"a": "abcabc"},
        offered=NOTHING,
    ),
    Row("split of space", one(), through(lambda a: _gate(*a.split(2, dim=2))), APART),
    Row(
        "unequal split by numbers in the code is let go of",
        lambda: {"a": conv(3, 6), "b": conv(3, 2), "c": conv(3, 4), "out": conv(2, 2), "last": conv(4, 2)},
        lambda net, x: _unequal(net, x, *net.a(x).split([2, 4], dim=1)),
        {"a": "abcdef", "b": "ab", "c": "cdef"},
        offered=NOTHING,
    ),
    Row("split_with_sizes of space", one(), through(lambda a: a.split([1, 3], dim=2)[1]), APART),
    Row("tensor_split", one(6, 3), through(lambda a: _gate(*a.tensor_split(2, dim=1))), {"a": "abcabc"}),
    Row("unsafe_chunk", one(6, 3), through(lambda a: _gate(*torch.unsafe_chunk(a, 2, 1))), {"a": "abcabc"}),
    Row("unsafe_split of space", one(), through(lambda a: _gate(*torch.unsafe_split(a, 2, 2))), APART),
    Row("unsafe_split_with_sizes", one(), through(lambda a: torch.unsafe_split_with_sizes(a, [1, 3], 2)[1]), APART),
    Row("unbind of another axis", two(), meet(lambda a, b: _gate(*torch.stack([a, b]).unbind(0))), TIED),
    Row("unbind of channels keeps them", one(), through(lambda a: torch.stack(a.unbind(1)[::-1], 1)), NOTHING),
]


def _two_ways(net: Any, left: Tensor, right: Tensor) -> Tensor:
    return net.out(net.b(left) + net.c(right))


def _unequal(net: Any, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return net.out(left + net.b(x)) + net.last(right * net.c(x))


REDUCED: dict[str, Callable[[Tensor, Any, bool], Any]] = {
    "mean": lambda a, d, k: a.mean(d, keepdim=k),
    "sum": lambda a, d, k: a.sum(d, keepdim=k),
    "amax": lambda a, d, k: a.amax(d, keepdim=k),
    "amin": lambda a, d, k: a.amin(d, keepdim=k),
    "max": lambda a, d, k: a.max(d, keepdim=k)[0],
    "min": lambda a, d, k: a.min(d, keepdim=k)[0],
    "prod": lambda a, d, k: a.prod(d, keepdim=k),
    "var": lambda a, d, k: a.var(d, keepdim=k, unbiased=False),
    "std": lambda a, d, k: a.std(d, keepdim=k, unbiased=False),
    "std_mean": lambda a, d, k: torch.std_mean(a, d, keepdim=k, unbiased=False)[1],
    "var_mean": lambda a, d, k: torch.var_mean(a, d, keepdim=k, unbiased=False)[1],
    "logsumexp": lambda a, d, k: a.logsumexp(d, keepdim=k),
    "norm": lambda a, d, k: aten.norm(a, 2, [d], k),
    "linalg_vector_norm": lambda a, d, k: torch.linalg.vector_norm(a, dim=d, keepdim=k),
    "any": lambda a, d, k: (a > 0).any(d, keepdim=k).to(a.dtype),
    "all": lambda a, d, k: (a > 0).all(d, keepdim=k).to(a.dtype),
    "argmax": lambda a, d, k: a.argmax(d, keepdim=k).to(a.dtype),
    "argmin": lambda a, d, k: a.argmin(d, keepdim=k).to(a.dtype),
}
KEPT: dict[str, Callable[[Tensor, int], Any]] = {
    "softmax": lambda a, d: a.softmax(d),
    "log_softmax": lambda a, d: a.log_softmax(d),
    "_softmax": lambda a, d: aten._softmax(a, d, False),
    "_log_softmax": lambda a, d: aten._log_softmax(a, d, False),
    "cumsum": lambda a, d: a.cumsum(d),
    "logcumsumexp": lambda a, d: a.logcumsumexp(d),
    "cumprod": lambda a, d: a.cumprod(d),
    "sort": lambda a, d: a.sort(d)[0],
    "topk": lambda a, d: a.topk(2, d)[0].sum(d, keepdim=True).expand(a.shape),
}


def over_space(f: Any) -> Any:
    return through(lambda a: f(f(a, 3, True), 2, True))


def over_channels(f: Any) -> Any:
    return through(lambda a: f(a, 1, True))


REDUCTIONS = [
    *(Row(f"{name} over space keeps channels apart", one(), over_space(f), APART) for name, f in REDUCED.items()),
    *(Row(f"{name} over channels keeps them", one(read=1), over_channels(f), NOTHING) for name, f in REDUCED.items()),
    *(
        Row(f"{name} over space keeps channels apart", one(), through(lambda a, f=f: f(a, 3)), APART)
        for name, f in KEPT.items()
    ),
    *(
        Row(f"{name} over channels keeps them", one(), through(lambda a, f=f: f(a, 1)), NOTHING)
        for name, f in KEPT.items()
    ),
    Row(
        "an RMS norm that its layer writes out",
        lambda: {"a": conv(3, 4), "norm": WrittenRMSNorm(4), "out": conv(4, 2)},
        lambda net, x: net.out(net.norm(net.a(x))),
        APART,
    ),
    Row(
        "an RMS norm written out without a layer of its own keeps its channels",
        one(),
        through(lambda a: a * torch.rsqrt(a.pow(2).mean(1, keepdim=True) + 1e-6)),
        NOTHING,
    ),
    Row(
        "mean over space without keeping the axes",
        lambda: {"a": conv(3, 4), "out": nn.Linear(4, 2)},
        through(lambda a: a.mean((2, 3))),
        APART,
    ),
    Row(
        "the largest few of each channel",
        lambda: {"a": nn.Conv1d(3, 4, 1), "out": nn.Linear(4 * 5, 2)},
        through(lambda a: a.topk(5, dim=2)[0].flatten(1)),
        APART,
        SIGNAL,
    ),
    Row("the larger of two tensors ties them", two(), meet(lambda a, b: torch.max(a, b)), TIED),
    Row("a mean over everything keeps everything", two(), meet(lambda a, b: a * b.mean()), APART),
]


def heads(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Attention with heads of 2 channels: project, split, attend, join, read."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (net.q, net.k, net.v))
        return net.out(attend(q, k, v).transpose(1, 2).flatten(2))

    return run


def projections() -> dict[str, Any]:
    return {name: nn.Linear(3, 6) for name in "qkv"} | {"out": nn.Linear(6, 2)}


def _shared_out(sums: Tensor) -> Tensor:
    return sums[..., :-1] / (sums[..., -1:] + 1e-3)


def _looked_up(net: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])
    return net.out(net.a(x) + net.table[places] + net.embedding(places))


def _root_mean_square(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _normalised(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _of_normed_heads(norm: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Attention whose queries and keys are normalised inside each head by hand, with a scale for its channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        attend = heads(lambda q, k, v: F.scaled_dot_product_attention(norm(q, net.scale), norm(k, net.scale), v))
        return attend(net, x)

    return run


def _biased(net: Any, x: Tensor) -> Tensor:
    """Scores with a bias for each head, added as ``nn.MultiheadAttention`` adds a mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q, k, v), batch = (part.flatten(0, 1) for part in (q, k, v)), len(q)
        bias = net.bias.expand(batch, -1, x.shape[1], x.shape[1]).flatten(0, 1)
        return (torch.baddbmm(bias, q, k.mT).softmax(-1) @ v).unflatten(0, (batch, -1))

    return heads(attend)(net, x)


def _turned_in_part(x: Tensor) -> Tensor:
    """Channels from the second on would pass unturned, but there are none."""
    return torch.cat([-x[..., :2], x[..., 2:]], -1)


BY_HEADS = {"q": "aabbcc", "k": "aabbcc", "v": "aabbcc"}
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "T": lambda weight: weight.T,
    "t()": lambda weight: weight.t(),
    "mT": lambda weight: weight.mT,
    "transpose": lambda weight: weight.transpose(0, 1),
    "permute": lambda weight: weight.permute(1, 0),
}
PRODUCTS = [
    Row("fused attention goes by heads", projections, heads(F.scaled_dot_product_attention), BY_HEADS, TOKENS),
    Row(
        "written-out attention goes by heads",
        projections,
        heads(lambda q, k, v: (q @ k.transpose(2, 3)).softmax(-1) @ v),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "heads that are normalised by hand go whole (RMS)",
        lambda: {**projections(), "scale": table(2)},
        _of_normed_heads(_root_mean_square),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "heads that are normalised by hand go whole (mean and variance)",
        lambda: {**projections(), "scale": table(2)},
        _of_normed_heads(_normalised),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "scores with a bias for each head, in one call",
        lambda: {**projections(), "bias": table(1, 3, 1, 1)},
        _biased,
        {**BY_HEADS, "bias": "abc"},
        TOKENS,
    ),
    Row(
        "a slice past the last channel of a head takes none",
        projections,
        heads(lambda q, k, v: F.scaled_dot_product_attention(_turned_in_part(q), _turned_in_part(k), v)),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "attention by einsum goes by heads",
        projections,
        heads(lambda q, k, v: torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "linear attention whose values are padded with ones goes by heads",
        projections,
        heads(lambda q, k, v: _shared_out(q.relu() @ (k.relu().mT @ F.pad(v, (0, 1), value=1.0)))),
        BY_HEADS,
        TOKENS,
    ),
    Row(
        "biases of heads that einsum looks up in a table, by a buffer, go with their heads",
        lambda: (
            projections()
            | {"table": table(3, 3, 4), "rows": nn.Buffer(torch.rand(5, 3)), "columns": nn.Buffer(torch.rand(5, 4))}
        ),
        lambda net, x: heads(
            lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, torch.einsum("hib,jb->hij", torch.einsum("hab,ia->hib", net.table, net.rows), net.columns)
            )
        )(net, x),
        {**BY_HEADS, "table": "abc"},
        TOKENS,
    ),
    Row(
        "fused attention with one head goes by its width",
        projections,
        lambda net, x: net.out(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x))),
        {"q": "abcdef", "k": "abcdef", "v": "abcdef"},
        TOKENS,
    ),
    Row(
        "written-out attention with one head goes by the width of its factors, each apart",
        projections,
        lambda net, x: net.out((net.q(x) @ net.k(x).mT).softmax(-1) @ net.v(x)),
        {"q": "abcdef", "k": "abcdef", "v": "ghijkl"},
        TOKENS,
    ),
    Row(
        "einsum of an activation and a bare parameter is a layer",
        lambda: {"a": nn.Linear(3, 4), "up": table(4, 5), "down": table(6, 5), "out": nn.Linear(6, 2)},
        lambda net, x: net.out(
            torch.einsum("oc,bnc->bno", net.down, torch.einsum("bnc,cd->bnd", net.a(x), net.up).relu()).relu()
        ),
        {"a": "abcd", "up": "efghi", "down": "jklmno"},
        TOKENS,
    ),
    Row(
        "learned queries read the channels of tokens",
        lambda: {**flat()(), "queries": table(2, 4)},
        lambda net, x: net.out(((net.queries @ net.a(x).mT) * 0.5).softmax(-1) @ net.a(x)),
        {"a": "abcd", "queries": "abcd"},
        TOKENS,
    ),
    Row(
        "a bare parameter mixes tokens within each channel",
        lambda: {**flat()(), "mix": table(6, 5)},
        lambda net, x: net.out((net.mix @ net.a(x)).relu()),
        {"a": "abcd"},
        TOKENS,
    ),
    Row(
        "einsum of weights per token and tokens passes their channels",
        lambda: {**flat()(), "score": nn.Linear(4, 1)},
        lambda net, x: net.out(torch.einsum("bn,bnd->bd", _shares(net.score, net.a(x)), net.a(x))),
        {"a": "abcd"},
        TOKENS,
    ),
    Row(
        "einsum of tokens and weights per token, channels first",
        lambda: {**flat()(), "score": nn.Linear(4, 1)},
        lambda net, x: net.out(torch.einsum("bnd,bn->db", net.a(x), _shares(net.score, net.a(x))).mT),
        {"a": "abcd"},
        TOKENS,
    ),
    Row(
        "einsum over the channels of one operand keeps them",
        lambda: {**flat()(), "score": nn.Linear(4, 1)},
        lambda net, x: torch.einsum("bn,bnd->b", _shares(net.score, net.a(x)), net.a(x)),
        NOTHING,
        TOKENS,
    ),
    Row("written into a part of zeros", one(), through(lambda a: _shifted(torch.zeros_like(a), a)), APART),
    Row(
        "written into a part of zeros of its shape",
        one(),
        through(lambda a: _shifted(torch.zeros(a.shape, dtype=a.dtype), a)),
        APART,
    ),
    Row("written into a part of another value", one(), through(lambda a: _shifted(a.clone(), a)), APART),
    Row("a number written into a part", one(), through(lambda a: _blanked(a.clone())), APART),
    Row(
        "written over some of the channels, by a number in the code",
        one(),
        through(lambda a: _halves_swapped(a)),
        {"a": "abab"},
        offered=NOTHING,
    ),
    Row(
        "some channels replaced by what a layer makes of them",
        lambda: {"a": conv(3, 5), "part": conv(2, 2, 3, padding=1), "out": conv(5, 2)},
        lambda net, x: net.out(_replaced_in_part(net.part, net.a(x)).relu()),
        {"a": "abcde", "part": "ab"},
    ),
    Row(
        "every other channel written over keeps all",
        one(),
        through(lambda a: _every_other(a.clone())),
        NOTHING,
    ),
    Row("written into what a view shows later", one(), through(lambda a: _seen_later(a)), NOTHING),
    Row(
        "unpooling by the places of a pool shares the pool's channels",
        one(),
        through(lambda a: F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), 2)),
        APART,
    ),
    Row(
        "unpooling in space shares the pool's channels",
        lambda: {"a": nn.Conv3d(3, 4, 1), "out": nn.Conv3d(4, 2, 1)},
        through(lambda a: F.max_unpool3d(*F.max_pool3d(a, 2, return_indices=True), 2)),
        APART,
        VOLUME,
    ),
    Row("any other einsum keeps all", one(), through(lambda a: torch.einsum("nchw,ndhw->nchw", a, a)), NOTHING),
    Row(
        "a product of matrices in a batch reads channels together",
        one(),
        through(lambda a: _gram(a.flatten(2))),
        NOTHING,
        (2, 3, 2, 2),
    ),
    Row(
        "a product with a bare parameter is a linear layer",
        lambda: {**flat(4, 5)(), "weight": nn.Parameter(torch.randn(4, 5))},
        lambda net, x: net.out(net.a(x) @ net.weight),
        {"a": "abcd", "weight": "efghi"},
        TOKENS,
    ),
    Row(
        "so is one of matrices",
        lambda: {**flat(4, 5)(), "weight": nn.Parameter(torch.randn(4, 5))},
        lambda net, x: net.out(torch.mm(net.a(x), net.weight)),
        {"a": "abcd", "weight": "efghi"},
        (2, 3),
    ),
    Row(
        "and one that a vector is added to",
        lambda: {**flat(4, 5)(), "weight": nn.Parameter(torch.randn(4, 5)), "bias": nn.Parameter(torch.randn(5))},
        lambda net, x: net.out(torch.addmm(net.bias, net.a(x), net.weight)),
        {"a": "abcd", "weight": "efghi", "bias": "efghi"},
        (2, 3),
    ),
    *(
        Row(
            f"a matrix turned by {name} on its way to a product is that of a linear layer",
            lambda: {**flat(4, 5)(), "weight": nn.Parameter(torch.randn(5, 4))},
            lambda net, x, turned=turned: net.out(net.a(x) @ turned(net.weight)),
            {"a": "abcd", "weight": "efghi"},
            TOKENS,
        )
        for name, turned in TURNS.items()
    ),
    Row(
        "so is one that a vector is added to",
        lambda: {**flat(4, 5)(), "weight": nn.Parameter(torch.randn(5, 4)), "bias": nn.Parameter(torch.randn(5))},
        lambda net, x: net.out(torch.addmm(net.bias, net.a(x), net.weight.t())),
        {"a": "abcd", "weight": "efghi", "bias": "efghi"},
        (2, 3),
    ),
    Row(
        "a table that makes the tokens and, turned, the answers loses the channels of both",
        lambda: {"table": nn.Embedding(7, 4), "a": nn.Linear(4, 5), "out": nn.Linear(5, 4)},
        lambda net, x: net.out(net.a(net.table(x.abs().clamp(max=6).long())).relu()) @ net.table.weight.T,
        {"a": "abcde", "out": "fghi"},
        (2, 3),
    ),
    Row(
        "rows of tables are channels wherever they are looked up",
        lambda: {**flat()(), "table": nn.Parameter(torch.randn(9, 4)), "embedding": nn.Embedding(9, 4)},
        _looked_up,
        {"a": "abcd", "table": "abcd"},
        TOKENS,
    ),
]


def _shares(score: nn.Module, tokens: Tensor) -> Tensor:
    return score(tokens).squeeze(-1).softmax(-1)


def _gram(a: Tensor) -> Tensor:
    return torch.bmm(a, a.transpose(1, 2)).unsqueeze(-1)


STANDARDISED = [
    Row(
        "a convolution that standardises its weight",
        lambda: {"a": conv(3, 4), "std": StdConv2dSame(4, 5, 3, stride=2), "out": conv(5, 2)},
        lambda net, x: net.out(net.std(net.a(x))),
        {"a": "abcd", "std": "efghi"},
    ),
    Row(
        "one that scales its rows by a gain too, for an input of several parts",
        lambda: {"a": conv(3, 4), "std": ScaledStdConv2d(8, 5, 1), "out": conv(5, 2)},
        lambda net, x: net.out(net.std(torch.cat([net.a(x), -net.a(x)], 1))),
        {"a": "abcd", "std": "efghi"},
    ),
    Row(
        "groups of a standardised convolution go as a whole",
        lambda: {"a": conv(3, 4), "std": StdConv2d(4, 6, 1, groups=2), "out": conv(6, 2)},
        lambda net, x: net.out(net.std(net.a(x))),
        {"a": "aabb", "std": "aaabbb"},
    ),
    Row(
        "a standardised weight of another layer keeps what it reads",
        lambda: {"a": conv(3, 4), "std": conv(4, 5), "out": conv(5, 2)},
        lambda net, x: net.out(F.conv2d(net.a(x), _standardised(net.std.weight))),
        {"std": "abcde"},
    ),
    Row(
        "a standardised weight of a linear layer keeps what it reads",
        lambda: {**flat(4, 5)(), "std": nn.Parameter(torch.randn(5, 4))},
        lambda net, x: net.out(F.linear(net.a(x), _standardised(net.std))),
        {"std": "abcde"},
        TOKENS,
    ),
    Row(
        "a standardised weight of a transposed convolution stays",
        lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 5, 2), "out": conv(5, 2)},
        lambda net, x: net.out(F.conv_transpose2d(net.a(x), _standardised(net.t.weight))),
        NOTHING,
    ),
    Row(
        "weight norm makes of a weight that weight",
        lambda: {"a": conv(3, 4), "b": weight_norm(conv(4, 5)), "out": conv(5, 2)},
        lambda net, x: net.out(net.b(net.a(x))),
        {"a": "abcd", "b": "efghi"},
    ),
    Row(
        "weight norm of groups, of a linear layer",
        lambda: (
            {"a": conv(3, 4), "b": weight_norm(conv(4, 4, groups=4)), "c": weight_norm(nn.Linear(4, 3))}
            | {"out": nn.Linear(3, 2)}
        ),
        lambda net, x: net.out(net.c(net.b(net.a(x)).mean((2, 3)))),
        {"a": "abcd", "b": "abcd", "c": "efg"},
    ),
    Row(
        "weight norm over what a transposed convolution makes keeps it",
        lambda: {"a": conv(3, 4), "b": weight_norm(nn.ConvTranspose2d(4, 5, 2)), "out": conv(5, 2)},
        lambda net, x: net.out(net.b(net.a(x))),
        NOTHING,
    ),
    Row(
        "weight norm over what is read keeps it",
        lambda: {"a": conv(3, 4), "b": weight_norm(conv(4, 5), dim=1), "out": conv(5, 2)},
        lambda net, x: net.out(net.b(net.a(x))),
        NOTHING,
    ),
    Row(
        "a weight in another type is that weight",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(4, 3), "out": nn.Linear(3, 2)},
        lambda net, x: net.out(
            F.linear(net.a(x).float(), net.b.weight.type_as(x).float(), net.b.bias.to(torch.float32)).double()
        ),
        {"a": "abcd", "b": "efg"},
        (2, 3),
    ),
]


def _over(transform: Callable[..., Tensor], a: Tensor, **options: Any) -> Tensor:
    """Transform, and return as many real numbers per channel as there are whole ones."""
    made = transform(a, **options)
    return made.real if made.is_complex() else made


def _fourier_unit(net: Any, x: Tensor) -> Tensor:
    """A convolution of the real and the imaginary parts of a spectrum (fast Fourier convolution, LaMa)."""
    a = net.a(x)
    parts = torch.view_as_real(torch.fft.rfft2(a, norm="ortho")).permute(0, 1, 4, 2, 3)
    mixed = net.mix(parts.reshape(len(x), -1, *parts.shape[3:])).relu()
    pairs = mixed.view(len(x), -1, 2, *mixed.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
    return net.out(a + torch.fft.irfft2(torch.view_as_complex(pairs), s=a.shape[-2:], norm="ortho"))


def _filtered(net: Any, x: Tensor) -> Tensor:
    """A product of spectra with a learned filter (global filter networks)."""
    spectrum = torch.fft.rfft(net.a(x), dim=1) * torch.view_as_complex(net.filter)
    return net.out(torch.fft.irfft(spectrum, n=x.shape[1], dim=1))


def _turned_by_angles(q: Tensor) -> Tensor:
    """A rotary embedding written with complex numbers, pairs of neighbouring channels turned by their position."""
    angles = torch.arange(q.shape[-2], dtype=q.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=q.dtype)
    pairs = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


SPECTRAL = [
    *(
        Row(f"{name} over space", one(), through(partial(_over, getattr(torch.fft, name))), APART)
        for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2")
    ),
    *(
        Row(f"{name} over space", one(), through(partial(_over, getattr(torch.fft, name), dim=(-2, -1))), APART)
        for name in ("fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn", "hfft2", "ihfft2")
    ),
    Row("fftn with sizes is over the last axes", one(), through(partial(_over, torch.fft.fftn, s=(4, 6))), APART),
    Row("fftn without is over all", one(), through(partial(_over, torch.fft.fftn)), NOTHING),
    Row("a transform over channels reads all together", one(), through(partial(_over, torch.fft.fft, dim=1)), NOTHING),
    Row(
        "a convolution of spectra keeps both parts of a number",
        lambda: {"a": conv(3, 4), "mix": conv(8, 8), "out": conv(4, 2)},
        _fourier_unit,
        {"a": "abcd", "mix": "aabbccdd"},
    ),
    Row(
        "a learned filter of spectra goes with its channels",
        lambda: {"a": nn.Linear(3, 4), "filter": table(3, 4, 2), "out": nn.Linear(4, 2)},
        _filtered,
        {"a": "abcd", "filter": "abcd"},
        TOKENS,
    ),
    Row(
        "complex numbers made of channels tie them",
        two(),
        meet(lambda a, b: torch.complex(a, b).conj().resolve_conj().conj_physical().abs()),
        TIED,
    ),
    Row("numbers made of lengths and angles tie both", two(), meet(lambda a, b: torch.polar(a.abs(), b).imag), TIED),
    Row(
        "what is said of each complex number",
        two(),
        meet(lambda a, b: torch.sgn(torch.complex(a, b)).resolve_neg().angle() + a * b),
        TIED,
    ),
    Row(
        "neighbouring channels that become one number go together",
        one(read=2),
        through(lambda a: torch.view_as_complex(a.unflatten(1, (-1, 2)).movedim(2, -1).contiguous()).real),
        {"a": "aabb"},
    ),
    Row(
        "heads whose channels are turned in pairs go whole",
        lambda: {**{name: nn.Linear(3, 12) for name in "qkv"}, "out": nn.Linear(12, 2)},
        lambda net, x: net.out(
            F.scaled_dot_product_attention(
                *(_turned_by_angles(part(x).unflatten(-1, (-1, 4)).transpose(1, 2)) for part in (net.q, net.k)),
                net.v(x).unflatten(-1, (-1, 4)).transpose(1, 2),
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        dict.fromkeys("qkv", "aaaabbbbcccc"),
        TOKENS,
    ),
]


def _sent(name: str, *options: Any, places: Callable[[Tensor, Tensor], Tensor], start: Any = torch.zeros) -> Any:
    """Messages of five nodes go to three."""

    def run(net: Any, x: Tensor) -> Tensor:
        made = net.a(x)
        to = places(torch.tensor([0, 2, 2, 0, 1]), made)
        begun = start(len(x), 3, made.shape[-1], dtype=x.dtype)
        return net.out(getattr(begun, name)(1, to, made, *options))

    return run


def _for_each(places: Tensor, made: Tensor) -> Tensor:
    return places[None, :, None].expand_as(made)


def _as_they_are(places: Tensor, made: Tensor) -> Tensor:
    return places


def _computed(places: Tensor, made: Tensor) -> Tensor:
    return (made > 0).long()


def tokens(width: int = 4) -> Callable[[], dict[str, Any]]:
    return lambda: {"a": nn.Linear(3, width), "out": nn.Linear(width, 2)}


SENT = [
    Row("messages added by index", tokens(), _sent("index_add", places=_as_they_are), APART, TOKENS),
    Row("messages copied by index", tokens(), _sent("index_copy", places=_as_they_are), APART, TOKENS),
    Row("messages reduced by index", tokens(), _sent("index_reduce", "amax", places=_as_they_are), APART, TOKENS),
    Row("messages added to places", tokens(), _sent("scatter_add", places=_for_each), APART, TOKENS),
    Row("messages put into places", tokens(), _sent("scatter", places=_for_each), APART, TOKENS),
    Row("messages reduced at places", tokens(), _sent("scatter_reduce", "amax", places=_for_each), APART, TOKENS),
    Row("messages added in place", tokens(), _sent("scatter_add_", places=_for_each), APART, TOKENS),
    Row("places that each channel computes", tokens(), _sent("scatter_add", places=_computed), APART, TOKENS),
    Row(
        "messages added to an activation tie both",
        lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
        lambda net, x: net.out(net.a(x).index_add(1, torch.tensor([0, 2, 2]), net.b(x)[:, :3])),
        TIED,
        TOKENS,
    ),
    Row(
        "channels that are sent to other channels stay",
        one(),
        through(lambda a: torch.zeros_like(a).index_add(1, torch.tensor([1, 0, 3, 2]), a)),
        NOTHING,
    ),
    Row(
        "one number sent to places holds what it meets",
        tokens(),
        lambda net, x: net.out(net.a(x).scatter(1, _for_each(torch.tensor([0]), net.a(x)[:, :1]), 0.5)),
        NOTHING,
        TOKENS,
    ),
]

COMPARED = [
    Row(f"{name} reads the channels of both together", both, run, NOTHING, TOKENS)
    for both in [lambda: {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "out": nn.Linear(5, 2)}]
    for name, run in {
        "cosine_similarity": lambda net, x: net.out(F.cosine_similarity(net.a(x), net.b(x), dim=-1)),
        "pairwise_distance": lambda net, x: net.out(F.pairwise_distance(net.a(x), net.b(x))),
        "cdist": lambda net, x: net.out(torch.cdist(net.a(x), net.b(x))),
    }.items()
]

UNKNOWN = [
    Row("a function of each number that has no rule", one(), through(lambda a: torch.lgamma(a.abs() + 1)), NOTHING),
]


def recurrent(kind: Callable[..., nn.Module], reads: int = 4, **options: Any) -> Callable[[], dict[str, Any]]:
    """``a`` makes features, ``rnn`` reads them, ``out`` reads its 5 units."""
    return lambda: {"a": nn.Linear(3, 4), "rnn": kind(reads, 5, **options), "out": nn.Linear(5, 2)}


def over_time(net: Any, x: Tensor) -> Any:
    """Read the first of what a recurrent layer or cell makes."""
    return net.out(net.rnn(net.a(x))[0])


RECURRENT = [
    Row("lstm", recurrent(nn.LSTM), over_time, APART, TOKENS),
    Row(
        "lstm in two layers and both directions",
        lambda: {**recurrent(nn.LSTM, num_layers=2, bidirectional=True)(), "out": nn.Linear(10, 2)},
        over_time,
        APART,
        TOKENS,
    ),
    Row(
        "lstm of a projected state",
        lambda: {**recurrent(nn.LSTM, proj_size=3, bias=False)(), "out": nn.Linear(3, 2)},
        over_time,
        APART,
        TOKENS,
    ),
    Row("gru", recurrent(nn.GRU), lambda net, x: net.out(net.rnn(net.a(x))[1][0]), APART, TOKENS),
    Row("rnn", recurrent(nn.RNN), over_time, APART, TOKENS),
    Row(
        "rnn with relu",
        recurrent(nn.RNN, nonlinearity="relu"),
        over_time,
        APART,
        TOKENS,
    ),
    Row(
        "a state that a layer makes stays",
        lambda: {**recurrent(nn.GRU)(), "b": nn.Linear(3, 5)},
        lambda net, x: net.out(net.rnn(net.a(x), net.b(x[:, :1]).transpose(0, 1))[0]),
        {"a": "abcd"},
        (2, 2, 3),
    ),
    Row(
        "a cell's weight computed in forward keeps what it reads",
        recurrent(nn.GRUCell),
        lambda net, x: net.out(torch.gru_cell(net.a(x), x.new_zeros(2, 5), net.rnn.weight_ih.exp(), net.rnn.weight_hh)),
        NOTHING,
        (2, 3),
    ),
    Row("lstm cell", recurrent(nn.LSTMCell), over_time, APART, (2, 3)),
    Row("gru cell", recurrent(nn.GRUCell), lambda net, x: net.out(net.rnn(net.a(x))), APART, (2, 3)),
    Row("rnn cell", recurrent(nn.RNNCell), lambda net, x: net.out(net.rnn(net.a(x))), APART, (2, 3)),
    Row(
        "rnn cell with relu",
        recurrent(nn.RNNCell, nonlinearity="relu"),
        lambda net, x: net.out(net.rnn(net.a(x))),
        APART,
        (2, 3),
    ),
    Row(
        "a cell that runs over time",
        recurrent(nn.GRUCell),
        lambda net, x: net.out(net.rnn(net.a(x[:, 1]), net.rnn(net.a(x[:, 0])))),
        APART,
        TOKENS,
    ),
]

TABLE = [
    *LAYERS,
    *RECURRENT,
    *ELEMENTWISE,
    *PASSED_THROUGH,
    *DRAWN,
    *CONSTANTS,
    *POOLING,
    *MOVEMENT,
    *SPLITTING,
    *REDUCTIONS,
    *PRODUCTS,
    *STANDARDISED,
    *SPECTRAL,
    *SENT,
    *COMPARED,
    *UNKNOWN,
]

# Registered under a name that no call in a traced graph bears.
ALIASES = {
    "aten::bfloat16": "Tensor.bfloat16 is recorded as aten::to",
    "aten::double": "Tensor.double is recorded as aten::to",
    "aten::float": "Tensor.float is recorded as aten::to",
    "aten::half": "Tensor.half is recorded as aten::to",
    "aten::softsign": "softsign is recorded as abs, add and div",
}


def _shifted(made: Tensor, a: Tensor) -> Tensor:
    made[:, :, 1:, :-1] = a[:, :, :-1, 1:]
    made[:, :, :1] += a[:, :, -1:]
    return made


def _blanked(a: Tensor) -> Tensor:
    a[:, :, :1] = 0
    return a


def _replaced_in_part(part: Any, a: Tensor) -> Tensor:
    a[:, : part.in_channels] = part(a[:, : part.in_channels])
    return a


def _every_other(a: Tensor) -> Tensor:
    a[:, ::2] = a[:, 1::2]
    return a


def _halves_swapped(a: Tensor) -> Tensor:
    made = torch.zeros_like(a)
    made[:, :2], made[:, 2:] = a[:, 2:], a[:, :2]
    return made


def _seen_later(a: Tensor) -> Tensor:
    made = torch.zeros_like(a)
    view = made[:, :, :2]
    made[:, :, 1:] = a[:, :, :-1]
    return made + view.mean()
