"""What a search refuses before it begins, and before it goes on from a state."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperprune.arguments import is_count
from hyperprune.budget import Budget
from hyperprune.errors import SearchError
from hyperprune.hyper import HyperModel
from hyperprune.sparsifiers import Sparsifier
from hyperprune.sparsifiers.actions import Fading, Shrink


def check_arguments(hyper: object, budget: object, sparsifier: object) -> None:
    """Refuse what is no hyperized network, no budget or no rule, and latents that are frozen."""
    if not isinstance(hyper, HyperModel):
        raise SearchError(
            f"Search takes what hyperize returned, not {type(hyper).__name__}. Of a wrapper, such as a compiled "
            "network, give what lies within (.module, ._orig_mod); training may go through the wrapper."
        )
    hyper.require_intact()
    if not hyper.bank.latents.requires_grad:
        raise SearchError(
            "the latents are frozen (requires_grad is False), so no gradient can reach them. Freeze weights by name, "
            "or say hyper.bank.latents.requires_grad_() afterwards."
        )
    if not isinstance(budget, Budget):
        raise SearchError(f"Search takes a Budget, such as Budget(macs=0.5), not {reprlib.repr(budget)}.")
    if not isinstance(sparsifier, Sparsifier | None):
        raise SearchError(f"sparsifier must be a Sparsifier, such as L1Proximal(), not {sparsifier!r}.")


def check_numbers(steps: Any, every: Any) -> None:
    """Refuse numbers of steps that are none, or that leave nothing to decide."""
    for name, value in (("steps", steps), ("every", every)):
        if not is_count(value):
            raise SearchError(f"{name} must be an integer of at least 1, not {value!r}.")
    if every > steps:
        raise SearchError(
            f"every={every} is more than steps={steps}: nothing would be decided before the last step. Leave every= "
            "out for about forty decisions, or give every=steps to cut all at once."
        )


def check_state(state: object, present: dict[str, Any]) -> None:
    """Compare a state that is to be loaded with the present one of the search that loads it."""
    if not isinstance(state, Mapping):
        raise SearchError(f"load_state_dict takes what Search.state_dict() returned, not {type(state).__name__}.")
    if missing := sorted(present.keys() - state.keys()):
        raise SearchError(f"the state lacks {missing[0]!r}: it is not what Search.state_dict() returned.")
    _check_fields(state, present)
    for name in ("doomed", "prices"):
        there, here = state[name], present[name]
        if there.shape != here.shape:
            raise SearchError(f"the state is of a search over {there.numel()} units, this network has {here.numel()}.")
    for what, here in present["about"].items():
        there = state["about"].get(what)
        if there != here:
            raise SearchError(
                f"the state is of a search with another {what}: {str(there)[:200]}; here it is {str(here)[:200]}. Make "
                "network, Budget and sparsifier as they were when the state was saved, or start a new search."
            )


def _check_fields(state: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse what no search can have written, before anything is taken over."""
    check_numbers(state["steps"], state["every"])
    starts, step, watch = state["starts"], state["step"], state["watch"]
    sound = {
        "step": is_count(step, 0) and step <= state["steps"],
        "watch": isinstance(watch, Mapping)
        and watch.keys() == present["watch"].keys()
        and all(is_count(counted, 0) for counted in watch.values()),
        "done": type(state["done"]) is bool,
        "about": isinstance(state["about"], Mapping),
        "doomed": isinstance(state["doomed"], Tensor) and state["doomed"].dtype == torch.bool,
        "prices": isinstance(state["prices"], Tensor) and bool(state["prices"].isfinite().all()),
        "starts": isinstance(starts, Mapping)
        and starts.keys() in (set(), present["about"]["budget"].keys())
        and all(is_count(amount) for amount in starts.values()),
    }
    for name, holds in sound.items():
        if not holds:
            raise SearchError(f"the state's {name!r} is damaged: {reprlib.repr(state[name])}.")


def require_rate(sparsifier: Sparsifier, options: dict[str, Any], optimizer: str) -> None:
    """Refuse an optimiser without a learning rate under a rule whose steps are as long as that."""
    if isinstance(sparsifier.action, (Fading, Shrink)) and options.get("lr", 0.0) is None:
        raise SearchError(
            f"{optimizer} has lr=None, but {type(sparsifier.action).__name__} takes proximal steps of the learning "
            "rate's size. Give the optimiser a rate, or use a rule that needs none, such as Fisher()."
        )


def warn_of_decay(options: dict[str, Any]) -> None:
    """Warn of an optimiser that decays the latents: survivors would shrink too."""
    if options.get("weight_decay", 0):
        warnings.warn(
            "the optimiser decays the latents; use hyper.parameter_groups(...), which does not.", stacklevel=3
        )
