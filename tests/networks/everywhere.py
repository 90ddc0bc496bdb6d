"""Parts that read any value: norms, activations, parameters, gates, splits, and what joins two values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.part import (
    IMAGE,
    TOKENS,
    VECTOR,
    Choices,
    Options,
    Part,
    Shape,
    channel_axis,
    channels,
    dense,
    divisors,
    part,
)

ANY = (IMAGE, TOKENS, VECTOR)


class LayerNorm2d(nn.LayerNorm):
    """A layer norm that moves the channels to the end by itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class WrittenRMSNorm(nn.Module):
    """An RMS norm over the last axis whose arithmetic is written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class WrittenLayerNorm(nn.Module):
    """A layer norm over the last axis, written out, with names of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return self.gamma * (off / torch.sqrt(off.square().mean(-1, keepdim=True) + 1e-5)) + self.beta


class ResponseNorm(WrittenLayerNorm):
    """Each channel's norm over space beside the mean of all channels'."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = x.norm(p=2, dim=tuple(range(1, x.ndim - 1)), keepdim=True)
        share = lengths / (lengths.mean(-1, keepdim=True) + 1e-30)
        return torch.addcmul(self.beta, self.gamma, x * share) + x


BATCH_NORMS = {IMAGE: nn.BatchNorm2d, VECTOR: nn.BatchNorm1d}
CHANNELS_LAST = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "written_rms": WrittenRMSNorm,
    "written_layer": WrittenLayerNorm,
    "response": ResponseNorm,
}


@part("norm")
class Norm(Part):
    """A norm: of each channel by itself, or of all or several together."""

    ranks = ANY

    def make(self, shape: Shape, *, kind: str, groups: int = 1) -> None:
        width, self.last = channels(shape), kind in CHANNELS_LAST and len(shape) == IMAGE
        if kind == "group":
            self.layer: nn.Module = nn.GroupNorm(groups, width)
        elif kind.startswith("instance"):
            self.layer = nn.InstanceNorm2d(width, affine=kind == "instance_affine")
        elif kind == "layer_2d":
            self.layer = LayerNorm2d(width)
        else:
            self.layer = CHANNELS_LAST[kind](width) if kind in CHANNELS_LAST else BATCH_NORMS[len(shape)](width)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        kinds = [*(["batch"] if len(shape) != TOKENS else []), *CHANNELS_LAST]
        if len(shape) == VECTOR:
            kinds.remove("response")
        if len(shape) == IMAGE:
            kinds += ["group", "layer_2d", *(["instance", "instance_affine"] if shape[2] * shape[3] > 1 else [])]
        options: Options = {"kind": choices.of(kinds)}
        if options["kind"] == "group":
            options["groups"] = choices.of([1, *divisors(channels(shape), 2, 3)])
        return options

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.layer(x)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "in_place": lambda: nn.ReLU6(inplace=True),
    "slope": nn.PReLU,
}


@part("activation")
class Activation(Part):
    """A function of each element by itself."""

    ranks = ANY

    def make(self, shape: Shape, *, kind: str) -> None:
        self.layer = nn.PReLU(shape[1]) if kind == "slopes" else ACTIVATIONS[kind]()
        self.copies = kind == "in_place"

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"kind": choices.of([*ACTIVATIONS, *(["slopes"] if len(shape) != TOKENS else [])])}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.clone() if self.copies else x)


@part("dropout")
class Dropout(Part):
    """Random in train mode: of elements, or of whole channels."""

    ranks = ANY

    def make(self, shape: Shape, *, whole: bool) -> None:
        self.layer = nn.Dropout2d(0.3) if whole else nn.Dropout(0.3)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"whole": choices.of((False, True)) if len(shape) == IMAGE else False}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("parameter")
class Parameter(Part):
    """A bare parameter: a layer scale or shift per channel, or an embedding of positions."""

    ranks = ANY

    def make(self, shape: Shape, *, kind: str) -> None:
        per_channel = [size if axis == channel_axis(len(shape)) else 1 for axis, size in enumerate(shape)]
        self.scales = kind == "scale"
        self.value = nn.Parameter(torch.rand((1, *shape[1:]) if kind == "position" else per_channel[1:]) + 0.5)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"kind": choices.of(("scale", "shift", "position"))}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value if self.scales else x + self.value


@part("gate")
class Gate(Part):
    """Each channel times a number computed from all channels at that place."""

    ranks = ANY

    def make(self, shape: Shape) -> None:
        self.layer = dense(len(shape), channels(shape), channels(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.layer(x))


@part("mlp")
class Mlp(Part):
    """Two layers with more channels in between, perhaps beside a shortcut."""

    ranks = ANY

    def make(self, shape: Shape, *, inner: int, shortcut: bool) -> None:
        width = channels(shape)
        self.up, self.down = dense(len(shape), width, inner), dense(len(shape), inner, width)
        self.shortcut = shortcut

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"inner": choices.of((8, 16, 5)), "shortcut": choices.of((False, True))}

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(x)))
        return x + y if self.shortcut else y


@part("half_gates_half")
class HalfGatesHalf(Part):
    """A gated linear unit: one half of the channels gates the other."""

    ranks = ANY

    def make(self, shape: Shape, *, layer: bool) -> None:
        self.axis = channel_axis(len(shape))
        self.layer = nn.GLU(self.axis) if layer else None

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = channels(shape) % 2 == 0 and channels(shape) >= 4
        return {"layer": choices.of((False, True))} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is not None:
            return self.layer(x)
        left, right = x.chunk(2, dim=self.axis)
        return left * torch.sigmoid(right)


@part("chunk")
class Chunk(Part):
    """Two or three equal parts, each a value of its own."""

    ranks = ANY

    def make(self, shape: Shape, *, into: int) -> None:
        self.axis, self.into = channel_axis(len(shape)), into

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = [n for n in (2, 3) if channels(shape) % n == 0 and channels(shape) >= 2 * n]
        return {"into": choices.of(fits)} if fits else None

    def forward(self, x: Tensor) -> Any:
        return x.chunk(self.into, dim=self.axis)


@part("split")
class Split(Part):
    """Two or three parts of given sizes, each a value of its own."""

    ranks = ANY

    def make(self, shape: Shape, *, sizes: tuple[int, ...]) -> None:
        self.axis, self.sizes = channel_axis(len(shape)), list(sizes)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        width = channels(shape)
        if width < 5:
            return None
        first = choices.of((width // 2, 2, width - 2, 3))
        rest = width - first
        return {"sizes": choices.of([(first, rest), *([(first, 2, rest - 2)] if rest > 3 else [])])}

    def forward(self, x: Tensor) -> Any:
        return torch.split(x, self.sizes, dim=self.axis)


@part("leading")
class Leading(Part):
    """The first channels only; their number is an attribute."""

    ranks = ANY

    def make(self, shape: Shape, *, size: int) -> None:
        self.axis, self.size = channel_axis(len(shape)), size

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        width = channels(shape)
        return {"size": choices.of((width // 2, width - 1, 2))} if width > 3 else None

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.size] if self.axis == 2 else x[:, : self.size]


@part("flip")
class Flip(Part):
    """The channels in reverse order."""

    ranks = ANY

    def make(self, shape: Shape) -> None:
        self.axis = channel_axis(len(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flip(x, (self.axis,))


@part("reads_all")
class ReadsAll(Part):
    """Something that reads all channels together, for which nothing may be removed."""

    ranks = ANY

    def make(self, shape: Shape, *, how: str) -> None:
        self.axis, self.how = channel_axis(len(shape)), how

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"how": choices.of(("mean", "softmax", "amax"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "softmax":
            return x * x.softmax(self.axis)
        return x - getattr(x, self.how)(self.axis, keepdim=True)


JOINS = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "maximum": torch.maximum}


@part("join")
class Join(Part):
    """Two values of one shape, element by element."""

    ranks = ANY

    def make(self, shape: Shape, other: Shape, *, how: str) -> None:
        self.how = how

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"how": choices.of(("add", "mul", "add", "sub", "maximum"))}

    @classmethod
    def partners(cls, shape: Shape, others: Mapping[int, Shape]) -> list[int]:
        return [at for at, other in others.items() if other == shape]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return JOINS[self.how](x, y)


@part("cat")
class Cat(Part):
    """The channels of two values side by side."""

    ranks = ANY

    def make(self, shape: Shape, other: Shape) -> None:
        self.axis = channel_axis(len(shape))

    @classmethod
    def partners(cls, shape: Shape, others: Mapping[int, Shape]) -> list[int]:
        return [at for at, other in others.items() if _side_by_side(shape, other)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, y), dim=self.axis)


def _side_by_side(shape: Shape, other: Shape) -> bool:
    axis = channel_axis(len(shape))
    around = [(*s[:axis], *s[axis + 1 :]) for s in (shape, other)]
    return len(shape) == len(other) and around[0] == around[1] and channels(shape) + channels(other) <= 24


@part("modulate")
class Modulate(Part):
    """A vector scales or shifts the channels of an image, or of tokens; through a layer, unless it has as many."""

    ranks = (IMAGE, TOKENS)

    def make(self, shape: Shape, other: Shape, *, how: str) -> None:
        self.how = how
        same = channels(shape) == channels(other)
        self.layer = nn.Identity() if same else nn.Linear(channels(other), channels(shape))

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"how": choices.of(("add", "mul"))}

    @classmethod
    def partners(cls, shape: Shape, others: Mapping[int, Shape]) -> list[int]:
        return [at for at, other in others.items() if len(other) == VECTOR]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.layer(y)
        return JOINS[self.how](x, y[:, :, None, None] if x.ndim == IMAGE else y[:, None])
