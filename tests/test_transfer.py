"""The optimiser's state moves to the slim network: the next step is the one the searched network would take."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import DHP, HyperModel, export_pruned, hyperize, transfer_optimizer
from hyperprune.errors import ModelError
from hyperprune.hyper import plain_copy, slim_copy
from tests.models import SMALL, random_half, residual, small

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9),
    "nesterov": lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True),
    "adam": lambda g: torch.optim.Adam(g, amsgrad=True),
    "adamw": lambda g: torch.optim.AdamW(g, betas=(0.8, 0.9)),
    "rmsprop": lambda g: torch.optim.RMSprop(g, centered=True, momentum=0.5),
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    output = model(x)
    (output * torch.linspace(-1, 2, output.numel()).view_as(output).to(output)).square().mean().backward()
    optimizer.step()


def trained(name: str, optimizer: str, steps: int = 3) -> tuple[HyperModel, torch.optim.Optimizer, Tensor]:
    """A network half of which has gone, trained with frozen latents in double precision."""
    torch.manual_seed(0)
    model, x = small(name)
    hyper = hyperize(model.double(), x.double()).double().train()
    hyper.bank.latents.requires_grad_(False)
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(1)))
    made = OPTIMIZERS[optimizer](hyper.parameter_groups(lr=0.01, weight_decay=1e-3))
    for _ in range(steps):
        step(hyper, made, x.double())
    return hyper, made, x.double()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["sequential", "residual", "mobile", "grouped"])
def test_the_next_steps_are_those_of_the_searched_network(name: str, optimizer: str) -> None:
    hyper, made, x = trained(name, optimizer)
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, made)
    afresh = copy.deepcopy(slim)
    for _ in range(3):
        step(hyper, made, x)
        step(slim, carried, x)
    expected = slim_copy(hyper).state_dict()
    for key, value in slim.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)
    fresh = OPTIMIZERS[optimizer]([{"params": list(afresh.parameters()), "lr": 0.01, "weight_decay": 1e-3}])
    for _ in range(3):
        step(afresh, fresh, x)
    gaps = [float((value - expected[key]).abs().max()) for key, value in afresh.state_dict().items() if value.ndim]
    assert max(gaps) > 1e-6, "a fresh optimiser does something else"


@pytest.mark.parametrize(("optimizer", "key", "power"), [("sgd", "momentum_buffer", 1), ("adam", "exp_avg_sq", 2)])
def test_with_other_gates_the_state_is_that_of_the_slim_weights_gradients(optimizer: str, key: str, power: int) -> None:
    """Accumulate dL/dW of the folded weights by hand, at the weights the searched network goes through."""
    torch.manual_seed(0)
    hyper = hyperize(residual().double(), torch.randn(4, 3, 8, 8).double()).double().train()
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.2, 1.8)
    hyper.bank.latents.requires_grad_(False)
    made = OPTIMIZERS[optimizer](hyper.parameter_groups(lr=0.01))
    x, expected = torch.randn(4, 3, 8, 8).double(), torch.zeros(()).double()
    for _ in range(4):
        plain = plain_copy(hyper).train()
        output = plain(x)
        (output * torch.linspace(-1, 2, output.numel()).view_as(output).to(output)).square().mean().backward()
        gradient = plain.get_parameter("block1.conv2.weight").grad
        assert gradient is not None
        expected = 0.9 * expected + gradient if power == 1 else 0.999 * expected + 0.001 * gradient.square()
        step(hyper, made, x)
    slim = export_pruned(hyper)
    found = transfer_optimizer(hyper, slim, made).state[slim.get_parameter("block1.conv2.weight")][key]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def with_gates_of_two() -> tuple[HyperModel, nn.Module]:
    torch.manual_seed(0)
    hyper = hyperize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double(), torch.randn(1, 4).double())
    with torch.no_grad():
        hyper.bank.latents.fill_(2)
    hyper.bank.latents.requires_grad_(False)
    return hyper, export_pruned(hyper)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_is_what_the_optimiser_would_hold_had_it_seen_the_slim_weights_gradients(optimizer: str) -> None:
    hyper, slim = with_gates_of_two()
    seen = [OPTIMIZERS[optimizer]([{"params": list(m.parameters()), "lr": 0.0}]) for m in (hyper.model, slim)]
    for _ in range(4):
        x = torch.randn(8, 4).double()
        for network, one in zip((hyper, slim), seen, strict=True):
            step(network, one, x)
    carried = transfer_optimizer(hyper, slim, seen[0]).state[slim[2].weight]
    for key, expected in seen[1].state[slim[2].weight].items():
        torch.testing.assert_close(carried[key], expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(("optimizer", "known"), [("RMSpropTF", True), ("SGDW", True), ("Lars", False)])
def test_a_momentum_means_what_its_class_means_by_it(optimizer: str, known: bool) -> None:
    hyper, slim = with_gates_of_two()
    kind = getattr(pytest.importorskip("timm.optim"), optimizer)
    made = kind([p for p in hyper.model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    step(hyper, made, torch.randn(8, 4).double())
    reader: Any = hyper.model[2]
    old = made.state[reader.parametrizations.weight.original]["momentum_buffer"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        carried = transfer_optimizer(hyper, slim, made).state[slim[2].weight].get("momentum_buffer")
    assert any("start afresh" in str(warning.message) for warning in said) != known
    if known:
        torch.testing.assert_close(carried, old if optimizer == "RMSpropTF" else old / 2)
    else:
        assert carried is None


class Clipped(torch.optim.SGD):
    def __init__(self, params: Any, bound: float) -> None:
        super().__init__(params, lr=0.1)
        self.bound = bound

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.bound)
        return super().step(closure)


def test_the_optimisers_own_attributes_go_along_and_its_hooks_and_scheduler_stay() -> None:
    hyper, slim = with_gates_of_two()
    made, steps = Clipped(hyper.parameters(), bound=0.25), []
    made.register_step_pre_hook(lambda *_: steps.append("old"))
    torch.optim.lr_scheduler.StepLR(made, 10)
    carried: Any = transfer_optimizer(hyper, slim, made)
    before = copy.deepcopy(slim)
    step(slim, carried, torch.randn(2, 4).double())
    moved = [(a - b).detach().norm() for a, b in zip(slim.parameters(), before.parameters(), strict=True)]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.1 * 0.25)
    assert steps == []
    fused: Any = transfer_optimizer(hyper, slim, torch.optim.Adam(hyper.parameters(), fused=True))
    assert fused._step_supports_amp_scaling


@pytest.mark.parametrize("name", SMALL)
def test_every_slim_parameter_is_held_with_its_options_and_nothing_else(name: str) -> None:
    hyper, made, _ = trained(name, "adamw")
    for at, group in enumerate(made.param_groups):
        group["lr"] = 0.5 + at
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, made)
    assert type(carried) is torch.optim.AdamW
    held = [p for group in carried.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in slim.parameters()}
    assert len(held) == len(set(map(id, held)))
    (group,) = carried.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 1e-3, (0.8, 0.9))
    assert all(carried.state[p]["exp_avg"].shape == p.shape for p in held)
    carried.load_state_dict(copy.deepcopy(carried.state_dict()))


def test_the_old_optimiser_is_left_as_it_was_and_shares_nothing() -> None:
    hyper, made, x = trained("residual", "adamw")
    before = copy.deepcopy(made.state_dict())
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, made)
    step(slim, carried, x)
    for key, state in made.state_dict()["state"].items():
        assert all(torch.equal(value, before["state"][key][name]) for name, value in state.items())
    assert made.state_dict()["param_groups"] == before["param_groups"]


def test_attention_widths_bring_their_rescaled_rows_along() -> None:
    """Fused attention divides by the root of the width: the query's rows are rescaled at export."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x), self.k(x), self.v(x)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v))

    torch.manual_seed(0)
    x = torch.randn(2, 5, 8).double()
    hyper = hyperize(Attention().double(), x).double()
    hyper.bank.latents.requires_grad_(False)
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(1)))
    made = OPTIMIZERS["sgd"](hyper.parameter_groups(lr=0.01))
    step(hyper, made, x)
    slim = export_pruned(hyper)
    (rescale, *_) = [r for r in hyper.plan().rescales if r.tensor == "q.weight"]
    carried = transfer_optimizer(hyper, slim, made).state[slim.q.weight]["momentum_buffer"]
    module: Any = hyper.model.q
    (kept,) = [cut.kept for cut in hyper.plan().slices if (cut.tensor, cut.axis) == ("q.weight", 0)]
    trained_q = module.parametrizations.weight.original
    sliced = made.state[trained_q]["momentum_buffer"][list(kept)]
    torch.testing.assert_close(carried, sliced / rescale.factor)


