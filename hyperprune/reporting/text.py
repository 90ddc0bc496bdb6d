"""A report as tables for the terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hyperprune.reporting import words

if TYPE_CHECKING:
    from hyperprune.reporting.change import Change
    from hyperprune.reporting.data import PruningReport

MOST_LAYERS = 64  # a longer network is shown by its stages
BAR = 16
WIDTH = 120


def plain(report: PruningReport) -> str:
    """Return the tables as text without colours."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(layout(report))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def layout(report: PruningReport) -> RenderableType:
    """Return everything a terminal shows of a report."""
    parts: list[RenderableType] = [Text(" ".join(words.headline(report)), style="bold"), Text()]
    parts.append(stage_table(report))
    if len(report.layers) <= MOST_LAYERS:
        parts += [Text(), layer_table(report)]
    else:
        parts.append(Text(f"{len(report.layers)} layers: to_json() and to_html() list each of them.", style="dim"))
    if report.latency:
        parts += [Text(), latency_table(report)]
    parts += [Text(), *(Text(line) for line in _closing(report))]
    return Group(*parts)


def stage_table(report: PruningReport) -> Table:
    """Return MACs and parameters per stage, with the totals."""
    table = _table("Cost by stage", "stage", "layers", "MACs", "kept", "", "parameters", "kept")
    largest = max((stage.macs.dense for stage in report.stages), default=0)
    for stage in report.stages:
        table.add_row(
            escape(words.stage_name(stage.name)),
            f"{stage.layers}",
            words.amounts(stage.macs),
            words.kept(stage.macs),
            bar(stage.macs, largest),
            words.amounts(stage.params),
            words.kept(stage.params),
        )
    table.add_section()
    macs, params = report.macs, report.params
    total = ("total", f"{len(report.layers)}", words.amounts(macs), words.percent(macs.kept), "")
    table.add_row(*total, words.amounts(params), words.percent(params.kept), style="bold")
    return table


def layer_table(report: PruningReport) -> Table:
    """Return the output channels, MACs and parameters of every layer."""
    table = _table("Widths by layer", "layer", "kind", "channels", "kept", "", "MACs", "parameters")
    for layer in report.layers:
        table.add_row(
            escape(words.layer_name(layer.name)),
            layer.kind,
            words.steps(layer.width) if layer.width else "–",
            words.kept(layer.width) if layer.width else "–",
            share_bar(layer.width) if layer.width else "",
            words.amounts(layer.macs),
            words.amounts(layer.params),
        )
    return table


def latency_table(report: PruningReport) -> Table:
    """Return the measured times."""
    table = _table("Latency", "runtime", "batch", "dense", "slim", "times as fast")
    for row in report.latency:
        table.add_row(
            escape(row.runtime), f"{row.batch}", f"{row.dense_ms:.2f} ms", f"{row.slim_ms:.2f} ms", f"{row.speedup:.2f}"
        )
    return table


def bar(change: Change, largest: float) -> Text:
    """Return a bar of up to ``BAR`` characters: what is kept in front of what went.

    Example:
        >>> from hyperprune.reporting import Change
        >>> bar(Change(8, 4), 8).plain
        '████████░░░░░░░░'
    """
    if not largest:
        return Text()
    dense, slim = (max(round(BAR * value / largest), int(value > 0)) for value in (change.dense, change.slim))
    return Text("█" * slim, style="cyan").append("░" * (dense - slim), style="dim")


def share_bar(change: Change) -> Text:
    """Return a bar of ``BAR`` characters whose full part is the share that is kept."""
    return bar(change, change.dense)


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for at, header in enumerate(headers):
        left = at == 0 or header in ("", "kind")
        table.add_column(header, justify="left" if left else "right", overflow="fold", no_wrap=not header)
    return table


def _closing(report: PruningReport) -> list[str]:
    lines = [f"Proof of {name}: {words.verdict(proof)}." for name, proof in report.proofs.items()]
    lines += [] if report.proofs else [f"Proof: {words.NO_PROOF}"]
    lines += [f"Search: {report.history[-1]}."] if report.history else []
    lines.append(f"Counted on {', '.join(report.inputs)}, MACs of convolutions and linear layers. ")
    lines[-1] += words.second_opinion(report)
    return lines
