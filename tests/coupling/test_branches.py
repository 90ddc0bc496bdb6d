"""Which residual branches can be closed, and which only look like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from examples.networks import EDSR, resnet20
from hyperprune import hyperize
from hyperprune.coupling import Branch, CouplingMap

IMAGE = torch.randn(1, 3, 32, 32)


def branches(model: nn.Module, x: Tensor = IMAGE) -> tuple[Branch, ...]:
    return hyperize(model.eval(), x).coupling.branches


class Around(nn.Module):
    """A layer, two more that may be closed, and a join that the test chooses."""

    def __init__(self, join: Callable[[Tensor, Tensor, nn.Module], Tensor], stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Conv2d(6, 5, 3, padding=1, stride=stride)
        self.two = nn.Conv2d(5, 6, 3, padding=1)
        self.side = nn.Conv2d(6, 6, 1, stride=stride)
        self.extra = nn.Conv2d(5, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        inner = self.one(x).relu()
        return self.head(self.join(x, inner, self))


OPEN: dict[str, Callable[[Tensor, Tensor, nn.Module], Tensor]] = {
    "added": lambda x, inner, m: x + m.two(inner),  # type: ignore[operator]
    "added the other way round": lambda x, inner, m: m.two(inner) + x,  # type: ignore[operator]
    "added in place": lambda x, inner, m: m.two(inner).add_(x),  # type: ignore[operator]
    "scaled on the way": lambda x, inner, m: x + 0.5 * m.two(inner),  # type: ignore[operator]
    "beside another layer": lambda x, inner, m: m.side(x) + m.two(inner),  # type: ignore[operator]
}
SHUT: dict[str, Callable[[Tensor, Tensor, nn.Module], Tensor]] = {
    "the trunk": lambda x, inner, m: m.two(inner),  # type: ignore[operator]
    "multiplied": lambda x, inner, m: x * m.two(inner),  # type: ignore[operator]
    "concatenated": lambda x, inner, m: torch.cat([x, m.two(inner)], 1)[:, 3:9],  # type: ignore[operator]
    "read by two layers": lambda x, inner, m: x + m.two(inner) + m.extra(inner),  # type: ignore[operator]
    "added to itself": lambda x, inner, m: (y := m.two(inner)) + y,  # type: ignore[operator]
    "added to a constant": lambda x, inner, m: m.two(inner) + torch.ones(1, 6, 32, 32),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", OPEN)
def test_a_branch_that_is_added_can_be_closed(name: str) -> None:
    (branch,) = branches(Around(OPEN[name]))
    assert (branch.name, branch.first, branch.within, branch.axis) == ("two", ("one",), (), 1)


@pytest.mark.parametrize("name", SHUT)
def test_what_is_no_branch_stays(name: str) -> None:
    assert branches(Around(SHUT[name])) == ()


def test_a_branch_that_changes_the_image_size_stays() -> None:
    assert branches(Around(OPEN["beside another layer"], stride=2)) == ()


@pytest.mark.parametrize(
    ("build", "x", "expected"),
    [
        (resnet20, IMAGE, 7),  # nine blocks, two of them with a stride
        (lambda: torchvision.models.resnet50(), IMAGE, 13),
        (lambda: torchvision.models.mobilenet_v2(), IMAGE, 10),
        (lambda: timm.create_model("convnext_atto"), IMAGE, 12),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3), IMAGE, 3),  # attention stays
        (lambda: EDSR(channels=8, blocks=3), torch.rand(1, 3, 8, 8), 3),
        (lambda: torchvision.models.vgg11(), IMAGE, 0),
        (lambda: torchvision.models.DenseNet(8, (2, 2), 8), IMAGE, 0),
    ],
    ids=["resnet20", "resnet50", "mobilenet_v2", "convnext", "vit", "edsr", "vgg", "densenet"],
)
def test_known_networks(build: Callable[[], nn.Module], x: Tensor, expected: int) -> None:
    assert len(branches(build(), x)) == expected


def test_squeeze_and_excite_goes_with_its_branch() -> None:
    found = branches(timm.create_model("efficientnet_b0"))
    assert all(any("se.conv_reduce" in path for path in branch.within) for branch in found)
    assert len(found) == 9


def test_no_group_belongs_to_two_branches() -> None:
    found = branches(torchvision.models.mobilenet_v2())
    groups = [group for branch in found for group in branch.groups]
    assert len(groups) == len(set(groups))


def test_branches_survive_json() -> None:
    coupling = hyperize(resnet20().eval(), IMAGE).coupling
    assert CouplingMap.from_json(coupling.to_json()).branches == coupling.branches != ()
