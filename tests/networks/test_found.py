"""Networks that once went wrong, as small as they could be made. Each was found by ``make nightly``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import hyperize
from hyperprune.export import export_with_proof
from tests.models import Net
from tests.networks.check import check
from tests.networks.description import Description, Step
from tests.networks.network import build
from tests.networks.sequences import OneHead

IMAGE, TOKENS = (2, 3, 4, 4), (2, 4, 5)
CONV = {"kernel": 3, "groups": 1, "stride": 1, "dilation": 1, "bias": True}


def image(*steps: Step, **options: Any) -> Description:
    """A network whose stem makes eight channels of an image."""
    return Description((IMAGE,), (Step("conv", (0,), {"out": 8, **CONV}), *steps), **options)


def tokens(*steps: Step, out: int = 8, **options: Any) -> Description:
    """A network whose stem makes eight channels of tokens."""
    return Description((TOKENS,), (Step("linear", (0,), {"out": out, "bias": True}), *steps), **options)


def multihead(at: int, heads: int, weights: bool) -> Step:
    return Step("multihead", (at,), {"heads": heads, "weights": weights, "shortcut": True})


ATTENTION = {"heads": 1, "fused": False, "joint": True, "shortcut": True}
FOUND = {
    "torch's attention with one head, written out: its number of heads became 0, and the process died": tokens(
        multihead(1, 1, weights=True), out=3, attention="width"
    ),
    "torch's attention used twice: its query was rescaled twice": tokens(
        multihead(1, 2, weights=True), Step("again", (2,), {"step": 1}), attention="width"
    ),
    "two products between activations, one scaled by a stored number, one by its width": tokens(
        Step("one_head", (1,), {"inner": 6}), Step("attention", (2,), ATTENTION)
    ),
    "a gated linear unit as torch's own layer": image(Step("half_gates_half", (1,), {"layer": True})),
    "tokens that are a transposed image, without gradients: another kernel, and the last bit differed": image(
        Step("patches", (1,), {"out": 8}), Step("linear", (2,), {"out": 8, "bias": True})
    ),
    "a norm over two channels hid that a product is scaled by its width": tokens(
        Step("chunk", (1,), {"into": 3}),
        Step("attention", (4,), {"heads": 1, "fused": False, "joint": False, "shortcut": False}),
        Step("norm", (5,), {"kind": "layer"}),
        out=6,
    ),
    "a split used twice, whose parts change differently": Description(
        inputs=((1, 4, 5), (1, 5)),
        steps=(
            Step("linear", (0,), {"out": 8, "bias": True}),
            Step("linear", (1,), {"out": 8, "bias": True}),
            Step("norm", (3,), {"kind": "batch"}),
            Step("split", (2,), {"sizes": (6, 2)}),
            Step("norm", (5,), {"kind": "layer"}),
            Step("norm", (4,), {"kind": "batch"}),
            Step("cat", (6, 7), {}),
            Step("norm", (9,), {"kind": "layer"}),
            Step("again", (10,), {"step": 3}),
        ),
        ends="separate",
        seed=701,
    ),
    "half of a split may lose all its channels, and resizing refuses to run without any": image(
        Step("split", (1,), {"sizes": (4, 4)}), Step("resize", (3,), {"mode": "bicubic"})
    ),
    "the same, and padding": image(Step("split", (1,), {"sizes": (4, 4)}), Step("pad", (3,), {"mode": "reflect"})),
    "the same, and pooling": image(Step("split", (1,), {"sizes": (4, 4)}), Step("pool", (3,), {"kind": "wide"})),
    "the same with torch's attention": image(
        Step("to_tokens", (1,)), multihead(2, 2, weights=False), attention="width"
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_once_went_wrong_is_exact(name: str) -> None:
    assert check(FOUND[name]).rejected == ""


def test_a_gated_linear_unit_ties_its_halves() -> None:
    parts = {"a": nn.Conv2d(3, 12, 1), "glu": nn.GLU(1), "out": nn.Conv2d(6, 2, 1)}
    hyper = hyperize(Net(parts, lambda net, x: net.out(net.glu(net.a(x)))), torch.randn(IMAGE))
    (group,) = hyper.coupling.groups
    assert (group.size, group.width) == (6, 2)
    hyper.bank.remove_(torch.arange(6) < 2)
    slim, proof = export_with_proof(hyper)
    assert (slim.a.out_channels, slim.out.in_channels) == (8, 4)
    assert proof.relative_error < 1e-6


class SplitsAlong(nn.Module):
    """Splits along an axis whose number is that of a part's channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.axis, self.sizes = 2, [3, 2, 3]
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat(torch.split(self.embed(x), self.sizes, self.axis)[::-1], self.axis))


