"""What the user asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral

from hyperprune.arguments import is_count, is_positive
from hyperprune.cost import Cost
from hyperprune.errors import BudgetError

Amount = float | int


@dataclass(frozen=True)
class Budget:
    """What the slim network may cost. Whatever is given is met, all of it; a latency, which is measured, to about 5 %.

    Attributes:
        macs: a float in (0, 1] is a fraction of the dense MACs, an int an absolute count.
        params: likewise for parameters.
        activation_bytes: likewise for the most bytes of activations that are alive at one time in a forward pass on
            the example inputs (docs/budgets.md says what exactly is counted).
        latency: a fraction of the dense network's latency on the model's device, on the example inputs.
        latency_ms: an absolute latency in milliseconds; instead of ``latency``.
        divisor: channels of every pruned group become a multiple of this (8 suits most hardware); a group
            that loses nothing keeps its width.
        floor: units that stay in every group at least.
        floors: for layers by name or glob (``"layer4.*"``, ``"layer1.0.conv1"``) how many of their prunable channels
            stay at least. Where several patterns match, the largest number counts.
        ceilings: likewise how many may stay at most; the smallest number counts.
        depth: whether residual branches may be closed: where a branch's channels are worth less than they cost, all of
            them go, its layers with them. ``floor`` and ``floors`` of more than 1 keep a branch open.

    Raises:
        BudgetError: a value is out of range, or nothing is limited.

    Example:
        >>> Budget(macs=0.5, floors={"layer4.*": 64}).limits(Cost(macs=1001, params=10))
        {'macs': 500}
    """

    macs: Amount | None = None
    params: Amount | None = None
    divisor: int = 1
    floor: int = 1
    activation_bytes: Amount | None = None
    latency: float | None = None
    latency_ms: Amount | None = None
    floors: Mapping[str, int] = field(default_factory=dict, hash=False)
    ceilings: Mapping[str, int] = field(default_factory=dict, hash=False)
    depth: bool = False

    def __post_init__(self) -> None:
        if not self.asked():
            raise BudgetError("an empty budget: say macs=0.5 (half the MACs) or params=5_000_000, or both.")
        for name in ("macs", "params", "activation_bytes"):
            _check_amount(name, getattr(self, name))
        _check_latency(self.latency, self.latency_ms)
        if not isinstance(self.depth, bool):
            raise BudgetError(f"depth must be True or False, not {self.depth!r}.")
        for name in ("divisor", "floor"):
            _check_whole(name, getattr(self, name))
        for name in ("floors", "ceilings"):
            _check_bounds(name, getattr(self, name))
            object.__setattr__(self, name, dict(getattr(self, name)))  # the caller may go on with his own

    def asked(self) -> dict[str, Amount]:
        """Return what is asked of each resource: a float is a fraction of the dense cost, an int absolute."""
        absolute = self.latency_ms if is_positive(self.latency_ms) else None
        amounts = {
            "macs": self.macs,
            "params": self.params,
            "activation_bytes": self.activation_bytes,
            "latency_ns": self.latency if self.latency_ms is None else round(1e6 * (absolute or 1)),
        }
        return {resource: amount for resource, amount in amounts.items() if amount is not None}

    def limits(self, dense: Cost) -> dict[str, int]:
        """Return the absolute bound on each resource, given the dense network's cost.

        Raises:
            BudgetError: an absolute count is above the dense cost, or the dense cost lacks a resource.
        """
        return {resource: _limit(resource, amount, dense) for resource, amount in self.asked().items()}


def shown(resource: str, amount: int) -> str:
    """Write an amount as the user would: ``macs=1,000``, ``latency_ms=2.5``.

    Example:
        >>> shown("latency_ns", 2_500_000)
        'latency_ms=2.5'
    """
    return f"latency_ms={amount / 1e6:.4g}" if resource == "latency_ns" else f"{resource}={amount:,}"


def _limit(resource: str, amount: Amount, dense: Cost) -> int:
    full: int | None = getattr(dense, resource)
    if full is None:
        raise BudgetError(
            f"this cost model does not price {resource}: prepare it with hyperprune.metering.priced(hyper, budget)."
        )
    limit = math.floor(amount * full) if isinstance(amount, float) else int(amount)
    if limit > full:
        name, asked = shown(resource, limit).split("=")
        raise BudgetError(
            f"{name}={asked} is above the dense network's {shown(resource, full).split('=')[1]}. "
            "Give a smaller count, or a fraction such as 0.5."
        )
    return limit


def _check_amount(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (Integral, float)):
        raise BudgetError(f"{name} must be a float in (0, 1] or a positive int, not {value!r}.")
    if isinstance(value, float) and not 0 < value <= 1:
        raise BudgetError(
            f"{name}={value} is outside (0, 1]. A float is a fraction of the dense cost; "
            "for an absolute count pass an int."
        )
    if isinstance(value, Integral) and value < 1:
        raise BudgetError(f"{name}={value} must be at least 1.")


def _check_latency(share: object, milliseconds: object) -> None:
    if share is not None and milliseconds is not None:
        raise BudgetError("latency= is a fraction of the dense latency, latency_ms= an absolute one: give only one.")
    if share is not None and not (isinstance(share, float) and 0 < share <= 1):
        raise BudgetError(f"latency={share!r} must be a float in (0, 1]; for milliseconds say latency_ms=20.")
    if milliseconds is not None and not is_positive(milliseconds):
        raise BudgetError(f"latency_ms={milliseconds!r} must be a positive number; for a fraction say latency=0.5.")


def _check_whole(name: str, value: object) -> None:
    if not is_count(value):
        raise BudgetError(f"{name} must be an integer of at least 1, not {value!r}.")


def _check_bounds(name: str, bounds: object) -> None:
    if not isinstance(bounds, Mapping):
        raise BudgetError(f'{name} must map layers to channels, as {{"layer4.*": 64}}, not {bounds!r}.')
    for pattern, channels in bounds.items():
        if not isinstance(pattern, str):
            raise BudgetError(f"{name}: a layer's name or a glob is needed, not {pattern!r}.")
        _check_whole(f"{name}[{pattern!r}]", channels)
