"""Reports and times read back from their JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hyperprune.errors import HyperpruneError
from hyperprune.reporting.change import Change
from hyperprune.reporting.data import FORMAT, Latency, LayerChange, PruningReport, StageChange
from hyperprune.search import SearchProgress
from hyperprune.verify import Proof


def report_from_json(data: Any) -> PruningReport:
    """Build a report from what ``PruningReport.to_json`` returned, also after a trip through a file.

    Raises:
        HyperpruneError: the data is no report, or one of another format.
    """
    try:
        if data["format"] != FORMAT:
            raise HyperpruneError(f"the report has format {data['format']!r}, this hyperprune reads {FORMAT}.")
        return _report(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise HyperpruneError(
            f"this is no pruning report ({type(error).__name__}: {error}). Pass what hyperprune prune, or "
            "hyperprune report --json, wrote."
        ) from error


def _report(data: Mapping[str, Any]) -> PruningReport:
    return PruningReport(
        model=str(data["model"]),
        inputs=tuple(map(str, data["inputs"])),
        macs=_change(data["macs"]),
        params=_change(data["params"]),
        counted=data["counted"] and _change(data["counted"]),
        layers=tuple(_layer(layer) for layer in data["layers"]),
        stages=tuple(_stage(stage) for stage in data["stages"]),
        history=tuple(SearchProgress(**progress) for progress in data["history"]),
        accuracy={int(step): float(share) for step, share in data["accuracy"].items()},
        latency=tuple(_latency(row) for row in data["latency"]),
        proofs={str(name): _proof(proof) for name, proof in data["proofs"].items()},
        made_with=str(data["made_with"]),
    )


def _change(data: Mapping[str, Any]) -> Change:
    dense, slim = data["dense"], data["slim"]
    if not (isinstance(dense, (int, float)) and isinstance(slim, (int, float))):
        raise TypeError(f"{dense!r} and {slim!r} are no numbers")
    return Change(dense, slim)


def _layer(data: Mapping[str, Any]) -> LayerChange:
    width = data["width"] and _change(data["width"])
    name, kind, stage = (str(data[key]) for key in ("name", "kind", "stage"))
    return LayerChange(name, kind, stage, width, _change(data["macs"]), _change(data["params"]))


def _stage(data: Mapping[str, Any]) -> StageChange:
    return StageChange(str(data["name"]), int(data["layers"]), _change(data["macs"]), _change(data["params"]))


def _latency(data: Mapping[str, Any]) -> Latency:
    spreads = [data[key] and _span(data[key]) for key in ("dense_spread", "slim_spread")]
    return Latency(
        str(data["runtime"]),
        int(data["batch"]),
        float(data["dense_ms"]),
        float(data["slim_ms"]),
        spreads[0],
        spreads[1],
    )


def _span(data: Any) -> tuple[float, float]:
    low, high = data
    return float(low), float(high)


def _proof(data: Mapping[str, Any]) -> Proof:
    error = data["relative_error"]
    return Proof(math.nan if error is None else float(error), float(data["tolerance"]), int(data["outputs"]))


def latency_from_json(data: Any) -> tuple[Latency, ...]:
    """Build times from what ``hyperprune bench --json`` printed (``LatencyComparison.to_json``).

    Raises:
        HyperpruneError: the data is something else.

    Example:
        >>> times = {"median_ms": 3.0, "spread_ms": [2.9, 3.4]}
        >>> row = {"runtime": "ONNX Runtime", "batch": 8, "dense": times, "slim": times}
        >>> latency_from_json({"rows": [row]})[0].speedup
        1.0
    """
    try:
        return tuple(_bench_row(row) for row in data["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise HyperpruneError(
            f"these are no times of a dense and a slim network ({type(error).__name__}: {error}). "
            "Pass what hyperprune bench --json printed."
        ) from error


def _bench_row(row: Mapping[str, Any]) -> Latency:
    dense, slim = row["dense"], row["slim"]
    return Latency(
        str(row["runtime"]),
        int(row["batch"]),
        float(dense["median_ms"]),
        float(slim["median_ms"]),
        _span(dense["spread_ms"]),
        _span(slim["spread_ms"]),
    )
