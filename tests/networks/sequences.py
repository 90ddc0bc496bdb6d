"""Parts that read tokens or vectors: linear layers, attention in all its forms, and ways back to images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.part import TOKENS, VECTOR, Choices, Options, Part, Shape, channels, part

WIDTHS = (8, 12, 6, 10)


@part("linear")
class Linear(Part):
    """A linear layer."""

    ranks = (TOKENS, VECTOR)

    def make(self, shape: Shape, *, out: int, bias: bool) -> None:
        self.layer = nn.Linear(channels(shape), out, bias=bias)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        same = [channels(shape)] if channels(shape) <= 16 else []
        return {"out": choices.of([*same, *WIDTHS]), "bias": choices.of((True, False))}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@part("conv_1d")
class ConvOverTokens(Part):
    """A convolution along the tokens."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, out: int, groups: int) -> None:
        self.layer = nn.Conv1d(shape[2], out, 3, padding=1, groups=groups)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        out = choices.of((shape[2], *WIDTHS))
        return {"out": out, "groups": choices.of([1, *(g for g in (2, shape[2]) if shape[2] % g == out % g == 0)])}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


@part("attention")
class Attention(Part):
    """Attention of tokens to each other: fused or written out, with joint or separate projections."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, heads: int, fused: bool, joint: bool, shortcut: bool) -> None:
        width = shape[2]
        self.heads, self.dim, self.inner = heads, width // heads, width
        self.fused, self.joint, self.shortcut = fused, joint, shortcut
        if joint:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = [heads for heads in (2, 1, 3, 4) if shape[2] % heads == 0 and shape[2] // heads > 1]
        return {
            "heads": choices.of(fits),
            "fused": choices.of((True, False)),
            "joint": choices.of((True, False)),
            "shortcut": choices.of((True, False)),
        } if fits and shape[2] <= 16 else None  # fmt: skip

    def projected(self, x: Tensor) -> Any:
        """Return query, key and value, ``[batch, heads, tokens, channels]``."""
        batch, tokens, _ = x.shape
        if self.joint:
            return self.qkv(x).reshape(batch, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        return tuple(
            layer(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.dim**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.inner))
        return x + y if self.shortcut else y


@part("one_head")
class OneHead(Part):
    """Attention without heads, of tokens to tokens, inside a width of its own."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, inner: int) -> None:
        self.q, self.k = nn.Linear(shape[2], inner), nn.Linear(shape[2], inner)
        self.v = nn.Linear(shape[2], shape[2])
        self.scale = inner**-0.5

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        return {"inner": choices.of((6, 4, 8))}

    def forward(self, x: Tensor) -> Tensor:
        attention = (self.q(x) @ self.k(x).transpose(1, 2) * self.scale).softmax(-1)
        return x + attention @ self.v(x)


@part("multihead")
class Multihead(Part):
    """torch's own attention."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, heads: int, weights: bool, shortcut: bool) -> None:
        self.layer = nn.MultiheadAttention(shape[2], heads, batch_first=True)
        self.weights, self.shortcut = weights, shortcut

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        fits = [heads for heads in (2, 3, 4, 1) if shape[2] % heads == 0 and shape[2] // heads > 1]
        options = {"heads": choices.of(fits or [1]), "weights": choices.of((False, True))}
        return options | {"shortcut": choices.of((True, False))} if fits and shape[2] <= 16 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x, x, x, need_weights=self.weights)[0]
        return x + y if self.shortcut else y


@part("class_token")
class ClassToken(Part):
    """One more token, in front: a parameter."""

    ranks = (TOKENS,)

    def make(self, shape: Shape) -> None:
        self.token = nn.Parameter(torch.randn(1, 1, shape[2]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(len(x), -1, -1), x), dim=1)


@part("summed_up")
class SummedUp(Part):
    """Tokens become one vector."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, how: str) -> None:
        self.how = how

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options:
        flat = ["flat"] if shape[1] * shape[2] <= 128 else []
        return {"how": choices.of(["mean", "first", *flat])}

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "first":
            return x[:, 0]
        return x.flatten(1) if self.how == "flat" else x.mean(1)


@part("to_image")
class ToImage(Part):
    """Tokens become an image again; its height stands in an attribute, its channels are read off."""

    ranks = (TOKENS,)

    def make(self, shape: Shape, *, side: int) -> None:
        self.grid_side = side

    @classmethod
    def options(cls, shape: Shape, choices: Choices) -> Options | None:
        side = round(shape[1] ** 0.5)
        return {"side": side} if side * side == shape[1] else None

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        return x.transpose(1, 2).reshape(batch, channels, self.grid_side, self.grid_side)


@part("blown_up")
class BlownUp(Part):
    """A vector becomes an image of two by two pixels."""

    ranks = (VECTOR,)

    def make(self, shape: Shape) -> None:
        self.grid_side = 2

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None, None].expand(-1, -1, self.grid_side, self.grid_side)
