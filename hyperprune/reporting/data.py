"""A pruning report as frozen data: what changed, layer by layer and stage by stage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from hyperprune.errors import HyperpruneError
from hyperprune.files import write_whole
from hyperprune.reporting import page, text
from hyperprune.reporting.change import Change
from hyperprune.search import SearchProgress
from hyperprune.verify import Proof

FORMAT = 1


@dataclass(frozen=True)
class LayerChange:
    """One layer that multiplies.

    Attributes:
        name: its path in the model.
        kind: its class.
        stage: the stage it belongs to.
        width: its output channels; None where its class does not tell.
        macs: its multiply-adds in one forward pass.
        params: its own parameters.
    """

    name: str
    kind: str
    stage: str
    width: Change | None
    macs: Change
    params: Change


@dataclass(frozen=True)
class StageChange:
    """A part of the network: a child of the model, or of its largest child. All stages add up to the totals."""

    name: str
    layers: int
    macs: Change
    params: Change


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward pass in one runtime at one batch size.

    Attributes:
        runtime: what ran the networks, for instance ``"ONNX Runtime"``.
        batch: inputs per forward pass.
        dense_ms: median of the dense network.
        slim_ms: median of the slim one.
        dense_spread: a low and a high quantile of the dense network's times.
        slim_spread: the same of the slim one.

    Raises:
        HyperpruneError: a time is not above zero.
    """

    runtime: str
    batch: int
    dense_ms: float
    slim_ms: float
    dense_spread: tuple[float, float] | None = None
    slim_spread: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (self.dense_ms > 0 and self.slim_ms > 0):
            raise HyperpruneError(
                f"{self.runtime} at batch {self.batch}: {self.dense_ms} and {self.slim_ms} ms cannot be compared; "
                "a time must be above zero"
            )

    @property
    def times(self) -> Change:
        """Both medians."""
        return Change(self.dense_ms, self.slim_ms)

    @property
    def speedup(self) -> float:
        """How many times faster the slim network is."""
        return self.dense_ms / self.slim_ms


@dataclass(frozen=True)
class PruningReport:
    """What pruning did to a network. ``print`` shows tables, ``to_html`` writes a page with pictures.

    Attributes:
        model: name of the network.
        inputs: shape and type of each example input.
        macs: multiply-adds of convolutions and linear layers in one forward pass on them.
        params: number of parameters.
        counted: the MACs as fvcore counts them; None where it cannot run the model.
        layers: every layer that multiplies.
        stages: the parts of the network, which add up to the totals.
        history: the search's course.
        accuracy: share of examples classified correctly, 0 to 1, by the step of the search.
        latency: measured times.
        proofs: comparisons of outputs, by what was compared.
        made_with: versions of hyperprune and torch.

    Example:
        >>> import torch
        >>> from hyperprune import Budget, prune, report
        >>> dense = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(1, 4)
        >>> found = report(dense, prune(dense, x, Budget(macs=0.5)), x)
        >>> found.macs.dense, found.macs.slim, found.params.slim
        (48, 24, 30)
    """

    model: str
    inputs: tuple[str, ...]
    macs: Change
    params: Change
    counted: Change | None
    layers: tuple[LayerChange, ...]
    stages: tuple[StageChange, ...]
    history: tuple[SearchProgress, ...] = ()
    accuracy: Mapping[int, float] = field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    made_with: str = ""

    def __str__(self) -> str:
        return text.plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield text.layout(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers; what is not finite becomes None."""
        content: dict[str, Any] = _plain({"format": FORMAT, **asdict(self)})
        return content

    def dumps(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_json(), indent=2)

    def to_html(self, path: str | Path) -> Path:
        """Write one page with everything in it (no scripts, nothing from the net), whole or not at all.

        Raises:
            FileError: the file cannot be written; what stood there before is intact.
        """
        return write_whole(path, page.page(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
