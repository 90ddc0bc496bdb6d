"""Tables that modules hold as plain attributes: positions in sines and cosines, scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, export_pruned, hyperize, load_pruned, prune, save_pruned
from hyperprune.errors import NothingPrunableError
from hyperprune.hyper import proof_in_float64
from hyperprune.tables import attributes_of, tables_of

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


class SetByMadeUpName(Positions):
    def __init__(self) -> None:
        super().__init__()
        self.positions_6 = self.positions
        del self.positions

    def forward(self, x: Tensor) -> Tensor:
        name = f"positions_{x.shape[1]}"
        if not hasattr(self, name):
            setattr(self, f"positions_{x.shape[1]}", torch.sin(torch.arange(x.shape[1] * WIDTH).view(-1, WIDTH)))
        return self.head((self.embed(x) + getattr(self, name)).relu())


class SetByAnyName(Positions):
    def remember(self, name: str, value: Tensor) -> None:
        """May set anything."""
        setattr(self, name, value)


class SetThroughProperty(Positions):
    @property
    def table(self) -> Tensor:
        return self.positions

    @table.setter
    def table(self, value: Tensor) -> None:
        self.positions = value


class SetByHook(Positions):
    def __init__(self) -> None:
        super().__init__()

        def remember(module: nn.Module, args: Any, output: Tensor) -> None:
            self.positions = torch.zeros(TOKENS, WIDTH)

        self.remember = remember


class ReadThroughVars(Positions):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x) + vars(self)["positions"]).relu())


class WithDefault(Positions):
    positions: Tensor | None = None


class SetFromOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x) * self.positions).relu())


def set_from_outside() -> nn.Module:
    model = SetFromOutside()
    model.positions = torch.ones(WIDTH)
    return model


CACHES = [
    *(Cached, SetByName, SetByMadeUpName, SetByAnyName, SetThroughProperty, SetByHook, ReadThroughVars, WithDefault),
    set_from_outside,
]


@pytest.mark.parametrize("make", CACHES)
def test_what_other_code_may_set_is_no_table(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert not tables_of(model)
    with pytest.raises(NothingPrunableError, match="meets a constant"):
        hyperize(model, torch.randn(2, TOKENS, 3))


class Described(Positions):
    def describe(self) -> dict[str, Any]:
        """Show what there is."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def mark(self) -> None:
        setattr(self, "o", "s")  # noqa: B010


def test_code_that_shows_attributes_or_sets_others_does_not_make_a_table_a_cache() -> None:
    assert list(tables_of(Described())) == ["positions"]


def test_a_table_of_a_module_known_by_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Positions()])
            self.first = self.blocks[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    hyper = hyperize(Twice(), torch.randn(2, TOKENS, 3))
    hyper.bank.remove_(torch.arange(WIDTH) < 3)
    assert export_pruned(hyper).first.positions.shape == (TOKENS, WIDTH - 3)


def test_a_file_says_what_is_to_be_sliced_whoever_sets_it() -> None:
    model = nn.ModuleDict({"part": set_from_outside()})
    assert attributes_of(model, ["part.positions", "part.nothing", "other.positions"]) == ["part.positions"]


def test_proofs_in_float64_take_tables_along() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.out = torch.randn(3, 4), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x @ self.table).relu())

    hyper = hyperize(Projected(), torch.randn(4, 3))
    hyper.bank.remove_(torch.arange(WIDTH) < 3)
    proof = proof_in_float64(hyper)
    assert proof is not None
    assert proof.holds
    assert hyper.model.table.dtype == torch.float32


def test_a_class_may_hold_a_default(tmp_path: Path) -> None:
    class Pixels(nn.Module):
        mean: Tensor = torch.zeros(3)

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.a, self.out = torch.rand(3), nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x - self.mean).relu())

    torch.manual_seed(0)
    model, x = Pixels(), torch.randn(2, 3)
    slim = prune(model, x, Budget(macs=0.5))
    save_pruned(slim, tmp_path / "slim.safetensors")
    assert torch.equal(load_pruned(model, tmp_path / "slim.safetensors")(x), slim(x))


def test_a_table_that_loses_nothing_stays_an_attribute() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
            self.step = torch.full((1, 1, 1), 1e-4)  # stays float32 under half()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) * torch.cos(torch.arange(x.shape[1]).view(1, -1, 1) * self.step).to(x))

    hyper = hyperize(Turned(), torch.randn(2, TOKENS, 3))
    hyper.bank.remove_(torch.arange(WIDTH) < 3)
    for network in (hyper.model, export_pruned(hyper)):
        assert "step" in vars(network)
        assert network.bfloat16().step.dtype == torch.float32


@pytest.mark.parametrize(
    "mix",
    [
        lambda table, x: table @ x,
        lambda table, x: (x.mT @ table).mT,
        lambda table, x: torch.einsum("nm,bmc->bnc", table, x),
    ],
)
@pytest.mark.parametrize("registered", [True, False])
def test_a_table_mixes_nodes_within_each_channel(mix: Callable[..., Tensor], registered: bool) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
            if registered:
                self.register_buffer("links", torch.rand(TOKENS, TOKENS))
            else:
                self.links = torch.rand(TOKENS, TOKENS)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(mix(self.links, self.b(mix(self.links, self.a(x)).relu())).relu())

    hyper = hyperize(Graph(), torch.randn(2, TOKENS, 3))
    assert [(group.name, group.size) for group in hyper.coupling.groups] == [("a", WIDTH), ("b", WIDTH)]
    hyper.bank.remove_(torch.arange(2 * WIDTH) % 3 == 0)
    export_pruned(hyper)  # proves that it is equal


@pytest.mark.parametrize("value", [torch.arange(3), torch.tensor(0.5), torch.ones(3, requires_grad=True), [1.0], None])
def test_other_attributes_stay(value: Any) -> None:
    class Noted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.note = value

    assert not tables_of(Noted())