def test_a_hypernetworks_state_starts_afresh_with_a_warning_and_the_others_move() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    hyper = hyperize(residual(), x, generator=DHP(embedding=2)).train()
    made = OPTIMIZERS["sgd"](hyper.parameter_groups(lr=0.01))
    step(hyper, made, x)
    slim = export_pruned(hyper)
    with pytest.warns(UserWarning, match=r"state of 5 parameters could not be carried over"):
        carried = transfer_optimizer(hyper, slim, made)
    held = [p for group in carried.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in slim.parameters()}
    assert slim.stem.weight not in carried.state
    assert "momentum_buffer" in carried.state[slim.bn.weight]
    step(slim, carried, x)


def test_an_optimiser_that_keeps_something_else_starts_afresh_with_a_warning() -> None:
    hyper, _, x = trained("residual", "sgd", steps=0)
    made = torch.optim.Adafactor(hyper.parameter_groups(lr=0.01))
    step(hyper, made, x)
    slim = export_pruned(hyper)
    with pytest.warns(UserWarning, match="kept in a form that is not known here"):
        carried = transfer_optimizer(hyper, slim, made)
    step(slim, carried, x)


def test_an_optimiser_before_its_first_step_moves_without_a_warning() -> None:
    hyper, made, x = trained("residual", "sgd", steps=0)
    slim = export_pruned(hyper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(slim, transfer_optimizer(hyper, slim, made), x)


def test_a_network_that_is_not_an_export_of_the_search_is_refused() -> None:
    hyper, made, _ = trained("residual", "sgd")
    with pytest.raises(ModelError, match=r"is not an export of the searched network as it is now"):
        transfer_optimizer(hyper, residual(), made)
    slim = export_pruned(hyper)
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(7)))
    with pytest.raises(ModelError, match=r"slim = export_pruned\(hyper\) first"):
        transfer_optimizer(hyper, slim, made)


