"""Parts that read images: convolutions, pooling, padding, resizing, and what moves channels into space and back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.part import IMAGE, Choices, Options, Part, Shape, divisors, part

WIDTHS = (6, 8, 12, 4, 10)


@part("conv")
class Conv(Part):
    """A convolution: plain, strided, dilated, grouped, with or without a bias."""

    def make(self, shape: Shape, *, out: int, kernel: int, stride: int, dilation: int, groups: int, bias: bool) -> None:
        self.layer = nn.Conv2d(
            shape[1], out, kernel, stride, dilation * (kernel // 2), dilation=dilation, groups=groups, bias=bias
        )

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        out = choices.of((shape[1], *WIDTHS))
        kernel = choices.of((1, 3))
        shared = [g for g in (2, 3, 4) if shape[1] % g == 0 and out % g == 0]
        return {
            "out": out,
            "kernel": kernel,
            "groups": choices.of([1, 1, *shared]),
            "stride": choices.of((1, 1, 2)) if shape[2] > 2 else 1,
            "dilation": choices.of((1, 1, 2)) if kernel > 1 else 1,
            "bias": choices.of((True, False)),
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("depthwise")
class Depthwise(Part):
    """A convolution of each channel by itself, into one or two channels."""

    def make(self, shape: Shape, *, multiplier: int, kernel: int) -> None:
        self.layer = nn.Conv2d(shape[1], multiplier * shape[1], kernel, padding=kernel // 2, groups=shape[1])

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"multiplier": choices.of((1, 1, 2)) if shape[1] <= 12 else 1, "kernel": choices.of((3, 1))}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("transposed")
class Transposed(Part):
    """A transposed convolution that doubles height and width."""

    def make(self, shape: Shape, *, out: int, groups: int) -> None:
        self.layer = nn.ConvTranspose2d(shape[1], out, 2, stride=2, groups=groups)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        if shape[2] > 4:
            return None
        out = choices.of((shape[1], *WIDTHS))
        return {"out": out, "groups": choices.of([1, 1, *(g for g in (2, 3) if shape[1] % g == out % g == 0)])}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


POOLS = {
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(2),
    "wide": lambda: nn.MaxPool2d(3, stride=1, padding=1),
}


@part("pool")
class Pool(Part):
    """Pooling over space."""

    def make(self, shape: Shape, *, kind: str) -> None:
        self.layer = POOLS[kind]()

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        return {"kind": choices.of(list(POOLS))} if shape[2] > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("resize")
class Resize(Part):
    """Twice as high and wide."""

    def make(self, shape: Shape, *, mode: str) -> None:
        self.mode = mode

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        return {"mode": choices.of(("nearest", "bilinear", "bicubic"))} if shape[2] <= 4 else None

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.mode)


@part("pad")
class Pad(Part):
    """A border of one pixel on two sides."""

    def make(self, shape: Shape, *, mode: str) -> None:
        self.mode = mode

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        return {"mode": choices.of(("constant", "reflect", "replicate"))} if 2 <= shape[2] < 8 else None

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0, 0, 1), mode=self.mode)


@part("pixel_shuffle")
class PixelShuffle(Part):
    """Four channels become one, twice as high and wide; or the other way round."""

    def make(self, shape: Shape, *, up: bool) -> None:
        self.layer = nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = [*([True] if shape[1] % 4 == 0 and shape[2] <= 4 else ())]
        fits += [False] if shape[1] <= 6 and shape[2] % 2 == shape[3] % 2 == 0 else []
        return {"up": choices.of(fits)} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("shuffle")
class Shuffle(Part):
    """A channel shuffle: torch's own layer, or written out with the number of groups as an attribute."""

    def make(self, shape: Shape, *, groups: int, layer: bool) -> None:
        self.groups = groups
        self.layer = nn.ChannelShuffle(groups) if layer else None

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = divisors(shape[1], 2, 3, 4)
        return {"groups": choices.of(fits), "layer": choices.of((False, True))} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is not None:
            return self.layer(x)
        batch, channels, height, width = x.shape
        rows = x.view(batch, self.groups, channels // self.groups, height, width)
        return rows.transpose(1, 2).reshape(batch, channels, height, width)


@part("squeeze_excite")
class SqueezeExcite(Part):
    """Scales each channel by a number computed from all of them."""

    def make(self, shape: Shape, *, inner: int) -> None:
        self.down, self.up = nn.Conv2d(shape[1], inner, 1), nn.Conv2d(inner, shape[1], 1)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"inner": choices.of((2, 4, 5))}

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.gelu(self.down(x.mean((2, 3), keepdim=True)))))


@part("spatial_gate")
class SpatialGate(Part):
    """Scales each place by a number computed from all of its channels."""

    def make(self, shape: Shape) -> None:
        self.look = nn.Conv2d(shape[1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.look(x))


@part("to_tokens")
class ToTokens(Part):
    """Every place becomes a token."""

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        return {} if shape[2] * shape[3] <= 16 else None

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


@part("patches")
class Patches(Part):
    """Patches become tokens, as a vision transformer begins."""

    def make(self, shape: Shape, *, out: int) -> None:
        self.layer = nn.Conv2d(shape[1], out, 2, stride=2)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        return {"out": choices.of((8, 12, 6))} if shape[2] >= 4 else None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(2).transpose(1, 2)


@part("pooled")
class Pooled(Part):
    """An image becomes a vector."""

    def make(self, shape: Shape, *, how: str) -> None:
        self.how = how
        self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        flat = ["flat"] if shape[1] * shape[2] * shape[3] <= 128 else []
        return {"how": choices.of(["mean", "layer", "max", *flat])}

    def forward(self, x: Tensor) -> Any:
        if self.how == "layer":
            return self.layer(x)
        if self.how == "max":
            return x.amax((2, 3))
        return x.flatten(1) if self.how == "flat" else x.mean((2, 3))


@part("across")
class AcrossSpace(Part):
    """A linear layer over the places of each channel, as in an MLP mixer."""

    ranks = (IMAGE,)

    def make(self, shape: Shape) -> None:
        self.mix = nn.Linear(shape[3], shape[3])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)
