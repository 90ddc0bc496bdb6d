"""Every remedy that is named for channels that stay is tried here: with it, they can be removed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune import hyperize
from hyperprune.coupling import CouplingMap
from hyperprune.errors import NothingPrunableError
from hyperprune.labels import reasons

EXAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions, and what a function does with the eight channels between them."""

    def __init__(self, between: Callable[[Between, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        """Return two channels."""
        return self.head(self.between(self, self.stem(x).relu()))


class Both(Between):
    """The same, which hands out the channels between as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two channels, and the eight behind them."""
        inner = self.between(self, self.stem(x).relu())
        return self.head(inner), inner


class FirstOutput(nn.Module):
    """The remedy for outputs: a wrapper that leaves one out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output alone."""
        return self.inner(x)[0]


def with_buffer(between: Callable[[Between, Tensor], Tensor], kernel: Tensor) -> nn.Module:
    model = Between(between)
    model.register_buffer("kernel", kernel)
    return model


def with_parameter(between: Callable[[Between, Tensor], Tensor], kernel: Tensor) -> nn.Module:
    model = Between(between)
    model.kernel = nn.Parameter(kernel, requires_grad=False)
    return model


def as_it_is(model: Between, x: Tensor) -> Tensor:
    return x


def add_constant(model: Between, x: Tensor) -> Tensor:
    return x + torch.arange(8.0).view(1, 8, 1, 1)


def add_kernel(model: Between, x: Tensor) -> Tensor:
    return x + model.kernel


def mix(model: Between, x: Tensor) -> Tensor:
    return F.conv2d(x, model.kernel)


def noise_for_each(model: Between, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * 0


def noise_for_all(model: Between, x: Tensor) -> Tensor:
    return x + torch.randn_like(x[:, :1]) * 0


def sized_by_hand(model: Between, x: Tensor) -> Tensor:
    return F.conv2d(x, model.kernel, groups=8)


def sized_by_shape(model: Between, x: Tensor) -> Tensor:
    return F.conv2d(x, model.kernel, groups=x.shape[1])


def scaled_by_hand(model: Between, x: Tensor) -> Tensor:
    return x * sum(1 / 8 for _ in range(len(model.stem.weight)))


class TwoHeads(nn.Module):
    """Attention of two heads, a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(*sizes) for sizes in ((3, 8), (3, 8), (3, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return two channels for each token."""
        tokens = x.flatten(2).mT
        q, k, v = (part(tokens).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FourHeads(nn.Module):
    """Attention over a stream of 16 channels that is told how wide its heads are together."""

    def __init__(self, width: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.heads, self.width = 4, width

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the stream."""
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(mixed.reshape(*x.shape[:2], self.width(x)))


class Stream(nn.Module):
    """A stream with a branch of attention."""

    def __init__(self, width: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(3, 16), FourHeads(width), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return two channels for each token."""
        x = self.stem(x.flatten(2).mT)
        return self.head(x + self.branch(x))


ARANGE, MIXING, BLUR = torch.arange(8.0).view(1, 8, 1, 1), torch.eye(8)[:, :, None, None], torch.ones(8, 1, 1, 1)
hyperized = partial(hyperize, example_inputs=EXAMPLE)
CASES: dict[str, tuple[Callable[[], CouplingMap], Callable[[], CouplingMap]]] = {
    reasons.OUTPUT: (
        lambda: hyperized(Both(as_it_is)).coupling,
        lambda: hyperized(FirstOutput(Both(as_it_is))).coupling,
    ),
    reasons.CONSTANT: (
        lambda: hyperized(Between(add_constant)).coupling,
        lambda: hyperized(with_buffer(add_kernel, ARANGE)).coupling,
    ),
    reasons.FIXED: (
        lambda: hyperized(with_buffer(mix, MIXING)).coupling,
        lambda: hyperized(with_parameter(mix, MIXING)).coupling,
    ),
    reasons.RANDOM: (
        lambda: hyperized(Between(noise_for_each)).coupling,
        lambda: hyperized(Between(noise_for_all)).coupling,
    ),
    reasons.SIZE_IN_FORWARD: (
        lambda: hyperized(with_buffer(sized_by_hand, BLUR)).coupling,
        lambda: hyperized(with_buffer(sized_by_shape, BLUR)).coupling,
    ),
    reasons.ALONE: (
        lambda: hyperized(TwoHeads()).coupling,
        lambda: hyperized(TwoHeads(), attention="width").coupling,
    ),
    reasons.KEPT: (
        lambda: hyperized(Between(as_it_is), keep=["stem"]).coupling,
        lambda: hyperized(Between(as_it_is)).coupling,
    ),
}


def staying(couple: Callable[[], CouplingMap]) -> set[str]:
    """Return why the channels of the stem stay; nothing if they can be removed."""
    try:
        found = couple()
    except NothingPrunableError as error:
        return {reason for reason in reasons.REMEDIES if f"8 channels stay: {reason}" in str(error)}
    return {stays.reason for stays in found.frozen if stays.channels == 8}


@pytest.mark.parametrize("reason", CASES)
def test_what_is_said_to_help_helps(reason: str) -> None:
    before, after = CASES[reason]
    assert staying(before) == {reason}
    assert staying(after) == set()


def test_a_size_that_no_call_shows_is_called_inexact() -> None:
    """Its remedy is the one for sizes in forward()."""
    assert reasons.REMEDIES[reasons.INEXACT] == reasons.REMEDIES[reasons.SIZE_IN_FORWARD]
    assert staying(lambda: hyperized(Between(scaled_by_hand)).coupling) == {reasons.INEXACT}


def test_every_remedy_is_tried() -> None:
    assert {*CASES, reasons.INEXACT, reasons.FOLLOWS} == set(reasons.REMEDIES)


def test_channels_that_go_with_the_stream_go_alone_once_the_remedy_is_taken() -> None:
    tied, free = (hyperized(Stream(width)).coupling for width in (lambda x: x.shape[2], lambda x: -1))
    ((reason, calls),) = tied.groups[0].because
    assert (reason, [group.size for group in tied.groups]) == (reasons.FOLLOWS, [4])
    assert calls.startswith("aten.reshape.default in 'branch' (test_remedies.py:")
    assert f"tied: stem: {reason}: {calls}" in str(tied)
    assert tied.explain("branch.qkv").splitlines()[-2:] == [
        f"  Not free of each other: {reason}: {calls}.",
        f"  What helps: {reasons.REMEDIES[reason]}.",
    ]
    assert [(group.name, group.size, group.because) for group in free.groups] == [
        ("stem", 16, ()),
        ("branch.qkv", 4, ()),
    ]


def test_a_refusal_names_remedies_once() -> None:
    with pytest.raises(NothingPrunableError) as caught:
        hyperized(Between(add_constant))
    assert str(caught.value).count(f"what helps: {reasons.REMEDIES[reasons.CONSTANT]}.") == 1


def test_an_explanation_names_the_remedy() -> None:
    explained = hyperized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)), keep=["0"])
    assert explained.coupling.explain("0").endswith(f"  What helps: {reasons.REMEDIES[reasons.KEPT]}.")
