"""What a model costs and how well it does, side by side with others.

MACs and parameters come from fvcore, which shares no code with the plan that pruned the model: a
report that agrees with the plan is evidence, not an echo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from torch import Tensor, nn

from hyperprune.cost import count_with_fvcore
from hyperprune.errors import HyperpruneError


@dataclass(frozen=True)
class ModelReport:
    """The numbers of one model; what was not measured is None or empty and gets no row.

    Attributes:
        name: heading of the model's column.
        macs: multiply-adds of one forward pass on the example inputs.
        params: number of parameters.
        accuracy: share of the test images classified correctly, 0 to 1.
        accuracy_when_cut: the same, before any fine-tuning of the slim network.
        latency_ms: milliseconds per forward pass, by batch size.
        file_bytes: size of the saved weights.
        proof_error: largest difference between slim and searched network, relative to the outputs.
    """

    name: str
    macs: int
    params: int
    accuracy: float | None = None
    accuracy_when_cut: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)
    file_bytes: int | None = None
    proof_error: float | None = None


def report_on(
    name: str,
    model: nn.Module,
    example_inputs: Tensor,
    *,
    accuracy: float | None = None,
    accuracy_when_cut: float | None = None,
    latency_ms: Mapping[int, float] | None = None,
    file_bytes: int | None = None,
    proof_error: float | None = None,
) -> ModelReport:
    """Count the MACs and parameters of ``model`` with fvcore and return them with the numbers given.

    Example:
        >>> import torch
        >>> report_on("one layer", nn.Linear(8, 4), torch.zeros(1, 8)).macs
        32
    """
    counted = count_with_fvcore(model, example_inputs)
    return ModelReport(
        name,
        counted.macs,
        counted.params,
        accuracy,
        accuracy_when_cut,
        dict(latency_ms or {}),
        file_bytes,
        proof_error,
    )


def comparison_table(reports: Sequence[ModelReport], title: str | None = None) -> Table:
    """Return a rich table with one column per report; the first is what the others are compared with.

    Raises:
        HyperpruneError: when ``reports`` is empty.

    Example:
        >>> dense = ModelReport("dense", macs=40_000_000, params=270_000, accuracy=0.99)
        >>> slim = ModelReport("slim", macs=20_000_000, params=150_000, accuracy=0.985)
        >>> [column.header for column in comparison_table([dense, slim]).columns]
        ['', 'dense', 'slim']
    """
    if not reports:
        raise HyperpruneError("comparison_table: nothing to compare; pass at least one ModelReport, the baseline first")
    table = Table(title=title)
    table.add_column("")
    for report in reports:
        table.add_column(report.name, justify="right")
    for row in _rows(reports[0], reports):
        table.add_row(*row)
    return table


def _rows(baseline: ModelReport, reports: Sequence[ModelReport]) -> Iterator[list[str]]:
    batch_sizes = sorted({size for report in reports for size in report.latency_ms})
    measures: list[tuple[str, _Measure, _Format]] = [
        ("test accuracy", lambda r: r.accuracy, _points),
        ("... before fine-tuning", lambda r: r.accuracy_when_cut, _points),
        ("MACs", lambda r: r.macs, _share(_millions)),
        ("parameters", lambda r: r.params, _share(_thousands)),
        *(_latency_row(size) for size in batch_sizes),
        ("weights on disk", lambda r: r.file_bytes, _share(_kilobytes)),
        ("proof: relative error", lambda r: r.proof_error, lambda value, _: f"{value:.1e}"),
    ]
    for label, measure, show in measures:
        if any(measure(report) is not None for report in reports):
            yield [label, *(_cell(measure(report), measure(baseline), show) for report in reports)]


_Measure = Callable[[ModelReport], "float | None"]
_Format = Callable[[float, "float | None"], str]


def _latency_row(batch_size: int) -> tuple[str, _Measure, _Format]:
    label = f"latency, batch {batch_size}"
    return label, lambda report: report.latency_ms.get(batch_size), _share(_milliseconds)


def _cell(value: float | None, reference: float | None, show: _Format) -> str:
    return "–" if value is None else show(value, reference)


def _share(show: Callable[[float], str]) -> _Format:
    """Return a format that adds the share of the baseline wherever it is not the baseline itself."""

    def with_share(value: float, reference: float | None) -> str:
        if not reference or value == reference:
            return show(value)
        return f"{show(value)} ({value / reference:.1%})"

    return with_share


def _points(value: float, reference: float | None) -> str:
    if reference is None or value == reference:
        return f"{value:.1%}"
    return f"{value:.1%} ({100 * (value - reference):+.1f} points)"


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _thousands(count: float) -> str:
    return f"{count / 1e3:.1f} k"


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def _kilobytes(count: float) -> str:
    return f"{count / 1e3:.0f} kB"
