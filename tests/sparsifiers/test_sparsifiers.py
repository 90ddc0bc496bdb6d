"""Scores, actions and endings, each against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperprune import Fisher, L1Proximal, PublishedL1
from hyperprune.coupling import Group
from hyperprune.errors import SearchError
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers import Press, Saliency, Size, soft_threshold


def bank_of(latents: list[float]) -> LatentBank:
    bank = LatentBank((Group("a", 0, len(latents), 1, ("a",), ("b",), ()),))
    with torch.no_grad():
        bank.latents.copy_(torch.tensor(latents))
    return bank


def press(
    bank: LatentBank, doomed: list[bool], lr: float = 0.1, patience: int = 1, prices: Tensor | None = None
) -> Press:
    return Press(bank, torch.tensor(doomed), torch.ones(len(doomed)) if prices is None else prices, lr, patience)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 2.0])
def test_soft_threshold_is_the_argmin_of_its_objective(threshold: float) -> None:
    z = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    objective = 0.5 * (grid[None] - z[:, None]).square() + threshold * grid.abs()[None]
    torch.testing.assert_close(soft_threshold(z, threshold), grid[objective.argmin(1)], rtol=0, atol=1e-4)


def test_soft_threshold_gives_exact_zeros_and_takes_a_threshold_per_element() -> None:
    z, threshold = torch.tensor([0.5, -0.5, 0.2, -3.0]), torch.tensor([0.5, 0.6, 0.1, 1.0])
    assert soft_threshold(z, threshold).tolist() == pytest.approx([0, 0, 0.1, -2.0])
    assert (soft_threshold(z, threshold)[:2] == 0).all()


def test_saliency_is_the_moving_average_of_the_squared_product() -> None:
    score, bank = Saliency(decay=0.9), bank_of([1.0, -2.0, 0.5])
    rng, expected = torch.Generator().manual_seed(0), None
    for _ in range(7):
        gradient = torch.randn(3, generator=rng)
        square = (torch.tensor([1.0, -2.0, 0.5]) * gradient) ** 2
        expected = square if expected is None else 0.9 * expected + 0.1 * square
        score.observe(bank, gradient)
    torch.testing.assert_close(score.scores(bank), expected)


def test_a_unit_at_zero_keeps_the_saliency_it_had() -> None:
    score, bank = Saliency(decay=0.5), bank_of([1.0, 1.0])
    score.observe(bank, torch.tensor([2.0, 2.0]))
    bank.remove_(torch.tensor([True, False]))
    score.observe(bank, torch.tensor([9.0, 0.0]))
    assert score.scores(bank).tolist() == [4.0, 2.0]


def test_before_the_first_gradient_every_saliency_is_zero() -> None:
    assert Saliency().scores(bank_of([1.0, 2.0])).tolist() == [0.0, 0.0]


def test_a_score_goes_on_from_its_state() -> None:
    bank, gradients = bank_of([1.0, 2.0]), torch.randn(6, 2)
    straight, first, second = Saliency(), Saliency(), Saliency()
    for gradient in gradients:
        straight.observe(bank, gradient)
    for gradient in gradients[:3]:
        first.observe(bank, gradient)
    second.load_state_dict(first.state_dict())
    for gradient in gradients[3:]:
        second.observe(bank, gradient)
        first.observe(bank, gradient * 100)
    assert torch.equal(second.scores(bank), straight.scores(bank))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_outside_zero_to_one_is_refused(decay: float) -> None:
    with pytest.raises(SearchError, match="decay"):
        Saliency(decay)


def test_size_is_the_latents_size() -> None:
    bank = bank_of([1.0, -2.0, 0.5])
    bank.remove_(torch.tensor([True, False, False]))
    assert Size().scores(bank).tolist() == [0.0, 2.0, 0.5]


def test_fisher_cuts_the_doomed_at_once_and_for_good() -> None:
    bank = bank_of([1.0, 1.0, 1.0])
    Fisher().press_(press(bank, [False, True, False]))
    assert bank.gates().tolist() == [1.0, 0.0, 1.0]
    Fisher().press_(press(bank, [True, False, False]))
    assert bank.gates().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("fade", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("patience", [1, 5])
@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_l1_takes_doomed_units_to_exactly_zero_in_the_promised_steps_and_leaves_the_others(
    fade: float, patience: int, lr: float
) -> None:
    rule, bank = L1Proximal(fade=fade), bank_of([1.0, 1.0, -1.0, 0.3])
    steps = round(fade * patience)
    for step in range(steps):
        assert step == 0 or steps == 1 or bank.latents[0] != 0
        rule.press_(press(bank, [True, False, True, False], lr, patience))
    assert bank.latents.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.3], abs=1e-6)
    rule.press_(press(bank, [True, False, True, False], lr, patience))
    assert bank.latents[[0, 2]].tolist() == [0.0, 0.0]
    assert bank.alive.tolist() == [1.0] * 4, "nothing is cut, so it may grow back"


def test_l1_presses_dear_units_harder_within_bounds() -> None:
    bank = bank_of([1.0, 1.0, 1.0, 1.0])
    L1Proximal(fade=10).press_(press(bank, [True] * 4, prices=torch.tensor([1.0, 2.0, 100.0, 0.0])))
    assert bank.latents.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.975])


def test_l1_without_a_learning_rate_takes_no_step() -> None:
    bank = bank_of([1.0, 1.0])
    L1Proximal().press_(press(bank, [True, True], lr=0.0))
    assert bank.latents.tolist() == [1.0, 1.0]


def test_l1_reports_its_pressure() -> None:
    rule = L1Proximal(fade=2.0)
    rule.press_(press(bank_of([1.0]), [True], lr=0.1, patience=5))
    assert rule.pressure == pytest.approx(1 / (0.1 * 2 * 5))


@pytest.mark.parametrize("fade", [0, -1.0, float("nan")])
def test_a_fade_that_is_not_positive_is_refused(fade: float) -> None:
    with pytest.raises(SearchError, match="fade"):
        L1Proximal(fade=fade)


@pytest.mark.parametrize(
    "numbers", [{"lambda_": -1.0}, {"threshold": float("nan")}, {"stop": -0.1}, {"least": 0}, {"least": 2.5}], ids=str
)
def test_numbers_that_the_published_rule_cannot_use_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(SearchError, match=next(iter(numbers))):
        PublishedL1(**numbers)


def test_the_published_step_presses_all_latents_alike_by_lambda_lr() -> None:
    bank = bank_of([1.0, -0.5, 0.01, 0.0])
    PublishedL1(lambda_=0.2).press_(press(bank, [True, False, False, False], lr=0.1))
    assert bank.latents.tolist() == pytest.approx([0.98, -0.48, 0.0, 0.0])


@pytest.mark.parametrize(
    ("latents", "living"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.001], [True, True, True, True, True, False]),  # tau = 0.005 decides
        ([0.004, 0.003, 0.002, 0.001, 0.0005, 0.0], [True, True, True, True, False, False]),  # the 4th largest does
        ([0.9, -0.004, 0.003, 0.002, -0.001, 0.0], [True, True, True, True, False, False]),
        ([0.001, 0.0, 0.0], [True, True, True]),  # fewer than four: all of them
    ],
)
def test_the_published_mask_is_the_size_against_the_smaller_of_tau_and_the_fourth_largest(
    latents: list[float], living: list[bool]
) -> None:
    assert PublishedL1(threshold=5e-3, least=4).living(bank_of(latents)).tolist() == living


def test_the_published_mask_is_taken_group_by_group() -> None:
    bank = LatentBank((Group("a", 0, 5, 1, ("a",), ("b",), ()), Group("b", 5, 5, 1, ("b",), ("c",), ())))
    with torch.no_grad():
        bank.latents.copy_(torch.tensor([0.004, 0.003, 0.002, 0.001, 0.0, 1, 1, 1, 1, 0.001]))
    assert PublishedL1().living(bank).tolist() == [True] * 4 + [False] + [True] * 4 + [False]


def test_the_published_rule_stops_within_its_ratio_of_the_target_and_the_others_never_stop_early() -> None:
    rule = PublishedL1(stop=0.02)
    assert rule.satisfied(0.515, 0.5)
    assert rule.satisfied(0.4, 0.5)
    assert not rule.satisfied(0.53, 0.5)
    assert not Fisher().satisfied(0.5, 0.5)
    assert not L1Proximal().satisfied(0.5, 0.5)
