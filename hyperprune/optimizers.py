"""What a search needs to know of a torch optimiser: which options the latents have, and when gradients are used."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hyperprune.errors import SearchError
from hyperprune.latents import LatentBank

UNMATCHED = 20  # steps without an optimiser's; AMP's scaler skips about that many while it looks for a scale
SURE = 5  # steps of which it is certain that the loop is wrong, before anything is said


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimiser inside the wrappers of Accelerate, Lightning and their like.

    Raises:
        SearchError: there is none.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SearchError(f"a torch optimiser that holds the latents is needed, not {type(optimizer).__name__}.")
    return optimizer


def options_of(optimizer: torch.optim.Optimizer, latents: Tensor) -> dict[str, Any]:
    """Return the parameter group that holds the latents, as it is now (``load_state_dict`` replaces the groups).

    Raises:
        SearchError: no group holds them.

    Example:
        >>> latents = torch.nn.Parameter(torch.ones(3))
        >>> options_of(torch.optim.SGD([{"params": [latents], "lr": 0.1}]), latents)["lr"]
        0.1
    """
    for group in reversed(optimizer.param_groups):  # the latents' own group is the last
        if any(parameter is latents for parameter in reversed(group["params"])):
            return group
    raise SearchError(
        "the optimiser does not hold the latents. Build it from hyper.parameter_groups(lr=...), not from the "
        "original model's parameters; and build optimiser and Search anew once something has replaced the "
        'parameters themselves, as load_state_dict(assign=True) and to("meta") do.'
    )


def overflow_told(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return what AMP's scaler tells a fused optimiser during its step: not zero where it is to skip it."""
    told: Tensor | None = getattr(optimizer, "found_inf", None)
    return told


class Watch:
    """What has become of the latents' gradients, as far as a search must know.

    Attributes:
        observed: optimiser steps that used a gradient, a tensor of shape ``[]``.
        lived: which units lived before the optimiser's step, which moves latents off zero; None if there was none.
        closed: which latents were zero before it; None likewise.
    """

    def __init__(self, bank: LatentBank) -> None:
        self._bank = bank
        self._looked = False
        self._unmatched = 0
        self._extra = 0
        self._in_a_row = 0
        self._overflow: Tensor | None = None
        self._skipped = torch.zeros((), dtype=torch.int64, device=bank.alive.device)
        self._warned = False
        self.observed = torch.zeros((), dtype=torch.int64, device=bank.alive.device)
        self.lived: Tensor | None = None
        self.closed: Tensor | None = None

    def look(self, optimizer: torch.optim.Optimizer, *, idle: bool) -> Tensor | None:
        """Return the gradient that the optimiser is about to use; None if there is none, or nobody wants it.

        One that is zero all over, or not finite (AMP skips its step), does not count: all of it is NaN then.
        """
        self._looked = True
        self._overflow = overflow_told(optimizer)
        gradient = self._bank.latents.grad
        if idle or gradient is None:
            return None
        self.lived, self.closed = self._bank.living(), self._bank.latents.detach() == 0
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimiser undoes AMP's scaling itself
        gradient = gradient if scale is None else gradient / scale
        size = gradient.abs().sum()
        counts = (size > 0) & (size < math.inf)
        self.observed = self.observed.to(counts.device) + counts
        return torch.where(counts, gradient, math.nan)

    def count_step(self) -> None:
        """Count a step of the search, and whether one of the optimiser came before it."""
        self._in_a_row = 0 if self._looked or self._may_be_skipped() else self._in_a_row + 1
        if not self._looked:
            self._unmatched += 1
            self._extra += self._in_a_row > 0
            self.lived = self.closed = None
        self._looked = False
        if self._overflow is not None:
            self._skipped = self._skipped.to(self._overflow.device) + self._overflow.bool().any()
            self._overflow = None

    def all_skipped(self, steps: int) -> bool:
        """Say whether no step has been taken yet because AMP's scaler may be looking for its scale.

        It is given a few steps; more, as long as gradients can be seen to overflow. ``zero_grad()`` may hide them.
        """
        overflows = self._bank.latents.grad is not None and self._may_be_skipped()
        return self._unmatched + int(self._skipped) == steps and (steps <= UNMATCHED or overflows)

    def _may_be_skipped(self) -> bool:
        """Say whether AMP's scaler may have skipped a step: the gradient overflows, or has been thrown away."""
        gradient = self._bank.latents.grad
        return gradient is None or gradient.is_meta or not bool(gradient.isfinite().all())

    def complaint(self, steps: int) -> str:
        """Say, once, that too many steps came without one of the optimiser."""
        extra = self._in_a_row > SURE or (self._extra > SURE and 3 * self._extra > steps)
        unmatched = self._unmatched > UNMATCHED and 3 * self._unmatched > steps
        if self._warned or not (extra or unmatched):
            return ""
        self._warned = True
        return (
            f"{self._unmatched} of {steps} calls of search.step() followed no optimizer.step() of the optimiser that "
            "the search was made with. Each counts as a step towards the budget: call search.step() once after every "
            "optimizer.step(), and make a new Search where the loop replaces its optimiser."
        )

    def state_dict(self) -> dict[str, int]:
        """Return what is needed to go on later."""
        return {"observed": int(self.observed), "unmatched": self._unmatched, "skipped": int(self._skipped)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from ``state_dict``."""
        self.observed.fill_(state["observed"])
        self._skipped.fill_(state["skipped"])
        self._unmatched = state["unmatched"]


def before_each_use(optimizer: torch.optim.Optimizer, look: Callable[[], None]) -> RemovableHandle:
    """Call a method whenever the optimiser is about to use gradients, for as long as the method's owner lives.

    A closure (LBFGS, Lightning) makes the gradients only inside ``step``, so the look is taken when it returns.
    """
    reference = weakref.WeakMethod(look)

    def look_if_alive() -> None:
        alive = reference()
        if alive is not None:
            alive()

    def before_step(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": _then(kwargs["closure"], look_if_alive)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], _then(args[1], look_if_alive), *args[2:]), kwargs
        look_if_alive()
        return None

    return optimizer.register_step_pre_hook(before_step)


def _then(closure: Callable[[], Any], look: Callable[[], None]) -> Callable[[], Any]:
    def closure_and_look() -> Any:
        loss = closure()
        look()
        return loss

    return closure_and_look
