"""How far a search is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is; cheap to read, made for loggers.

    Attributes:
        step: steps taken, of ``steps``.
        macs: multiply-adds of the network of living units; ``macs_fraction`` of the dense network's.
        params: its parameters; ``params_fraction`` of the dense network's.
        live_units: units whose gate is not zero, of ``units``.
        pressure: strength of the sparsifier (lambda of an l1 rule; 0 where there is none).
        takes: what the network takes of each budgeted resource (bytes, nanoseconds); of all of it ``limits`` may stay.

    Example:
        >>> print(SearchProgress(10, 40, 30_000_000, 8_000_000, 0.75, 0.8, 120, 160, 0.0))
        step 10/40: 30.00 M MACs (75.0%), 8,000,000 params (80.0%), 120/160 units
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
    takes: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        others = [name for name in self.limits if name not in ("macs", "params")]
        budgeted = "".join(f", {self.takes[name]:,} {name} (budget {self.limits[name]:,})" for name in others)
        return (
            f"step {self.step}/{self.steps}: {self.macs / 1e6:,.2f} M MACs ({self.macs_fraction:.1%}), "
            f"{self.params:,} params ({self.params_fraction:.1%}){budgeted}, {self.live_units}/{self.units} units"
        )
