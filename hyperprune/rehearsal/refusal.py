"""Why nothing of a network may be removed, in words."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from hyperprune.coupling import CouplingMap
from hyperprune.errors import NothingPrunableError
from hyperprune.labels.reasons import OUTPUT, PARAMETRIZED, REMEDIES

TOLD = 3  # of the layers that stay for one reason, how many a refusal names


def require_something(coupling: CouplingMap, model: nn.Module) -> None:
    """Make sure that anything may be removed.

    Raises:
        NothingPrunableError: nothing may; the message says why, layer by layer, and what helps.
    """
    if coupling.groups:
        return
    if not coupling.tensors:
        raise NothingPrunableError(
            f"{type(model).__name__} has no convolution or linear layer that the example inputs reach."
        )
    reasons = [line for reason in dict.fromkeys(f.reason for f in coupling.frozen) for line in _told(coupling, reason)]
    reasons = [*(reasons or [f"  {_no_weight_met(model)}."]), *_computed(coupling)]
    found = [f.reason for f in coupling.frozen if f.reason in REMEDIES]
    found = [reason for reason in found if reason != OUTPUT] or found  # every network has an output
    reasons += [f"what helps: {remedy}." for remedy in dict.fromkeys(REMEDIES[reason] for reason in found)]
    raise NothingPrunableError(
        f"nothing in {type(model).__name__} can be removed without changing its outputs:\n" + "\n".join(reasons)
    )


def _told(coupling: CouplingMap, reason: str) -> list[str]:
    """Return the first places that stay for a reason, and how many more do."""
    places = [f for f in coupling.frozen if f.reason == reason]
    told = [
        f"  {f.layer}: {f.channels} channels stay: {reason}{f' ({f.where})' * bool(f.where)}" for f in places[:TOLD]
    ]
    return told + [f"  and {len(places) - TOLD} more such layers"] * (len(places) > TOLD)


def _computed(coupling: CouplingMap) -> list[str]:
    """Say what share of the MACs weights have that no layer makes its own."""
    computed, total = sum(use.macs for use in coupling.uses if not use.tensor), sum(use.macs for use in coupling.costs)
    return [f"  weights that forward() computes carry {computed / total:.0%} of the MACs and stay."] if computed else []


def _no_weight_met(model: nn.Module) -> str:
    where = next((path for path, module in model.named_modules() if parametrize.is_parametrized(module)), None)
    if where is not None:
        return f"{where or type(model).__name__}, as every layer that was met, {PARAMETRIZED}"
    return (
        "no layer was met whose weight is a parameter with one axis for what it reads and one for what it makes: "
        "weights that forward() computes (quantised, modulated) and tensors of experts or heads stay whole"
    )
