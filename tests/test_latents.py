"""The latent bank: gates, removal for good, and readers that follow a copied bank."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperprune.coupling import STAYS, Group
from hyperprune.errors import ModelError
from hyperprune.latents import LatentBank, RunSelection, Selection, select


@pytest.fixture
def bank() -> LatentBank:
    return LatentBank((Group("a", 0, 3, 1, ("a",), ("b",), ()), Group("b", 3, 2, 1, ("b",), ("c",), ())))


def mask(*units: int, size: int = 5) -> Tensor:
    return torch.tensor([unit in units for unit in range(size)])


def test_all_gates_start_at_one(bank: LatentBank) -> None:
    assert bank.gates().tolist() == [1.0] * 5
    assert bank.living().all()


def test_a_removed_unit_stays_at_zero_whatever_happens_to_its_latent(bank: LatentBank) -> None:
    bank.remove_(mask(1, 4))
    with torch.no_grad():
        bank.latents.fill_(7.0)
    assert bank.gates().tolist() == [7.0, 0.0, 7.0, 7.0, 0.0]
    assert bank.living().tolist() == [True, False, True, True, False]


def test_removing_adds_up(bank: LatentBank) -> None:
    bank.remove_(mask(0))
    bank.remove_(mask(2))
    assert bank.living().tolist() == [False, True, False, True, True]


def test_a_removed_unit_gets_no_gradient(bank: LatentBank) -> None:
    bank.remove_(mask(1))
    bank.gates().sum().backward()
    assert bank.latents.grad is not None
    assert bank.latents.grad.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]


def test_keeping_revives_at_one_what_had_shrunk_to_zero_and_leaves_the_others(bank: LatentBank) -> None:
    with torch.no_grad():
        bank.latents.copy_(torch.tensor([0.0, 0.5, 0.0, -0.25, 2.0]))
    bank.remove_(mask(1))
    bank.keep_(mask(0, 1, 3))
    assert bank.gates().tolist() == [1.0, 0.5, 0.0, -0.25, 0.0]
    assert bank.living().tolist() == [True, True, False, True, False]


def test_a_groups_latents_are_a_view_under_its_name(bank: LatentBank) -> None:
    with torch.no_grad():
        bank.latent("b").fill_(3.0)
    assert bank.latents.tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]
    with pytest.raises(KeyError, match=r"no group 'c'; there are: a, b"):
        bank.latent("c")


@pytest.mark.parametrize(
    ("units", "kind"), [((1, 2, 3), RunSelection), ((3, 1), Selection), ((0, 0, 1), Selection), ((STAYS, 2), Selection)]
)
def test_a_reader_returns_the_gate_at_each_position_and_one_where_a_channel_stays(
    bank: LatentBank, units: tuple[int, ...], kind: type
) -> None:
    with torch.no_grad():
        bank.latents.copy_(torch.arange(2.0, 7.0))
    bank.remove_(mask(2))
    reader = select(bank, units)
    gates = [2.0, 3.0, 0.0, 5.0, 6.0]
    assert isinstance(reader, kind)
    assert reader().tolist() == [1.0 if unit == STAYS else gates[unit] for unit in units]


@pytest.mark.parametrize("units", [(1, 2, 3), (3, 1, STAYS)])
def test_a_reader_owns_no_state_and_follows_a_copied_bank(bank: LatentBank, units: tuple[int, ...]) -> None:
    reader = select(bank, units)
    assert dict(reader.state_dict()) == {}
    assert list(reader.parameters()) == []
    both = torch.nn.ModuleDict({"bank": bank, "reader": reader})
    copied = copy.deepcopy(both)
    copied["bank"].remove_(torch.ones(5, dtype=torch.bool))
    assert copied["reader"]()[0] == 0
    assert reader()[0] == 1


@pytest.mark.parametrize("mask", [torch.zeros(7), torch.zeros(3, dtype=torch.bool), [True] * 7], ids=str)
def test_a_mask_of_another_kind_is_refused(mask: Any) -> None:
    bank = LatentBank((Group("a", 0, 7, 1, ("a",), ("b",), ()),))
    for use in (bank.keep_, bank.remove_):
        with pytest.raises(ModelError, match=r"a bool tensor of shape \(7,\) is needed, one entry per unit"):
            use(mask)
    assert bool(bank.living().all())
