"""A report as one HTML page: no scripts, nothing from the net, readable on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hyperprune.reporting import words
from hyperprune.reporting.change import Change
from hyperprune.reporting.markup import Markup, dotted, element, joined, raw
from hyperprune.reporting.pictures import (
    Curve,
    bar,
    change_cell,
    change_words,
    chart,
    legend,
    pair,
    scale,
    skyline,
    swatches,
    whole,
)
from hyperprune.reporting.style import STYLE

if TYPE_CHECKING:
    from hyperprune.reporting.data import LayerChange, PruningReport
    from hyperprune.verify import Proof

MOST_LAYERS = 64  # a longer network is drawn by its stages, its layers behind a click
FEWEST_PLACES = 16
NOTHING_LOADED = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: PruningReport) -> str:
    """Return the whole page as text."""
    title = f"Pruning report: {report.model}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=NOTHING_LOADED),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", raw(STYLE)),
    )
    main = element("main", *_sections(report, title))
    return f"<!doctype html>\n{element('html', head, element('body', main, _footer(report)), lang='en')}\n"


def _sections(report: PruningReport, title: str) -> Iterable[Markup]:
    yield element("h1", title)
    yield element("p", " ".join(words.headline(report)), class_="lead")
    yield _tiles(report)
    yield _cost(report)
    yield _widths(report)
    yield _course(report)
    yield _latency(report)
    yield _proofs(report)


def _tiles(report: PruningReport) -> Markup:
    tiles = [
        _tile("MACs kept", words.percent(report.macs.kept), words.amounts(report.macs)),
        _tile("Parameters kept", words.percent(report.params.kept), words.amounts(report.params)),
    ]
    channels = words.widths(report.layers)
    if channels is not None:
        tiles.append(_tile("Channels kept", words.percent(channels.kept), words.steps(channels)))
    if report.latency:
        first = report.latency[0]
        tiles.append(_tile("Speed", f"{first.speedup:.2f}×", f"{first.runtime}, batch {first.batch}"))
    if report.proofs:
        name, proof = max(report.proofs.items(), key=lambda item: (not item[1].holds, item[1].relative_error))
        tiles.append(_tile("Proof holds" if proof.holds else "Proof FAILS", f"{proof.relative_error:.1e}", name))
    return element("div", *tiles, class_="tiles")


def _tile(label: str, figure: str, note: str) -> Markup:
    return element("div", label, element("b", figure), element("span", note, class_="quiet"), class_="tile")


def _cost(report: PruningReport) -> Markup:
    most_macs = max((stage.macs.dense for stage in report.stages), default=0)
    most_params = max((stage.params.dense for stage in report.stages), default=0)
    rows = [
        _row(
            dotted(words.stage_name(stage.name)),
            change_cell(stage.macs, most_macs),
            change_cell(stage.params, most_params),
        )
        for stage in report.stages
    ]
    total = element("tfoot", _row("total", change_words(report.macs), change_words(report.params)))
    return _section(
        "What each stage costs",
        "MACs (multiply-adds of convolutions and linear layers, one forward pass) and parameters, before and after.",
        swatches(),
        _table(["stage", "MACs", "parameters"], rows, total),
    )


def _widths(report: PruningReport) -> Markup:
    told = [layer for layer in report.layers if layer.width is not None]
    if not told:
        return _section("Widths", "No layer of this network tells its width.")
    if len(told) <= MOST_LAYERS:
        return _section("Widths of the layers", "Output channels of every layer, before and after.", _layer_table(told))
    details = element("details", element("summary", f"All {len(told)} layers with their names"), _layer_table(told))
    note = f"{len(told)} layers; each column is one layer, as high as it has output channels, stage by stage."
    return _section("Widths of the layers", note, _stage_widths(report, told), details)


def _layer_table(layers: Sequence[LayerChange]) -> Markup:
    widest = max(layer.width.dense for layer in layers if layer.width)
    rows = [
        _row(dotted(words.layer_name(layer.name)), bar(layer.width, widest), words.steps(layer.width))
        for layer in layers
        if layer.width
    ]
    return _table(["layer", "output channels", "dense → slim"], rows, figures=True, class_="layers")


def _stage_widths(report: PruningReport, layers: Sequence[LayerChange]) -> Markup:
    by_stage = {stage.name: [layer for layer in layers if layer.stage == stage.name] for stage in report.stages}
    places = max(FEWEST_PLACES, *(len(inside) for inside in by_stage.values()))
    rows = [_skyline_row(stage, inside, places) for stage, inside in by_stage.items() if inside]
    return _table(["stage", "output channels of its layers, in order", "kept in all"], rows, figures=True)


def _skyline_row(stage: str, layers: Sequence[LayerChange], places: int) -> Markup:
    changes = [layer.width for layer in layers if layer.width]
    widest, total = max(change.dense for change in changes), Change.total(changes)
    note = f"{len(changes)} layer{'s' if len(changes) > 1 else ''}, up to {widest:,} channels"
    picture = joined([skyline(changes, widest, places), element("span", note, class_="number")])
    kept = joined([words.percent(total.kept), element("span", words.steps(total), class_="number")])
    return _row(dotted(words.stage_name(stage)), picture, kept)


def _course(report: PruningReport) -> Markup:
    if not report.history:
        return _section("Course of the search", "Not given: pass history=, a list of search.progress().")
    history = report.history
    last = max(history[-1].step, *report.accuracy, 0)
    curves = [
        Curve("MACs", "macs", _held([(p.step, 100 * p.macs_fraction) for p in history], last)),
        Curve("parameters", "params", _held([(p.step, 100 * p.params_fraction) for p in history], last)),
        Curve("living units", "units", _held([(p.step, 100 * p.live_units / max(p.units, 1)) for p in history], last)),
    ]
    parts = [legend(curves), chart(curves, last, 0, 105, _summary("cost", curves))]
    if report.accuracy:
        parts += _accuracy(report, last)
    note = f"Share of the dense network, by the step; the search took {history[-1].step:,}."
    return _section("Course of the search", note, *parts)


def _held(points: list[tuple[float, float]], last: float) -> list[tuple[float, float]]:
    """Draw a curve on to the last step: after a search the widths stay."""
    return [*points, (last, points[-1][1])]


def _accuracy(report: PruningReport, last: float) -> list[Markup]:
    points = [(step, 100 * share) for step, share in sorted(report.accuracy.items())]
    percents = [percent for _, percent in points]
    span = max(5.0, max(percents) - min(percents))
    curves = [Curve("accuracy", "accuracy", points)]
    low, high = max(percents) - 1.15 * span, max(percents) + 0.1 * span
    return [legend(curves), chart(curves, last, low, high, _summary("accuracy", curves))]


def _summary(what: str, curves: Sequence[Curve]) -> str:
    ends = [f"{c.name} from {c.points[0][1]:.1f} to {c.points[-1][1]:.1f} percent" for c in curves]
    return f"{what} over the steps of the search: {', '.join(ends)}".strip()


def _latency(report: PruningReport) -> Markup:
    if not report.latency:
        return _section("Latency", "Not given: hyperprune bench measures it; pass latency=.")
    longest = max(
        max(row.dense_ms, row.slim_ms, *(row.dense_spread or ()), *(row.slim_spread or ())) for row in report.latency
    )
    rows = []
    for row in report.latency:
        picture = pair(row.times, longest, (row.dense_spread, row.slim_spread))
        name = joined([row.runtime, element("span", f"batch {row.batch}", class_="number")])
        times = element("span", whole(f"{row.dense_ms:.2f} →"), " ", whole(f"{row.slim_ms:.2f} ms"), class_="number")
        rows.append(_row(name, picture, joined([element("b", f"{row.speedup:.2f}×"), times])))
    note = "Median time of a forward pass; a thin line shows the spread where it was given. Shorter is faster."
    table = _table(["runtime", "milliseconds", "times as fast"], rows, figures=True)
    return _section("Latency", note, swatches(), table)


def _proofs(report: PruningReport) -> Markup:
    if not report.proofs:
        return _section("Proof", words.NO_PROOF)
    rows = [_row(name, scale(proof), _verdict(proof)) for name, proof in report.proofs.items()]
    note = (
        "Largest difference of the outputs, relative to the largest output, on a logarithmic scale from 1e-12 to 1. "
        "The upright mark is the tolerance: what rounding explains."
    )
    return _section("Proof", note, _table(["compared", "relative error", "verdict"], rows, figures=True))


def _verdict(proof: Proof) -> Markup:
    error, tolerance = whole(f"{proof.relative_error:.1e}"), whole(f"{proof.tolerance:.0e}")
    allowed = element("span", "at most ", tolerance, " allowed", class_="number")
    return joined([element("b", "holds: " if proof.holds else "FAILS: "), error, allowed])


def _footer(report: PruningReport) -> Markup:
    counted = f"Counted on {', '.join(report.inputs)}. {words.second_opinion(report)}"
    return element("footer", element("p", counted, class_="quiet"), element("p", f"Made with {report.made_with}."))


def _section(title: str, note: str, *parts: str) -> Markup:
    return element("section", element("h2", title), element("p", note, class_="quiet"), *parts)


def _table(
    headers: Sequence[str],
    rows: Sequence[Markup],
    foot: Markup | None = None,
    figures: bool = False,
    class_: str | None = None,
) -> Markup:
    """Return a table; its last column holds figures (narrow) or pictures (as wide as the others)."""
    kinds = ["name", *[None] * (len(headers) - 2), "figure" if figures else None]
    cells = [element("th", text, scope="col", class_=kind) for text, kind in zip(headers, kinds, strict=True)]
    head = element("thead", element("tr", *cells))
    return element("table", head, element("tbody", *rows), foot or Markup(), class_=class_)


def _row(name: str, *cells: str) -> Markup:
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells))
