"""NaN and infinity: in the loss, in gradients, in latents, in scores, in weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import Fisher, L1Proximal, PublishedL1, export_pruned
from hyperprune.errors import ProofError, SearchError
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers import Cut, Size, Sparsifier
from tests.faults.loop import advance, backward, images, is_met, start

pytestmark = pytest.mark.filterwarnings("ignore:.*had to be cut at once")

BAD = [math.nan, math.inf, -math.inf]
RULES = {"fisher": Fisher, "l1": L1Proximal, "published": PublishedL1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_loss_is_an_error_at_the_next_decision_and_nothing_is_cut(bad: float, rule: str) -> None:
    hyper, optimizer, search = start(steps=20, every=5, sparsifier=RULES[rule]())
    advance(hyper, optimizer, search, 6)
    alive = hyper.bank.alive.clone()
    (hyper(images()).square().mean() * bad).backward()
    optimizer.step()
    for _ in range(3):
        search.step()
    with pytest.raises(SearchError, match=r"latents are not finite at step 10\. .*lower the learning rate, or clip"):
        search.step()
    assert torch.equal(hyper.bank.alive, alive)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_gradient_whose_step_is_left_out_does_not_count(bad: float) -> None:
    """As AMP does with a fused optimiser: it is handed the gradient, and told to skip."""
    found = []
    for faulty in (False, True):
        torch.manual_seed(0)
        hyper, optimizer, search = start(make=lambda groups: torch.optim.SGD(groups, fused=True), every=2)
        if faulty:
            backward(hyper)
            hyper.bank.latents.grad[0] = bad
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        advance(hyper, optimizer, search, 3)
        found.append(search.state_dict()["sparsifier"]["score"]["within"]["average"])
        assert search.state_dict()["watch"]["observed"] == 3
    assert torch.equal(*found)


def test_a_gradient_too_large_to_square_leaves_the_scores_finite() -> None:
    hyper, optimizer, search = start()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    advance(hyper, optimizer, search, 2)
    backward(hyper)
    hyper.bank.latents.grad[3] = 1e30
    optimizer.step()
    search.step()
    assert search.state_dict()["sparsifier"]["score"]["within"]["average"].isfinite().all()
    advance(hyper, optimizer, search, 5)
    assert is_met(hyper)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_bad_latents_are_an_error_at_every_decision_until_they_are_mended(bad: float, last: bool) -> None:
    hyper, optimizer, search = start(steps=4, every=4 if last else 2)
    advance(hyper, optimizer, search, 1)
    whole = hyper.bank.latents.detach().clone()
    hyper.bank.latents.data[:2] = bad
    for _ in range(2 if last else 0):
        search.step()
    with pytest.raises(SearchError, match="2 latents are not finite at step"):
        search.step()
    hyper.bank.latents.data.copy_(whole)
    advance(hyper, optimizer, search, 4 - search.step_count + last)
    assert is_met(hyper)


class Divided(Size):
    """A rule of a user's own that divides by zero."""

    def scores(self, bank: LatentBank) -> Tensor:
        return super().scores(bank) / (torch.arange(len(bank.latents)) > 1)


def test_scores_that_are_not_finite_are_an_error_that_names_the_score() -> None:
    hyper, optimizer, search = start(sparsifier=Sparsifier(Divided(), Cut()))
    with pytest.raises(SearchError, match="Divided gave 2 scores that are not finite at step 1"):
        advance(hyper, optimizer, search)
    assert hyper.living().all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "place",
    [
        lambda hyper: hyper.bank.latents,
        lambda hyper: hyper.model.fc.parametrizations.weight.original,
        lambda hyper: hyper.model.bn.bias,
    ],
    ids=["latents", "weights", "bias"],
)
def test_a_network_that_has_diverged_is_not_exported(place: Any, bad: float) -> None:
    """NaN equals NaN, so without this a proof would hold for any network."""
    hyper, _, _ = start()
    export_pruned(hyper)
    place(hyper).data.view(-1)[0] = bad
    with pytest.raises(ProofError, match=r"not finite.*diverged.*checkpoint from before"):
        export_pruned(hyper)


def test_batch_norm_that_has_seen_nan_is_not_exported() -> None:
    hyper, _, _ = start()
    hyper(torch.full_like(images(), math.nan))
    with pytest.raises(ProofError, match=r"'bn\.running_mean' first"):
        export_pruned(hyper)


def test_a_mask_of_minus_infinity_is_no_divergence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    hyper, _, _ = start(model=model)
    assert torch.equal(export_pruned(hyper).mask, model.mask)