def test_the_number_of_an_axis_is_no_size() -> None:
    hyper = hyperize(SplitsAlong(), torch.randn(TOKENS))
    hyper.bank.remove_(torch.isin(torch.arange(8), torch.tensor([3, 4])))
    slim, proof = export_with_proof(hyper)
    assert (slim.axis, slim.sizes) == (2, [3, 0, 3])
    assert proof.relative_error < 1e-6


BARE = {"instance": nn.InstanceNorm2d, "batch": lambda n: nn.BatchNorm2d(n, affine=False, track_running_stats=False)}


@pytest.mark.parametrize("kind", BARE.values(), ids=BARE)
def test_a_norm_without_tensors_knows_its_new_width(kind: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    hyper = hyperize(model, torch.randn(IMAGE))
    hyper.bank.remove_(torch.arange(8) < 3)
    slim, _ = export_with_proof(hyper)
    assert (slim[1].num_features, model[1].num_features) == (5, 8)


class Pair(nn.Module):
    """Two heads: one divides by a stored number, the other by the root of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.other = nn.Linear(5, 8), OneHead((2, 4, 8), inner=6), Rooted()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(self.embed(x))))


class Rooted(OneHead):
    """As ``OneHead``, but the number it divides by is read off the query."""

    def __init__(self) -> None:
        super().__init__((2, 4, 8), inner=6)

    def forward(self, x: Tensor) -> Tensor:
        query = self.q(x)
        attention = (query @ self.k(x).transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
        return x + attention @ self.v(x)


def test_products_that_scale_in_different_ways_all_stay_prunable() -> None:
    hyper = hyperize(Pair(), torch.randn(TOKENS))
    assert {"one.q", "other.q"} <= {group.name for group in hyper.coupling.groups}
    rooted = {product.tensors[0]: product.rooted for product in hyper.coupling.products}
    assert rooted == {"one.q.weight": False, "other.q.weight": True}


def test_without_gradients_a_generated_weight_still_says_that_it_needs_one() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    hyper = hyperize(model, torch.randn(2, 5))
    with torch.no_grad():
        assert hyper.model[2].weight.requires_grad
        assert not hyper(torch.randn(2, 5)).requires_grad
    hyper.model[2].parametrizations.weight.original.requires_grad_(False)
    with torch.no_grad():
        assert not hyper.model[2].weight.requires_grad


SPLIT = Step("split", (1,), {"sizes": (4, 4)})


@pytest.mark.parametrize(
    "refuses",
    [
        Step("resize", (3,), {"mode": "bicubic"}),
        Step("pad", (3,), {"mode": "reflect"}),
        Step("pool", (3,), {"kind": "wide"}),
        Step("pool", (3,), {"kind": "average"}),
    ],
    ids=str,
)
def test_a_half_that_must_keep_a_channel_is_a_group_of_its_own(refuses: Step) -> None:
    model, inputs = build(image(SPLIT, refuses))
    hyper = hyperize(model, inputs)
    assert [group.size for group in hyper.coupling.groups if group.name.startswith("parts.0")] == [4, 4]
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    keep[[group.start + at for group in hyper.coupling.groups for at in range(1, group.size)]] = False
    hyper.bank.keep_(keep)
    export_with_proof(hyper)


def test_a_half_that_may_become_empty_shares_the_group_of_the_other() -> None:
    model, inputs = build(image(SPLIT, Step("activation", (3,), {"kind": "relu"})))
    hyper = hyperize(model, inputs)
    assert [group.size for group in hyper.coupling.groups if group.name.startswith("parts.0")] == [8]
