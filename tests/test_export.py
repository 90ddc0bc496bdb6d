"""Export: the user's own class, plain and slim, proved equal."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hyperprune import DHP, Budget, Distillation, HyperModel, Lean, Search, export_pruned, hyperize, prune, save_pruned
from hyperprune.cost import CostModel
from hyperprune.errors import BudgetError, FileError, ModelError, ProofError, SavingError
from hyperprune.export import export_with_proof
from tests.models import (
    SMALL,
    ResNet,
    assert_same,
    couple,
    random_half,
    relative_error,
    residual,
    searched,
    small,
    snapshot,
    train,
)

every_model = pytest.mark.parametrize("name", SMALL)


@every_model
@pytest.mark.parametrize("generator", [Lean(), DHP()], ids=["lean", "dhp"])
def test_a_searched_network_and_its_export_compute_the_same(name: str, generator: Any, rng: torch.Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model, x, generator=generator)
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    hyper.bank.keep_(random_half(hyper, rng))
    slim, proof = export_with_proof(hyper)
    assert proof.holds
    other = torch.randn_like(x)
    assert relative_error(hyper.eval()(other), slim.eval()(other)) < 1e-5


@every_model
def test_an_export_is_plain_and_of_the_same_classes_with_the_same_names_in_the_same_order(
    name: str, rng: torch.Generator
) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    hyper.bank.keep_(random_half(hyper, rng))
    slim = export_pruned(hyper)
    assert [(path, type(module)) for path, module in slim.named_modules()] == [
        (path, type(module)) for path, module in model.named_modules()
    ]
    assert not any(type(module).__module__.startswith("hyperprune") for module in slim.modules())
    assert not any(parametrize.is_parametrized(module) for module in slim.modules())
    assert [n for n, _ in slim.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert list(slim.state_dict()) == list(model.state_dict())
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


@every_model
def test_an_export_trains(name: str, rng: torch.Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    hyper.bank.keep_(random_half(hyper, rng))
    slim = export_pruned(hyper).train()
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = slim(x).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in slim.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_export_changes_neither_the_searched_network_nor_the_random_state() -> None:
    hyper = searched(residual(dropout=0.5), torch.randn(4, 3, 8, 8), Budget(macs=0.5)).train()
    before, state = snapshot(hyper), torch.random.get_rng_state()
    export_pruned(hyper)
    assert_same(before, snapshot(hyper))
    assert torch.equal(state, torch.random.get_rng_state())


def test_exporting_twice_gives_the_same_and_searching_on_changes_nothing_exported() -> None:
    x = torch.randn(4, 3, 8, 8)
    hyper = searched(residual(), x, Budget(macs=0.5))
    first, second = export_pruned(hyper), export_pruned(hyper)
    expected = first.eval()(x)
    assert torch.equal(expected, second.eval()(x))
    hyper.bank.remove_(torch.ones(hyper.coupling.units, dtype=torch.bool))
    assert torch.equal(expected, first(x))


def test_every_module_keeps_its_mode() -> None:
    model = residual().train()
    model.block1.bn1.eval()
    slim = export_pruned(hyperize(model, torch.randn(4, 3, 8, 8)))
    assert [m.training for m in slim.modules()] == [m.training for m in model.modules()]


def test_without_removed_units_the_export_is_the_model() -> None:
    model, x = residual().eval(), torch.randn(4, 3, 8, 8)
    slim, proof = export_with_proof(hyperize(model, x))
    assert proof.relative_error == 0
    assert torch.equal(slim(x), model(x))
    assert_same(snapshot(model), snapshot(slim))


def test_an_export_loads_into_a_hand_made_model_of_its_widths() -> None:
    hyper = hyperize(residual(), torch.randn(4, 3, 8, 8))
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    for group in hyper.coupling.groups:
        keep[group.start + group.size // 2 : group.start + group.size] = False
    hyper.bank.keep_(keep)
    ResNet(width=3, inner=4).load_state_dict(export_pruned(hyper).state_dict(), strict=True)


@pytest.mark.parametrize("plain", [residual(), None, "model"], ids=["module", "none", "text"])
def test_exporting_anything_but_a_hyper_model_is_refused(plain: Any) -> None:
    with pytest.raises(ModelError, match=r"takes what hyperize returned, not .*prune\(model"):
        export_pruned(plain)


class Forgetful(nn.Module):
    """Reads a number that no analysis can see, and that slimming therefore leaves wrong."""

    factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_a_slim_model_that_differs_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Forgetful(), nn.Conv2d(6, 2, 1))
    hyper = hyperize(model, torch.randn(1, 3, 4, 4))
    hyper.bank.remove_(torch.arange(6) < 2)
    monkeypatch.setattr(Forgetful, "__deepcopy__", tampered, raising=False)
    with pytest.raises(ProofError, match=r"Sequential does not equal the searched network: relative error .* > 1e-04"):
        export_pruned(hyper)
    monkeypatch.undo()
    assert export_pruned(hyper)[0].out_channels == 4


def tampered(self: Forgetful, memo: dict[int, Any]) -> Forgetful:
    made = Forgetful()
    made.factor = 1.01
    return made


class Amplifier(nn.Module):
    """Multiplies errors of rounding."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.factor * x)