def test_a_scheduler_made_anew_starts_from_the_rate_of_now() -> None:
    hyper, optimizer, x = trained("residual", "sgd", steps=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(9):
        step(hyper, optimizer, x)
        scheduler.step()
    moved = transfer_optimizer(hyper, export_pruned(hyper), optimizer)
    now = optimizer.param_groups[0]["lr"]
    torch.optim.lr_scheduler.LambdaLR(moved, lambda epoch: 1.0)
    assert moved.param_groups[0]["lr"] == now < 0.001


def test_an_optimiser_that_keeps_more_than_its_state_is_refused() -> None:
    hyper, _, _ = trained("residual", "sgd", steps=1)
    optimizer = torch.optim.LBFGS(hyper.parameters())
    with pytest.raises(ModelError, match="LBFGS keeps more than state"):
        transfer_optimizer(hyper, export_pruned(hyper), optimizer)


def test_parameters_beside_the_hyperized_network_stay_with_their_state() -> None:
    hyper, head = hyperize(residual(), torch.randn(2, 3, 8, 8)), nn.Linear(3, 2)
    groups = [*hyper.parameter_groups(lr=0.1), {"params": list(head.parameters()), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    head(hyper(torch.randn(4, 3, 8, 8))).square().mean().backward()
    optimizer.step()
    carried = transfer_optimizer(hyper, export_pruned(hyper), optimizer)
    assert carried.param_groups[-1]["params"] == list(head.parameters())
    assert carried.param_groups[-1]["lr"] == 0.5
    momentum = carried.state[head.weight]["momentum_buffer"]
    assert torch.equal(momentum, head.weight.grad)
    assert momentum is not optimizer.state[head.weight]["momentum_buffer"]


def test_noise_of_sampled_gates_does_not_reach_the_state() -> None:
    hyper = hyperize(residual(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01), momentum=0.9)
    step(hyper, optimizer, torch.randn(4, 3, 8, 8))
    slim = export_pruned(hyper)
    quiet = transfer_optimizer(hyper, slim, optimizer).state
    hyper.bank.shake_(-0.5 * torch.ones_like(hyper.bank.latents))
    noisy = transfer_optimizer(hyper, slim, optimizer).state
    for parameter, kept in quiet.items():
        assert torch.equal(noisy[parameter]["momentum_buffer"], kept["momentum_buffer"])


def test_names_are_those_of_the_slim_network_and_rates_that_are_tensors_are_copied() -> None:
    hyper = hyperize(residual(), torch.randn(2, 3, 8, 8))
    optimizer = torch.optim.SGD(list(hyper.named_parameters()), lr=torch.tensor(0.1))
    slim = export_pruned(hyper)
    carried = transfer_optimizer(hyper, slim, optimizer)
    (group,) = carried.param_groups
    assert {name: id(p) for name, p in zip(group["param_names"], group["params"], strict=True)} == {
        name: id(p) for name, p in slim.named_parameters()
    }
    group["lr"].fill_(7.0)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


def nearly_closed(optimizer: str, size: float) -> tuple[torch.optim.Optimizer, nn.Module, nn.Module]:
    """A state from when all gates were open, carried over after one of them has nearly closed."""
    hyper, made, _ = trained("sequential", optimizer)
    with torch.no_grad():
        hyper.bank.latents[int(hyper.bank.living().nonzero()[0])] = size
    slim = export_pruned(hyper)
    return transfer_optimizer(hyper, slim, made), made, slim


@pytest.mark.parametrize("size", [1e-3, 1e-23])
def test_the_state_of_a_gate_that_has_nearly_closed_is_scaled_tenfold_at_most(size: float) -> None:
    carried, made, _ = nearly_closed("sgd", size)
    before = max(float(state["momentum_buffer"].abs().max()) for state in made.state.values())
    after = max(float(state["momentum_buffer"].abs().max()) for state in carried.state.values())
    assert after <= 10.001 * before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "adagrad"])
def test_a_gate_below_zero_gives_the_state_of_the_weight_it_makes(optimizer: str) -> None:
    hyper, made, _ = trained("sequential", optimizer)
    mirrored, same, _ = trained("sequential", optimizer)
    unit = int(mirrored.bank.living().nonzero()[0])
    states = []
    for network, kept in ((hyper, made), (mirrored, same)):
        if network is mirrored:
            with torch.no_grad():
                network.bank.latents[unit] *= -1
        slim = export_pruned(network)
        carried = transfer_optimizer(network, slim, kept)
        states.append([(key, carried.state[p][key]) for p in slim.parameters() for key in sorted(carried.state[p])])
    mirrors = [(key, one, other) for (key, one), (_, other) in zip(*states, strict=True) if not torch.equal(one, other)]
    odd = {"momentum_buffer", "exp_avg", "grad_avg"}
    assert {key for key, _, _ in mirrors} == odd & {key for key, _ in states[0]}
    assert all(torch.equal(one.abs(), other.abs()) for _, one, other in mirrors)


def test_an_optimiser_of_another_copy_is_refused_and_the_network_itself_serves() -> None:
    hyper, optimizer, _ = trained("sequential", "sgd")
    average = torch.optim.swa_utils.AveragedModel(hyper).module
    slim = export_pruned(average)
    with pytest.raises(ModelError, match=r"trains none of this network's weights.*takes the searched network itself"):
        transfer_optimizer(average, slim, optimizer)
    carried = transfer_optimizer(hyper, slim, optimizer)
    held = {id(parameter) for group in carried.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in slim.parameters()}


class Coded(torch.optim.SGD):
    """Keeps its momentum in whole numbers."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["momentum_buffer"] = torch.ones_like(parameter, dtype=torch.int8)


def test_state_in_whole_numbers_starts_afresh() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    hyper = hyperize(model, torch.randn(1, 4))
    optimizer = Coded(hyper.model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    hyper.bank.remove_(torch.arange(8) < 5)
    with pytest.warns(UserWarning, match="state of 4 parameters could not be carried over"):
        assert not transfer_optimizer(hyper, export_pruned(hyper), optimizer).state
