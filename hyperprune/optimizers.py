"""What a search needs to know of a torch optimiser: which options the latents have, and when gradients are used."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperprune.errors import SearchError


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


def before_each_use(optimizer: torch.optim.Optimizer, look: Callable[[], None]) -> None:
    """Call a method whenever the optimiser is about to use gradients, for as long as the method's owner lives.

    A closure (LBFGS, Lightning) makes the gradients only inside ``step``, so the look is taken when it returns.
    """
    reference = weakref.WeakMethod(look)

    def look_if_alive() -> None:
        alive = reference()
        if alive is not None:
            alive()

    def before_step(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            return args[:1], {**kwargs, "closure": _then(closure, look_if_alive)}
        look_if_alive()
        return None

    optimizer.register_step_pre_hook(before_step)


def _then(closure: Callable[[], Any], look: Callable[[], None]) -> Callable[[], Any]:
    def closure_and_look() -> Any:
        loss = closure()
        look()
        return loss

    return closure_and_look