def amplifying(factor: float) -> HyperModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8), Amplifier(factor))
    hyper = hyperize(model, torch.randn(4, 16))
    hyper.bank.remove_(torch.arange(64) % 2 == 0)
    return hyper


def test_a_little_rounding_that_a_network_amplifies_is_settled_in_float64() -> None:
    hyper = amplifying(1e4)
    with pytest.warns(UserWarning, match=r"amplifies rounding: .* in float64, .* equals .* > 1e-04") as caught:
        slim = export_pruned(hyper)
    assert (slim[0].out_features, slim[0].weight.dtype) == (32, torch.float32)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="amplifies rounding"):
        assert export_with_proof(hyper)[1].tolerance == 1e-10
    with pytest.raises(ProofError, match="this is rounding"):
        export_pruned(hyper, tolerance=1e-4)


def test_rounding_that_a_network_amplifies_is_told_from_a_difference() -> None:
    hyper = amplifying(1e6)
    with pytest.raises(ProofError, match=r"this is rounding.*\(copy.deepcopy\(hyper\).double\(\)\).float\(\)"):
        export_pruned(hyper)
    slim = export_pruned(copy.deepcopy(hyper).double()).float()
    assert (slim[0].out_features, slim[0].weight.dtype) == (32, torch.float32)


def test_a_tolerance_of_ones_own_decides() -> None:
    hyper = hyperize(residual(), torch.randn(4, 3, 8, 8))
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 2 == 0)
    assert export_with_proof(hyper, tolerance=1e-3)[1].tolerance == 1e-3
    with pytest.raises(ProofError):
        export_pruned(hyper, tolerance=-1.0)


@every_model
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_prune_in_one_call_meets_the_budget_and_leaves_the_model_as_it_was(name: str, criterion: str) -> None:
    model, x = small(name)
    before = snapshot(model)
    slim = prune(model, x, Budget(macs=0.5), criterion=criterion)
    assert_same(before, snapshot(model))
    cost, dense = (CostModel(couple(m, x), m) for m in (slim, model))
    assert cost.total(cost.full).macs <= dense.total(dense.full).macs // 2
    assert type(slim) is type(model)


def test_magnitude_keeps_the_channels_of_largest_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight[[1, 4, 5]] *= 100
        model[2].weight[:, [1, 4, 5]] *= 100
    slim = prune(copy.deepcopy(model), torch.randn(1, 3, 4, 4), Budget(macs=0.5))
    assert torch.equal(slim[0].weight, model[0].weight[[1, 4, 5]])
    assert torch.equal(slim[2].weight, model[2].weight[:, [1, 4, 5]])


def test_an_unknown_criterion_is_refused_with_those_that_exist() -> None:
    with pytest.raises(BudgetError, match=r"no criterion 'taste'; there are: .*magnitude.*random"):
        prune(residual(), torch.randn(1, 3, 8, 8), Budget(macs=0.5), criterion="taste")


def test_an_export_before_the_last_step_says_that_the_budget_is_not_met() -> None:
    x = torch.randn(4, 3, 8, 8)
    hyper = hyperize(residual(), x)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), 6)
    train(hyper, search, optimizer, x, 3)
    with pytest.warns(UserWarning, match=r"macs instead of [\d,]+\. .* at step 3 of 6"):
        export_pruned(hyper)
    train(hyper, search, optimizer, x, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_pruned(hyper)


def test_a_searched_network_is_copied_but_not_pickled_and_the_error_says_what_to_keep() -> None:
    x = torch.randn(4, 3, 8, 8)
    hyper = hyperize(residual(), x)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 0)
    again = copy.deepcopy(hyper)
    assert torch.equal(again(x), hyper(x))
    assert again.bank is not hyper.bank
    with pytest.raises(SavingError, match=r"cannot be pickled.*hyper\.state_dict\(\).*save_pruned"):
        torch.save(hyper, io.BytesIO())
    with pytest.raises(FileError, match="a file's path is needed, not NoneType"):
        save_pruned(export_pruned(hyper), None)  # type: ignore[arg-type]


def test_what_a_search_is_made_of_can_be_printed() -> None:
    hyper = hyperize(residual(), torch.randn(4, 3, 8, 8), keep=None, only=None)  # type: ignore[arg-type]
    search = Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.01)), Budget(activation_bytes=0.5), 6)
    rule = "Sparsifier(Balanced(within=Saliency(decay=0.95), balance=0.5), Cut(), AtSchedule())"
    assert repr(search) == f"Search(step 0 of 6, every 1, {rule})"
    progress = search.progress()
    assert progress.limits["activation_bytes"] == progress.takes["activation_bytes"] // 2
    assert f"{progress.takes['activation_bytes']:,} activation_bytes (budget " in str(progress)
    assert repr(Distillation(nn.Linear(2, 2))) == "Distillation(Linear, temperature=4.0, weight=0.4)"
