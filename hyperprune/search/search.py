"""``Search``: one call per training step that brings a network down to its budget."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from hyperprune.budget import Budget
from hyperprune.errors import SearchError
from hyperprune.hyper import HyperModel
from hyperprune.latents import LatentBank
from hyperprune.optimizers import Watch, before_each_use, options_of, overflow_told, unwrapped
from hyperprune.schedule import Schedule, of
from hyperprune.search.checks import check_arguments, check_numbers, check_state, require_rate, warn_of_decay
from hyperprune.search.progress import SearchProgress
from hyperprune.sparsifiers import Fisher, Press, Sparsifier
from hyperprune.sparsifiers.base import AtSchedule, described

DECISIONS = 40
STATE = "searches"  # of an optimiser's state: those that are attached to it, in turn
LARGEST_JUMP = 0.1  # share of the dense cost that the last decision may cut without a warning

_LATEST: weakref.WeakKeyDictionary[LatentBank, weakref.ref[Search]] = weakref.WeakKeyDictionary()
_HOOKS: weakref.WeakKeyDictionary[LatentBank, list[RemovableHandle]] = weakref.WeakKeyDictionary()  # of the latest
_SERVED: weakref.WeakSet[Sparsifier] = weakref.WeakSet()


class Search:
    """Brings a hyperized network to its budget while the user trains it.

    The budget falls linearly from the dense cost to the limit over ``steps``. At each of about forty decisions
    all groups are decided together: the solver names the units that are to go, and the sparsifier presses them.
    At the last step the budget is met exactly: never above, and with no unit left out that would still fit.
    After that ``step()`` does nothing, and training may go on: the network is a slim one in disguise.

    Gradients are read when the optimiser uses them, so AMP, clipping, accumulation and DDP need nothing special.

    A network has one search at a time: a new one takes the place of an older one. A running search is copied together
    with what it belongs to, ``copy.deepcopy((hyper, optimizer, search))``.

    Args:
        hyper: what ``hyperize`` returned.
        optimizer: any torch optimiser that holds the latents (``hyper.parameter_groups(...)``).
        budget: what the slim network may cost.
        steps: optimiser steps until the budget is reached.
        sparsifier: the rule that scores and presses; ``Fisher()`` by default.
        every: optimiser steps between two decisions, at most ``steps``; by default ``steps / 40``, rounded up.

    Raises:
        SearchError: an argument is of the wrong kind, the optimiser does not hold the latents, ``steps`` is less
            than 1 or than ``every``, or the sparsifier has served another search.
        BudgetError: the budget is above the dense cost or below what the floors allow.
        ModelError: a layer was replaced after ``hyperize``.

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
        check_arguments(hyper, budget, sparsifier)
        _require_unused(sparsifier)
        check_numbers(steps, 1 if every is None else every)
        self._bank = hyper.bank
        self._schedule = Schedule(hyper, budget)
        self._optimizer = unwrapped(optimizer)
        self._sparsifier = Fisher() if sparsifier is None else sparsifier
        options = options_of(self._optimizer, self._bank.latents)
        warn_of_decay(options)
        require_rate(self._sparsifier, options, type(self._optimizer).__name__)
        self._sparsifier.meet(hyper, self._schedule.relative_prices)
        self._doomed = torch.zeros_like(self._bank.alive, dtype=torch.bool)
        self._prices = torch.ones_like(self._bank.alive)
        self.steps = int(steps)
        self.every = int(every or -(-steps // DECISIONS))
        self.step_count = 0
        self.done = False
        self._watch = Watch(self._bank)
        self._attached = False
        hyper.asked = budget
        _SERVED.add(self._sparsifier)
        self._take_over()

    def __repr__(self) -> str:
        return f"Search(step {self.step_count} of {self.steps}, every {self.every}, {self._sparsifier!r})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let a copy watch its optimiser too: copies do not take hooks along."""
        self.__dict__.update(state)
        self._take_over()

    def _take_over(self) -> None:
        """Become the search of this network; an earlier one of the same network stops."""
        for hook in _HOOKS.get(self._bank, ()):
            hook.remove()
        _LATEST[self._bank] = weakref.ref(self)
        _HOOKS[self._bank] = [before_each_use(self._optimizer, self._observe)]
        if self._attached:
            self._step_along()

    def _step_along(self) -> None:
        _HOOKS[self._bank] += [
            self._optimizer.register_step_post_hook(self._after_step),
            self._optimizer.register_state_dict_post_hook(self._saved_along),
            self._optimizer.register_load_state_dict_pre_hook(self._loaded_along),
        ]

    def _saved_along(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, STATE: [*state.get(STATE, ()), self.state_dict()]}

    def _loaded_along(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        own, *others = state.get(STATE) or [None]
        if own is not None:
            self.load_state_dict(own)
        return {**state, STATE: others}  # for further searches that are attached to the same optimiser

    def _replaced(self) -> bool:
        latest = _LATEST.get(self._bank)
        return latest is None or latest() is not self

    def step(self) -> None:
        """Take one step of the search; call it after ``optimizer.step()``.

        An ordinary step never waits for the device. Only the decisions, every ``every`` steps, look at values, so
        that is when faults of a step come to light.

        Raises:
            SearchError: latents or scores are not finite at a decision, no gradient has reached the latents by the
                first one, the optimiser no longer holds the latents, a newer Search has been made for this network,
                or the search is attached to its optimiser and so steps already.
        """
        if self._attached:
            raise SearchError(
                "the search is attached to its optimiser: optimizer.step() steps it already, and a second step "
                "would count twice. Drop search.step(), or search.attach(...)."
            )
        if self._replaced() and not self.done:
            raise SearchError(
                "a newer Search (or a copy of this one) has been made for this network. Two at once would undo each "
                "other's cuts: step the newer one and drop this one."
            )
        self._advance()

    def attach(self, optimizer: torch.optim.Optimizer) -> Search:
        """Step by itself after every ``optimizer.step()``, for loops that are not yours to edit.

        The optimiser keeps the search alive, until a newer one takes its place. A step that AMP's scaler skips is none.
        The search's state travels with the optimiser's, in the list ``"searches"`` of ``optimizer.state_dict()``: what
        saves and loads that, as such loops do, resumes the search too. Being attached is no part of it: attach again in
        the program that goes on, in the same order, before the optimiser's state is loaded.

        Args:
            optimizer: the one the search was made with, or a wrapper around it (Accelerate's, Lightning's).

        Returns:
            the search itself, so that ``search = Search(...).attach(optimizer)`` can be written.

        Raises:
            SearchError: another optimiser, or already attached.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> from hyperprune import hyperize
            >>> hyper = hyperize(model, torch.randn(1, 4))
            >>> optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
            >>> search = Search(hyper, optimizer, Budget(macs=0.5), steps=1).attach(optimizer)
            >>> hyper(torch.randn(16, 4)).square().mean().backward()
            >>> optimizer.step()
            >>> search.done
            True
        """
        if unwrapped(optimizer) is not self._optimizer:
            raise SearchError(
                "attach() takes the optimiser the search was made with, or a wrapper around it. Gradients of "
                "another one are not read: make the Search with the optimiser that the loop uses."
            )
        if self._attached:
            raise SearchError("the search is attached to its optimiser already: once is enough.")
        self._attached = True
        self._step_along()
        return self

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        overflow = overflow_told(optimizer)
        if not self._replaced() and (overflow is None or not bool(overflow)):
            self._advance()

    def _advance(self) -> None:
        if self.done:
            return
        self.step_count += 1
        self._watch.count_step()
        options = options_of(self._optimizer, self._bank.latents)
        due = self.step_count % self.every == 0
        if self.step_count >= self.steps or (due and self._ends_early()):
            self._finish()
            return
        if due and not self._watch.all_skipped(self.step_count):
            self._decide()
        doomed = self._doomed.to(self._bank.alive.device)
        prices = self._prices.to(doomed.device)
        share = self.step_count / self.steps
        rate = options.get("lr", 0.0)  # only proximal steps need one
        self._sparsifier.press_(Press(self._bank, doomed, prices, rate, self.every, share))

    def progress(self) -> SearchProgress:
        """Return the present state, for a logger or a progress bar."""
        living = self._bank.living()
        cost, dense = self._schedule.cost(living), self._schedule.dense
        return SearchProgress(
            step=self.step_count,
            steps=self.steps,
            macs=cost.macs,
            params=cost.params,
            macs_fraction=cost.macs / dense.macs,
            params_fraction=cost.params / dense.params,
            live_units=int(living.sum()),
            units=len(living),
            pressure=self._sparsifier.pressure,
            takes={resource: of(cost, resource) for resource in self._schedule.limits},
            limits=dict(self._schedule.limits),
        )

    def unmet(self) -> str:
        """Say in words how far the network is above its budget; empty once the budget is met.

        A latency is left out: it is met nearly.
        """
        return self._schedule.unmet(self._bank.living())

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later, beside the state of ``hyper`` and of the optimiser.

        It holds tensors, numbers, strings, lists and dicts only.
        """
        return {
            "about": self._about(),
            "step": self.step_count,
            "steps": self.steps,
            "every": self.every,
            "done": self.done,
            "watch": self._watch.state_dict(),
            "doomed": self._doomed.clone(),
            "prices": self._prices.clone(),
            "starts": dict(self._schedule.starts),
            "sparsifier": self._sparsifier.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``; ``steps`` and ``every`` become those of the state.

        Raises:
            SearchError: the state is of another network, budget or rule, or is none; nothing has been changed.
        """
        check_state(state, self.state_dict())
        if state["done"] != (state["step"] == state["steps"]) and isinstance(self._sparsifier.ending, AtSchedule):
            raise SearchError(f"the state's 'done' is damaged: {state['done']} at step {state['step']}.")
        self._load_rule(state["sparsifier"])
        self.step_count, self.steps, self.every = state["step"], state["steps"], state["every"]
        self.done = state["done"]
        self._schedule.starts = dict(state["starts"])
        self._watch.load_state_dict(state["watch"])
        self._doomed.copy_(state["doomed"])
        self._prices.copy_(state["prices"])

    def _load_rule(self, state: Any) -> None:
        before = self._sparsifier.state_dict()
        try:
            self._sparsifier.load_state_dict(tree_map_only(Tensor, self._placed, state))
            if not math.isfinite(self._sparsifier.pressure):
                raise ValueError(f"a pressure of {self._sparsifier.pressure}")
        except Exception as error:  # whatever a rule of the user's raises
            self._sparsifier.load_state_dict(before)
            raise SearchError(
                f"the state's sparsifier is damaged ({type(error).__name__}: {error}): it is not what "
                "Search.state_dict() returned."
            ) from error

    def _placed(self, tensor: Tensor) -> Tensor:
        """Move a tensor of a state to the latents' device, if that has its dtype: MPS has no float64."""
        device = self._bank.alive.device
        return tensor if tensor.dtype == torch.float64 and device.type == "mps" else tensor.to(device)

    def _about(self) -> dict[str, Any]:
        """Say what a state belongs to, in numbers and strings."""
        parts = (self._sparsifier.score, self._sparsifier.action, self._sparsifier.ending)
        return {**self._schedule.about(), "rule": [described(part) for part in parts]}

    @torch.no_grad()
    def _observe(self) -> None:
        """Called by the optimiser just before it uses the gradients."""
        gradient = self._watch.look(self._optimizer, idle=self.done or self._replaced())
        if gradient is not None:
            self._sparsifier.observe(self._bank, gradient)

    def _begin(self) -> None:
        """Start from what the network takes: a second search goes on where the first one ended."""
        if self._schedule.starts:
            return
        for resource, now, limit in self._schedule.begin(self._bank.living()):
            if limit - now > LARGEST_JUMP * limit:
                warnings.warn(
                    f"the network takes {now:,} {resource}, less than the {limit:,} of the budget: units that were "
                    "removed come back at the last step, and must be trained then.",
                    stacklevel=5,
                )

    def _decide(self) -> None:
        """Let the solver name the units that are to go at the present point of the schedule."""
        self._require_sound()
        self._begin()
        kept = self._schedule.kept(self._scores(), self._bank.alive > 0, self.step_count / self.steps)
        self._doomed = torch.from_numpy(~kept).to(self._bank.alive.device)
        self._prices = torch.as_tensor(self._schedule.relative_prices(self._bank.living())).to(self._bank.alive)

    def _finish(self) -> None:
        self._require_sound()
        self._begin()
        kept = torch.from_numpy(self._schedule.kept_at_last(self._scores(), self._bank.alive > 0))
        self._warn_of_a_jump(kept)
        with torch.no_grad():
            if self._watch.closed is not None:  # what momentum has made of a closed latent since is no size
                self._bank.latents.masked_fill_(self._watch.closed, 0.0)
        self._bank.keep_(kept)
        self.done = True

    def _scores(self) -> np.ndarray:
        scores: np.ndarray = self._sparsifier.scores(self._bank).detach().cpu().double().numpy()
        if not np.isfinite(scores).all():
            raise SearchError(
                f"{type(self._sparsifier.score).__name__} gave {int((~np.isfinite(scores)).sum())} scores that are not "
                f"finite at step {self.step_count}; units cannot be ranked by them. See to it that the score is finite."
            )
        return scores

    def _ends_early(self) -> bool:
        if isinstance(self._sparsifier.ending, AtSchedule):
            return False  # without pricing the network first
        living = self._sparsifier.living(self._bank)
        return self._sparsifier.satisfied(self._schedule.ratio(living), self._schedule.target())

    def _warn_of_a_jump(self, kept: Tensor) -> None:
        before = self._bank.living() if self._watch.lived is None else self._watch.lived
        for resource, jump, all_in_all in self._schedule.jumps(before, kept):
            if jump > max(LARGEST_JUMP, 2 * all_in_all * self.every / self.steps):
                warnings.warn(
                    f"{jump:.0%} of the dense {resource} had to be cut at once at step {self.step_count}: the "
                    "sparsifier pressed too little. Give the search more steps, or the rule more pressure; "
                    "recalibrate_(slim, batches) helps batch norms over a jump.",
                    stacklevel=5,
                )

    def _require_sound(self) -> None:
        """Look at what has happened since the last decision."""
        broken = int((~torch.isfinite(self._bank.latents)).sum())
        if broken:
            raise SearchError(
                f"{broken} latents are not finite at step {self.step_count}. The loss or its gradient overflowed: "
                "lower the learning rate, or clip gradients before optimizer.step()."
            )
        if not int(self._watch.observed):
            raise SearchError(
                f"no gradient has reached the latents by step {self.step_count}. Call loss.backward() and "
                "optimizer.step() before search.step(), train hyper(...) itself, not the original model, and let "
                "zero_grad() not come between the two. An optimiser that wraps another must be passed as the inner one."
            )
        if complaint := self._watch.complaint(self.step_count):
            warnings.warn(complaint, stacklevel=5)


def search_of(hyper: HyperModel) -> Search | None:
    """Return the latest search of a network, if there is one.

    Example:
        >>> from torch import nn
        >>> from hyperprune import hyperize
        >>> print(search_of(hyperize(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(1, 4))))
        None
    """
    latest = _LATEST.get(hyper.bank)
    return None if latest is None else latest()


def _require_unused(sparsifier: Sparsifier | None) -> None:
    if sparsifier is not None and sparsifier in _SERVED:
        raise SearchError(
            f"this {type(sparsifier).__name__} has served another search, and would carry over what it learnt there. "
            "Make a new one for each Search."
        )
