"""Whole numbers that forward() takes from tensors of constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyperprune import export_pruned, hyperize
from hyperprune.errors import TraceError
from hyperprune.trace.constants import constants_known


def turned(y: Tensor) -> Tensor:
    """Turn all axes round and back again, by the order of axes that torch's documentation recommends."""
    return y.permute(*torch.arange(y.ndim - 1, -1, -1)).relu().permute(3, 2, 1, 0)


def centred(y: Tensor) -> Tensor:
    """Take the mean over axes that a tensor lists (Asteroid's norms)."""
    return y - y.mean(dim=torch.arange(1, y.ndim).tolist()[1:], keepdim=True)


def swapped(y: Tensor) -> Tensor:
    """Put channels first and undo it by sorting (CompressAI's entropy bottleneck)."""
    order = torch.cat((torch.tensor([1, 0]), torch.arange(2, y.ndim)))
    return y.permute(*order).relu().permute(*torch.argsort(order))


def flattened(y: Tensor) -> Tensor:
    """Flatten space to a number that a tensor holds."""
    return y.reshape(y.shape[0], y.shape[1], torch.tensor(y.shape)[2:].prod()).relu().view_as(y)


def branched(y: Tensor) -> Tensor:
    """Branch on numbers that are written into a tensor of zeros."""
    numbers = torch.zeros(4, dtype=torch.long)
    numbers[1] = 2
    numbers[0] = int(numbers[1]) + 1
    return y.relu() if numbers.sum() > 4 else y


def cut(y: Tensor) -> Tensor:
    """Cut at a number that torch.export takes for one of the input's."""
    return y[..., : torch.tensor(y.shape[2:]).min().item()]


class Between(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize("between", [turned, centred, swapped, flattened, branched, cut])
def test_numbers_from_tensors_of_constants_are_no_obstacle(between: Callable[[Tensor], Tensor]) -> None:
    hyper = hyperize(Between(between), torch.randn(2, 3, 4, 5))
    assert [group.size for group in hyper.coupling.groups] == [8]
    hyper.bank.keep_(torch.arange(8) < 3)
    assert export_pruned(hyper).a.out_channels == 3


def drawn(y: Tensor) -> Tensor:
    """Multiply by a random number."""
    return y * torch.randint(1, 3, ()).item()


def overwritten(y: Tensor) -> Tensor:
    """Branch on a number that the input replaced."""
    numbers = torch.zeros(2, dtype=torch.long)
    numbers[0] = y.sum().long()
    return y.relu() if numbers.sum() > 4 else y


@pytest.mark.parametrize("between", [overwritten, lambda y: y if y.sum() > 0 else -y])
def test_numbers_that_inputs_decide_are_refused_as_ever(between: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match="branches on the values of its input"):
        hyperize(Between(between), torch.randn(2, 3, 4, 5))


def test_a_number_that_is_drawn_is_none_of_a_constant() -> None:
    with constants_known():
        graph = torch.export.export(Between(drawn), (torch.randn(2, 3, 4, 5),), strict=False).graph
    assert any(node.name.startswith("item") for node in graph.nodes)


def test_tensors_outside_a_trace_are_as_they_were() -> None:
    with constants_known():
        order = torch.arange(3)
        order[0] = 5
        assert order.tolist() == [5, 1, 2]
        assert torch.equal(torch.zeros(order[2], 1), torch.zeros(2, 1))
