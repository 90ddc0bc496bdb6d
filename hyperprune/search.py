"""``Search``: one call per training step that brings a network down to its budget."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperprune.budget import Budget, Ladder, Solver
from hyperprune.cost import Cost
from hyperprune.errors import SearchError
from hyperprune.hyper import HyperModel
from hyperprune.sparsifiers import Fisher, Press, Sparsifier

DECISIONS = 40
LARGEST_JUMP = 0.1  # share of the dense cost that the last decision may cut without a warning


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is; cheap to read, made for loggers.

    Attributes:
        step: steps taken, of ``steps``.
        macs: multiply-adds of the network of living units; ``macs_fraction`` of the dense network's.
        params: its parameters; ``params_fraction`` of the dense network's.
        live_units: units whose gate is not zero, of ``units``.
        pressure: strength of the sparsifier (lambda of an l1 rule; 0 where there is none).
    """

    step: int
    steps: int
    macs: int
    params: int
    macs_fraction: float
    params_fraction: float
    live_units: int
    units: int
    pressure: float

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.steps}: {self.macs / 1e6:,.2f} M MACs ({self.macs_fraction:.1%}), "
            f"{self.params:,} params ({self.params_fraction:.1%}), {self.live_units}/{self.units} units"
        )


class Search:
    """Brings a hyperized network to its budget while the user trains it.

    The budget falls linearly from the dense cost to the limit over ``steps``. At each of about forty decisions
    all groups are decided together: the solver names the units that are to go, and the sparsifier presses them.
    At the last step the budget is met exactly: never above, and with no unit left out that would still fit.
    After that ``step()`` does nothing, and training may go on: the network is a slim one in disguise.

    Gradients are read when the optimiser uses them, so AMP, clipping, accumulation and DDP need nothing special.

    Args:
        hyper: what ``hyperize`` returned.
        optimizer: any torch optimiser that holds the latents (``hyper.parameter_groups(...)``).
        budget: what the slim network may cost.
        steps: optimiser steps until the budget is reached.
        sparsifier: the rule that scores and presses; ``Fisher()`` by default.
        every: optimiser steps between two decisions; by default ``steps / 40``, rounded up.

    Raises:
        SearchError: the optimiser does not hold the latents, or ``steps`` is less than 1.
        BudgetError: the budget is above the dense cost or below what the floors allow.

    Example:
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hyper = hyperize(model, torch.randn(1, 4))
        >>> optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
        >>> search = Search(hyper, optimizer, Budget(macs=0.5), steps=3)
        >>> while not search.done:
        ...     optimizer.zero_grad()
        ...     hyper(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     search.step()
        >>> search.progress().macs
        24
    """

    def __init__(
        self,
        hyper: HyperModel,
        optimizer: torch.optim.Optimizer,
        budget: Budget,
        steps: int,
        *,
        sparsifier: Sparsifier | None = None,
        every: int | None = None,
    ) -> None:
        _check_arguments(hyper, steps, every)
        self._bank = hyper.bank
        self._groups = hyper.coupling.groups
        self._of_unit = hyper.coupling.of_unit()
        self._cost = hyper.cost
        self._dense = hyper.cost.total(hyper.cost.full)
        self._limits = budget.limits(self._dense)
        self._solver = Solver(hyper.cost, Ladder.of(hyper.coupling.groups, budget))
        self._solver.check(self._limits)
        self._options = _latents_group(optimizer, self._bank.latents)
        self._sparsifier = Fisher() if sparsifier is None else sparsifier
        self._doomed = torch.zeros_like(self._bank.alive, dtype=torch.bool)
        self._prices = torch.ones_like(self._bank.alive)
        self.steps = steps
        self.every = every or -(-steps // DECISIONS)
        self.step_count = 0
        self.done = False
        self._observed = 0
        _watch(optimizer, self)

    def step(self) -> None:
        """Take one step of the search; call it after ``optimizer.step()``.

        Raises:
            SearchError: the latents are not finite, or no gradient has reached them by the first decision.
        """
        if self.done:
            return
        self.step_count += 1
        self._require_finite()
        due = self.step_count % self.every == 0
        if self.step_count >= self.steps or (due and self._ends_early()):
            self._finish()
            return
        if due:
            self._decide()
        lr, doomed = float(self._options["lr"]), self._doomed.to(self._bank.alive.device)
        self._sparsifier.press_(Press(self._bank, doomed, self._prices.to(doomed.device), lr, self.every))

    def progress(self) -> SearchProgress:
        """Return the present state, for a logger or a progress bar."""
        living = self._bank.living().cpu().numpy()
        cost = self._cost.total(self._counts(living))
        return SearchProgress(
            step=self.step_count,
            steps=self.steps,
            macs=cost.macs,
            params=cost.params,
            macs_fraction=cost.macs / self._dense.macs,
            params_fraction=cost.params / self._dense.params,
            live_units=int(living.sum()),
            units=len(living),
            pressure=self._sparsifier.pressure,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later, beside the state of ``hyper`` and of the optimiser."""
        return {
            "step": self.step_count,
            "steps": self.steps,
            "every": self.every,
            "done": self.done,
            "observed": self._observed,
            "doomed": self._doomed.clone(),
            "prices": self._prices.clone(),
            "sparsifier": self._sparsifier.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            SearchError: the state belongs to a network with another number of units.
        """
        if len(state["doomed"]) != len(self._doomed):
            raise SearchError(
                f"the state is of a search over {len(state['doomed'])} units, this network has {len(self._doomed)}."
            )
        self.step_count, self.steps, self.every = state["step"], state["steps"], state["every"]
        self.done, self._observed = state["done"], state["observed"]
        self._doomed.copy_(state["doomed"])
        self._prices.copy_(state["prices"])
        self._sparsifier.load_state_dict(state["sparsifier"])

    def _observe(self) -> None:
        """Called by the optimiser just before it uses the gradients."""
        gradient = self._bank.latents.grad
        if self.done or gradient is None:
            return
        if bool(torch.isfinite(gradient).all()):
            self._observed += 1
            self._sparsifier.observe(self._bank, gradient)

    def _decide(self) -> None:
        """Let the solver name the units that are to go at the present point of the schedule."""
        self._require_observed()
        share = self.step_count / self.steps
        limits = {r: round(_of(self._dense, r) * (1 - share) + limit * share) for r, limit in self._limits.items()}
        self._doomed.copy_(torch.from_numpy(~self._solve(limits)))
        self._prices.copy_(self._relative_prices())

    def _finish(self) -> None:
        self._require_observed()
        kept = self._solve(self._limits)
        self._warn_of_a_jump(kept)
        self._bank.keep_(torch.from_numpy(kept))
        self.done = True

    def _warn_of_a_jump(self, kept: np.ndarray) -> None:
        before = self._bank.living().cpu().numpy()
        for resource, limit in self._limits.items():
            planned = (1 - limit / _of(self._dense, resource)) * self.every / self.steps
            costs = [_of(self._cost.total(self._counts(mask)), resource) for mask in (before, kept)]
            jump = (costs[0] - costs[1]) / _of(self._dense, resource)
            if jump > max(LARGEST_JUMP, 2 * planned):
                warnings.warn(
                    f"{jump:.0%} of the dense {resource} had to be cut at once at step {self.step_count}: the "
                    "sparsifier pressed too little. Give the search more steps, or the rule more pressure.",
                    stacklevel=4,
                )

    def _solve(self, limits: dict[str, int]) -> np.ndarray:
        scores = self._sparsifier.scores(self._bank).detach().double().cpu().numpy()
        alive = (self._bank.alive > 0).cpu().numpy()
        return self._solver.solve(scores, limits, preferred=alive)

    def _ends_early(self) -> bool:
        resource, limit = next(iter(self._limits.items()))
        living = self._sparsifier.living(self._bank).cpu().numpy()
        ratio = _of(self._cost.total(self._counts(living)), resource) / _of(self._dense, resource)
        return self._sparsifier.satisfied(ratio, limit / _of(self._dense, resource))

    def _counts(self, living: np.ndarray) -> np.ndarray:
        return np.bincount(self._of_unit[living], minlength=len(self._groups))

    def _relative_prices(self) -> Tensor:
        """Return each unit's price relative to the mean over living units, for the first budgeted resource."""
        counts = self._counts(self._bank.living().cpu().numpy())
        prices = np.abs(self._cost.changes(counts, -np.ones_like(counts))[next(iter(self._limits))]).astype(float)
        mean = max(float((prices * counts).sum() / max(counts.sum(), 1)), 1e-300)
        return torch.as_tensor(prices[self._of_unit] / mean).to(self._bank.alive)

    def _require_finite(self) -> None:
        if not bool(torch.isfinite(self._bank.latents).all()):
            count = int((~torch.isfinite(self._bank.latents)).sum())
            raise SearchError(
                f"{count} latents are not finite at step {self.step_count}. The loss or its gradient overflowed: "
                "lower the learning rate, or clip gradients before optimizer.step()."
            )

    def _require_observed(self) -> None:
        if self._observed == 0:
            raise SearchError(
                f"no gradient has reached the latents by step {self.step_count}. Call loss.backward() and "
                "optimizer.step() before search.step(), and train hyper(...) itself, not the original model."
            )


def _of(cost: Cost, resource: str) -> int:
    return int(getattr(cost, resource))


def _check_arguments(hyper: object, steps: object, every: object) -> None:
    if not isinstance(hyper, HyperModel):
        raise SearchError(f"Search takes what hyperize returned, not {type(hyper).__name__}.")
    for name, value in (("steps", steps), ("every", every)):
        if name == "every" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SearchError(f"{name} must be an integer of at least 1, not {value!r}.")


def _latents_group(optimizer: torch.optim.Optimizer, latents: Tensor) -> dict[str, Any]:
    """Return the optimiser's parameter group that holds the latents."""
    for group in optimizer.param_groups:
        if any(parameter is latents for parameter in group["params"]):
            if group.get("weight_decay", 0):
                warnings.warn(
                    "the optimiser decays the latents; use hyper.parameter_groups(...), which does not.",
                    stacklevel=3,
                )
            return group
    raise SearchError(
        "the optimiser does not hold the latents. Build it from hyper.parameter_groups(lr=...), not from the "
        "original model's parameters."
    )


def _watch(optimizer: torch.optim.Optimizer, search: Search) -> None:
    """Let the optimiser show its gradients to the search, for as long as the search lives."""
    reference = weakref.ref(search)

    def show(*_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive._observe()

    optimizer.register_step_pre_hook(show)
