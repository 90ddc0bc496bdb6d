"""Gates: exact zeros and ones, gradients against differences, one seed one result, noise in train mode only."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyperprune import DHP, BinaryGates, Budget, HardConcrete, HyperModel, Lean, Search, export_pruned, hyperize
from hyperprune.coupling import Group
from hyperprune.errors import SearchError
from hyperprune.generators import Generator
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers import Gates, Press, Sparsifier
from hyperprune.sparsifiers.gates import CLIPPED, LEAK, HardConcreteGates, StandardisedGates, gate, standardised
from tests.models import relative_error, residual, small

STEPS, IMAGES = 12, (4, 3, 8, 8)
RULES: dict[str, Callable[[], Sparsifier]] = {
    "binary": BinaryGates,
    "noisy": lambda: BinaryGates(noise=0.5, seed=3),
    "hard concrete": lambda: HardConcrete(seed=3),
}
SAMPLED = ("noisy", "hard concrete")
every_rule = pytest.mark.parametrize("rule", RULES)
Run = tuple[HyperModel, Search, torch.optim.Optimizer]


def start(rule: str, generator: Generator | None = None, every: int = 1, macs: float = 0.5) -> Run:
    torch.manual_seed(0)
    hyper = hyperize(residual(width=12, inner=16), torch.randn(IMAGES), generator=generator).train()
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01), momentum=0.9)
    return hyper, Search(hyper, optimizer, Budget(macs=macs), STEPS, sparsifier=RULES[rule](), every=every), optimizer


def go_on(run: Run, first: int, last: int) -> None:
    hyper, search, optimizer = run
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(IMAGES, generator=rng), torch.randint(3, IMAGES[:1], generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(hyper(x), y).backward()
        optimizer.step()
        search.step()


def made(kind: str, slope: float = 2.0) -> Gates:
    """A rule's mathematics, without a search."""
    if kind == "binary":
        return StandardisedGates(0.5, 0.1, (slope, slope), 0)
    return HardConcreteGates(0.1, (slope, slope), 0)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function."""
    basis = torch.eye(at.numel(), dtype=at.dtype).view(-1, *at.shape) * step
    return torch.stack([(function(at + e) - function(at - e)) / (2 * step) for e in basis]).view(at.shape)


def test_gates_are_exactly_zero_and_one_from_twelfths_on() -> None:
    x = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    g, p = gate(x), x.sigmoid()
    assert torch.equal(g == 0, p <= 1 / 12)
    assert torch.equal(g == 1, p >= 11 / 12)
    assert (g.diff() >= 0).all()
    assert torch.equal(g, (1.2 * p - 0.1).clamp(0, 1))


def test_between_the_clips_the_gradient_is_the_numeric_one_and_beyond_them_it_never_dies() -> None:
    x = torch.linspace(-CLIPPED + 1e-3, CLIPPED - 1e-3, 101, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda v: gate(v).sum(), x)
    torch.testing.assert_close(exact, differences(lambda v: gate(v).sum(), x), rtol=1e-6, atol=1e-8)
    far = torch.tensor([-40.0, -3.0, 3.0, 40.0], dtype=torch.float64)
    beyond = torch.autograd.functional.jacobian(lambda v: gate(v).sum(), far)
    assert (beyond >= LEAK).all()
    assert (differences(lambda v: gate(v).sum(), far) == 0).all()


@pytest.mark.parametrize("kind", ["binary", "hard concrete"])
def test_the_surrogates_gradient_is_the_numeric_one_with_prices(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    phi, t = torch.randn(9, generator=rng, dtype=torch.float64) * 2, torch.tensor(0.3, dtype=torch.float64)
    prices, rule = torch.rand(9, generator=rng, dtype=torch.float64) * 5, made(kind)

    def surrogate(phi: Tensor, t: Tensor) -> Tensor:
        return (prices * rule.opens(phi, t)).sum()

    by_phi, by_t = torch.autograd.functional.jacobian(surrogate, (phi, t))
    torch.testing.assert_close(by_phi, differences(lambda v: surrogate(v, t), phi), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_t, differences(lambda v: surrogate(phi, v), t), rtol=1e-6, atol=1e-8)


def test_the_surrogate_is_a_half_exactly_where_the_gate_reaches_zero() -> None:
    rule, phi = made("binary"), torch.randn(50, dtype=torch.float64)
    t = standardised(phi)[7] + CLIPPED / rule.slope
    assert float(rule.opens(phi, t)[7]) == pytest.approx(0.5, abs=1e-12)
    others = torch.arange(50) != 7
    assert torch.equal((rule.opens(phi, t) > 0.5)[others], (gate(rule.logits(phi, t)) > 0)[others])


def test_the_hard_concrete_surrogate_is_the_probability_of_an_open_gate() -> None:
    rule, phi = made("hard concrete", 1.0), torch.linspace(-3, 3, 7, dtype=torch.float64)
    rng, t = torch.Generator().manual_seed(0), torch.zeros((), dtype=torch.float64)
    noise = torch.rand(7 * 40_000, generator=rng, dtype=torch.float64).logit().view(-1, 7)
    found = (gate(rule.noisy_logits(phi, t, noise)) > 0).double().mean(0)
    torch.testing.assert_close(found, rule.opens(phi, t), rtol=0, atol=0.01)
    torch.testing.assert_close(rule.opens(phi, t), (phi + 1.5986).sigmoid(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "hard concrete"])
def test_the_gradient_along_constant_cost_is_the_numeric_one(kind: str) -> None:
    """Move phi, let the threshold follow the budget, and take differences of the loss itself."""
    torch.manual_seed(0)
    phi, prices = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    felt, rule = torch.randn(6, dtype=torch.float64), made(kind, 0.8)
    target = 0.8 * prices.sum()

    def loss(phi: Tensor) -> Tensor:
        return (felt * gate(rule.logits(phi, rule.steered(phi, prices, target)))).sum()

    t = rule.steered(phi, prices, target)
    assert float((prices * rule.opens(phi, t)).sum()) == pytest.approx(float(target), rel=1e-9)
    inside = rule.logits(phi, t).abs() < CLIPPED - 0.01
    assert inside.all(), "beyond the clips the backward is leaky on purpose"
    found, multiplier = rule.along_budget(felt, phi, t, prices)
    torch.testing.assert_close(found, differences(loss, phi, 1e-4), rtol=1e-4, atol=1e-6)
    worth = (loss_at(rule, felt, phi, prices, target + 1e-4) - loss_at(rule, felt, phi, prices, target - 1e-4)) / 2e-4
    assert float(multiplier) == pytest.approx(-float(worth), rel=1e-4)


def loss_at(rule: Gates, felt: Tensor, phi: Tensor, prices: Tensor, target: Tensor) -> Tensor:
    return (felt * gate(rule.logits(phi, rule.steered(phi, prices, target)))).sum()


@every_rule
@pytest.mark.parametrize("generator", [Lean(), DHP(embedding=2)], ids=["lean", "dhp"])
def test_the_search_starts_from_the_dense_network_bit_for_bit(rule: str, generator: Generator) -> None:
    hyper, search, optimizer = start(rule, generator, every=4)
    torch.manual_seed(0)
    model, x = residual(width=12, inner=16).train(), torch.randn(IMAGES)
    assert torch.equal(hyper(x), model(x))
    go_on((hyper, search, optimizer), 0, 3)
    assert torch.equal(hyper.bank.gates(), torch.ones(hyper.coupling.units)), "open until the first decision"


@every_rule
def test_the_cost_follows_the_schedule_and_gates_reach_exact_zeros_and_ones(rule: str) -> None:
    run = start(rule)
    hyper, search, _ = run
    go_on(run, 0, 6)
    gates = hyper.bank.gates().detach()
    assert (gates == 0).any()
    assert ((gates >= 0) & (gates <= 1)).all()
    assert rule == "hard concrete" or (gates == 1).any()
    state = search.state_dict()
    learnt, prices, target = state["sparsifier"]["score"], state["prices"], (state["prices"] * ~state["doomed"]).sum()
    assert 0.4 < float(target / prices.sum()) < 0.9, "half way"
    twin = RULES[rule]().score
    assert isinstance(twin, Gates)
    twin.load_state_dict(learnt)
    expected = (prices * twin.opens(learnt["phi"], learnt["threshold"])).sum()
    assert float(expected) == pytest.approx(float(target), rel=1e-4)
    go_on(run, 6, STEPS)
    assert search.done
    assert 0.45 < search.progress().macs_fraction <= 0.5


@every_rule
def test_one_seed_gives_the_same_bits(rule: str) -> None:
    runs = [start(rule), start(rule)]
    for run in runs:
        go_on(run, 0, STEPS + 2)
    states = [run[0].state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@every_rule
@pytest.mark.parametrize("at", [1, 3, 7, 13])
def test_a_resumed_search_goes_on_bit_for_bit(rule: str, at: int) -> None:
    straight, before, after = (start(rule, every=2) for _ in range(3))
    go_on(straight, 0, STEPS + 2)
    go_on(before, 0, at)
    for part, saved in zip(after, before, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    go_on(after, at, STEPS + 2)
    states = after[0].state_dict(), straight[0].state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("rule", SAMPLED)
def test_noise_changes_from_step_to_step_and_is_the_seeds_alone(rule: str) -> None:
    run, other = start(rule), start(rule)
    seen = []
    for step in range(4):
        torch.manual_seed(step)  # the global random state must not matter
        go_on(run, step, step + 1)
        torch.manual_seed(99)
        go_on(other, step, step + 1)
        noise = run[0].bank.noise
        assert noise is not None
        assert torch.equal(noise, other[0].bank.noise)
        seen.append(noise.clone())
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("rule", SAMPLED)
def test_eval_mode_and_exports_are_without_noise(rule: str) -> None:
    run = start(rule)
    go_on(run, 0, 8)
    hyper, x = run[0], torch.randn(IMAGES)
    assert hyper.bank.noise is not None
    sampled, settled = hyper.bank.sampled(), hyper.eval().bank.sampled()
    assert torch.equal(settled, hyper.bank.gates())
    assert not torch.equal(sampled, settled)
    slim = export_pruned(hyper.train()).eval()
    assert hyper.bank.noise is not None, "the export put the noise back"
    assert relative_error(hyper.eval()(x), slim(x)) < 1e-5
    hyper.train()
    go_on(run, 8, STEPS)
    assert hyper.bank.noise is None


@every_rule
def test_the_export_folds_partly_open_gates(rule: str) -> None:
    run = start(rule)
    go_on(run, 0, STEPS)
    hyper, x = run[0].eval(), torch.randn(IMAGES)
    gates = hyper.bank.gates().detach()
    assert ((gates > 0.01) & (gates < 0.99)).any()
    assert relative_error(hyper(x), export_pruned(hyper).eval()(x)) < 1e-5


def test_latents_of_a_random_start_are_scaled_not_replaced() -> None:
    hyper, search, optimizer = start("binary", DHP(embedding=2, scratch=True))
    base = hyper.bank.latents.detach().clone()
    go_on((hyper, search, optimizer), 0, 6)
    ratio = hyper.bank.gates().detach() / base
    assert ((ratio >= 0) & (ratio <= 1)).all()
    assert (ratio == 0).any()


@pytest.mark.parametrize("name", ["mobile", "grouped", "transposed"])
def test_other_networks_reach_their_budget(name: str) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    optimizer = torch.optim.AdamW(hyper.parameter_groups(lr=1e-3))
    search = Search(hyper, optimizer, Budget(macs=0.5), 5, sparsifier=BinaryGates())
    for _ in range(5):
        optimizer.zero_grad()
        hyper(x).square().mean().backward()
        optimizer.step()
        search.step()
    assert search.progress().macs_fraction <= 0.5
    export_pruned(hyper)


def test_a_closed_gate_whose_loss_falls_when_it_opens_opens_again() -> None:
    bank = LatentBank((Group("a", 0, 8, 1, ("a",), ("b",), ()),))
    rule, half = BinaryGates(rate=2.0), torch.arange(8) < 4
    told = [torch.where(half, 0.1, 1.0), *[torch.zeros(8)] * 2, *[torch.where(half, -1.0, 0.0)] * 40]
    history = []
    for gradient in told:
        rule.observe(bank, gradient)
        rule.press_(Press(bank, half, torch.ones(8), 0.1, 1, 1.0))
        history.append(bank.gates().detach().clone())
    before, after = history[2], history[-1]
    assert before[:4].max() < before[4:].min()
    assert (before[:2] == 0).all()
    assert after[:4].min() > after[4:].max()


def test_the_network_compiles_into_one_graph() -> None:
    run = start("noisy")
    go_on(run, 0, 3)
    hyper, x = run[0], torch.randn(IMAGES)
    for mode in (True, False):
        hyper.train(mode)
        explained = torch._dynamo.explain(copy.deepcopy(hyper))(x)
        assert explained.graph_break_count == 0


@pytest.mark.parametrize("bad", [lambda: BinaryGates(noise=-1.0), lambda: BinaryGates(slope=(0.0, 1.0)),
                                 lambda: HardConcrete(rate=-0.1), lambda: BinaryGates(noise=float("nan")),
                                 lambda: BinaryGates(slope=(1.0, float("nan")))])  # fmt: skip
def test_bad_numbers_are_refused(bad: Callable[[], Sparsifier]) -> None:
    with pytest.raises(SearchError, match="must be at least 0"):
        bad()


@pytest.mark.parametrize("rule", RULES)
def test_a_unit_without_a_finite_gradient_so_far_starts_last(rule: str) -> None:
    bank = LatentBank((Group("a", 0, 4, 1, ("a",), ("b",), ()),))
    score = RULES[rule]().score
    assert isinstance(score, Gates)
    score.observe(bank, torch.tensor([0.3, float("nan"), 0.1, 0.2]))
    score.press_(Press(bank, torch.zeros(4, dtype=torch.bool), torch.ones(4), 0.1, 1))
    assert score.phi is not None
    assert score.phi.argsort().tolist() == [1, 2, 3, 0]
