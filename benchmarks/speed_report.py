"""Tables of ``benchmarks/results/speed.json`` for docs/speed.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
MARKS = ("<!-- speed: begin -->", "<!-- speed: end -->")


def page(text: str, results: Mapping[str, Any]) -> str:
    """Return a page with new tables between its marks."""
    return between(text, MARKS, tables(results))


def between(text: str, marks: tuple[str, str], content: str) -> str:
    """Return a page with ``content`` in place of what stood between two marks."""
    before, rest = text.split(marks[0])
    return f"{before}{marks[0]}\n\n{content}\n\n{marks[1]}{rest.split(marks[1])[1]}"


def tables(results: Mapping[str, Any]) -> str:
    """Return every table that has rows."""
    rows = results["rows"]
    parts = [_steps(rows), _once(rows), _large(rows), _single(rows), _growth(rows), _machine(results)]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, header: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    lines = [f"| {' | '.join(map(str, line))} |" for line in lines]
    names = list(header)
    if not lines:
        return ""
    return "\n".join([f"**{title}**", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *lines])


def _steps(rows: Mapping[str, Row]) -> str:
    header = (
        "network, batch, pixels",
        "kind",
        "CPU time",
        "quartiles",
        "fastest",
        "wall",
        "peak memory",
        "optimiser MB",
        "load",
    )
    lines = [
        _step(row, kind, figures)
        for case, row in rows.items()
        if case.startswith(("bound/", "step/", "dhp/"))
        for kind, figures in row["kinds"].items()
        if kind != "dense"
    ]
    return _table("A training step, as a ratio to the dense network's", header, lines)


def _step(row: Row, kind: str, figures: Row) -> list[object]:
    batch, _, pixels, _ = row["shape"]
    low, high = figures["cpu_ratio_quartiles"]
    fastest = figures.get("fastest_cpu_ratio")
    return [
        f"{row['network']}, {batch}, {pixels} ({row['rounds']} rounds)", kind, f"{figures['cpu_ratio']:.3f}",
        f"{low:.3f} to {high:.3f}", "–" if fastest is None else f"{fastest:.3f}",
        f"{figures['wall_ratio']:.3f}", f"{figures['peak_ratio']:.3f}", f"{figures['optimizer_bytes'] / 1e6:.0f}",
        row["load_before"],
    ]  # fmt: skip


def _once(rows: Mapping[str, Row]) -> str:
    works = ("torch_export", "hyperize", "export_pruned", "torch_pruning_graph", "torch_pruning_step")
    header = ("network", *(work.replace("_", " ") for work in works), "hyperize / export")
    lines = [
        [row["network"], *(f"{row[f'{work}_s']:.2f}" for work in works), f"{row['hyperize_ratio']:.2f}"]
        for case, row in rows.items()
        if case.startswith("once/")
    ]
    return _table("What happens once, seconds of CPU time (224 pixels)", header, lines)


def _large(rows: Mapping[str, Row]) -> str:
    lines = [
        [row["network"], row["units"], row["cpu_s"], row["wall_s"], f"{row['peak_rss_bytes'] / 2**30:.2f}"]
        for case, row in rows.items()
        if case.startswith("large/")
    ]
    header = ("network", "units", "CPU s", "wall s", "peak resident memory, GiB")
    return _table("hyperize on large networks, each in a fresh process", header, lines)


def _single(rows: Mapping[str, Row]) -> str:
    lines = [
        [f"a budget for {row['units']:,} units", f"{row['solve_s']:.3f} s"] if case == "solve" else
        [f"search.step(), {row['network']}", f"{row['search_step_ms']:.2f} ms, {row['share']:.2%} of a training step"]
        for case, row in rows.items()
        if case == "solve" or case.startswith("search/")
    ]  # fmt: skip
    return _table("The search", ("what", "CPU time"), lines)


def _growth(rows: Mapping[str, Row]) -> str:
    lines = [
        [case.partition("/")[0], case.partition("/")[2], f"{row['torch_export_s']:.2f}", f"{row['hyperize_s']:.2f}",
         f"{row['export_pruned_s']:.2f}", f"{row['lean']['cpu_ratio']:.3f}", f"{row['lean']['peak_ratio']:.3f}"]
        for case, row in rows.items()
        if case.startswith(("depth/", "width/", "image/"))
    ]  # fmt: skip
    header = ("grows", "at", "torch export s", "hyperize s", "export_pruned s", "lean step", "lean peak memory")
    return _table(
        "How cost grows (steps of batch 4 at 128 pixels, two rounds: so short that they scatter)", header, lines
    )


def _machine(results: Mapping[str, Any]) -> str:
    loads = [row["load_before"] for row in results["rows"].values()]
    threads = sorted({row["threads"] for row in results["rows"].values()})
    processors = sorted({row.get("processor", "not noted") for row in results["rows"].values()})
    device = results["about"]["gpu"] or "CPU"
    return (
        f"{device} ({'; '.join(processors)}), {'/'.join(map(str, threads))} thread(s) of "
        f"{results['about']['cores']} cores, "
        f"torch {results['about']['torch']}. Load average before the cases: {min(loads)} to {max(loads)}."
    )
