"""Tables that modules hold as plain attributes: positions in sines and cosines, scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, hyperize, load_pruned, prune, save_pruned
from hyperprune.errors import NothingPrunableError
from hyperprune.tables import tables_to_buffers_

TOKENS, WIDTH = 6, 8


class Positions(nn.Module):
    """Adds a table made once to its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.positions = torch.sin(torch.arange(TOKENS * WIDTH).view(TOKENS, WIDTH))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x) + self.positions.to(x)).relu())


class Cached(Positions):
    """Makes its table anew where there are more tokens."""

    def table(self, tokens: int) -> Tensor:
        if tokens > len(self.positions):
            self.positions = torch.sin(torch.arange(tokens * WIDTH).view(tokens, WIDTH))
        return self.positions[:tokens]

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x) + self.table(x.shape[1])).relu())


class SetByName(Cached):
    def table(self, tokens: int) -> Tensor:
        if tokens > len(self.positions):
            setattr(self, "positions", torch.sin(torch.arange(tokens * WIDTH).view(tokens, WIDTH)))  # noqa: B010
        return self.positions[:tokens]


def test_a_stream_that_meets_a_table_loses_channels(tmp_path: Path) -> None:
    model, x = Positions(), torch.randn(2, TOKENS, 3)
    assert [group.size for group in hyperize(model, x).coupling.groups] == [WIDTH]
    slim = prune(model, x, Budget(macs=0.5))
    assert slim.positions.shape == (TOKENS, WIDTH // 2)
    assert type(slim) is Positions
    assert "positions" not in slim.state_dict()

    save_pruned(slim, tmp_path / "slim.safetensors")
    again = load_pruned(Positions(), tmp_path / "slim.safetensors")
    assert torch.equal(again(x), slim(x))


def test_the_users_model_keeps_its_attribute() -> None:
    model = Positions()
    before = model.positions
    hyperize(model, torch.randn(2, TOKENS, 3))
    assert vars(model)["positions"] is before
    assert not list(model.named_buffers())


@pytest.mark.parametrize("kind", [Cached, SetByName])
def test_caches_are_no_tables(kind: type[Positions]) -> None:
    model = kind()
    assert "positions" in vars(tables_to_buffers_(model))
    with pytest.raises(NothingPrunableError, match="meets a constant"):
        hyperize(model, torch.randn(2, TOKENS, 3))


@pytest.mark.parametrize("value", [torch.arange(3), torch.tensor(0.5), torch.ones(3, requires_grad=True), [1.0], None])
def test_other_attributes_stay(value: Any) -> None:
    layer = nn.Linear(2, 2)
    layer.note = value
    assert vars(tables_to_buffers_(layer))["note"] is value
