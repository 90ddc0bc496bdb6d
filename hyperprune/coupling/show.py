"""The coupling map for people: a table, and an explanation of one layer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperprune.errors import UnknownNameError
from hyperprune.labels.reasons import REMEDIES

if TYPE_CHECKING:
    from hyperprune.coupling.map import CouplingMap, Group


def coupling_table(coupling: CouplingMap) -> str:
    """Return the groups, who shares them, the MACs they carry, and what stays, as text."""
    carried = carried_macs(coupling)
    total = sum(use.macs for use in coupling.costs)
    table = Table(title=f"{len(coupling.groups)} groups, {coupling.units} units, {total / 1e6:,.1f} M MACs")
    for header, justify in (("group", "left"), ("units", "right"), ("made by", "left"), ("read by", "left")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    table.add_column("MACs carried", justify="right")
    for group, macs in zip(coupling.groups, carried, strict=True):
        units = f"{group.size}" if group.width == 1 else f"{group.size} x {group.width}"
        share = f"{100 * macs / total:.1f} %" if total else "-"
        table.add_row(group.name, units, _some(group.makers), _some(group.readers), share)
    return "\n".join([_render(table), *_tied_lines(coupling), *_branch_lines(coupling), *_frozen_lines(coupling)])


def carried_macs(coupling: CouplingMap) -> list[int]:
    """Return for each group the MACs that would vanish if all of its units went."""
    carried = np.zeros(len(coupling.groups))
    groups = coupling.of_unit()
    for use in coupling.costs:
        left = np.ones(len(coupling.groups))
        for units in map(np.array, use.lines if use.macs else ()):
            left *= 1 - np.bincount(groups[units[units >= 0]], minlength=len(left)) / len(units)
        carried += use.macs * (1 - left)
    return [round(macs) for macs in carried.tolist()]


def explanation(coupling: CouplingMap, layer: str) -> str:
    """Say what the channels of one layer are tied to, and why."""
    lines: list[str] = []
    for group in coupling.groups:
        if layer in group.makers or layer == group.name:
            lines += _explain_group(layer, group)
        elif layer in group.readers:
            lines.append(f"{layer} reads {group.size} units of group {group.name!r}, made by {_some(group.makers)}.")
    for stays in coupling.frozen:
        if stays.layer == layer:
            where = f": {stays.where}" if stays.where else ""
            lines.append(f"{stays.channels} channels made by {layer} stay: {stays.reason}{where}.")
            lines += [f"  What helps: {REMEDIES[stays.reason]}."] if stays.reason in REMEDIES else []
    if not lines:
        known = sorted({name for group in coupling.groups for name in (*group.makers, *group.readers)})
        raise UnknownNameError(f"the analysis met no layer {layer!r}; it met: {', '.join(known)}")
    return "\n".join(lines)


def _explain_group(layer: str, group: Group) -> list[str]:
    channels = "1 channel" if group.width == 1 else f"{group.width} channels"
    lines = [f"{layer} makes group {group.name!r}: {group.size} units of {channels}."]
    others = tuple(maker for maker in group.makers if maker != layer)
    if others:
        lines.append(f"  They live or die together with those of {', '.join(others)}.")
    if group.readers:
        lines.append(f"  Read, and gated, by {', '.join(group.readers)}.")
    lines += [f"  Tied by {tie}." for tie in group.ties]
    for reason, calls in group.because:
        lines.append(f"  Not free of each other: {reason}: {calls}.")
        lines += [f"  What helps: {REMEDIES[reason]}."] if reason in REMEDIES else []
    return lines


def _tied_lines(coupling: CouplingMap) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for group in coupling.groups:
        for why in group.because:
            found.setdefault(why, []).append(group.name)
    return [f"tied: {_some(tuple(names))}: {reason}: {calls}" for (reason, calls), names in found.items()]


def _branch_lines(coupling: CouplingMap) -> list[str]:
    names = tuple(branch.name for branch in coupling.branches)
    return [f"branches that Budget(depth=True) may close: {len(names)}, ending in {_some(names)}"] if names else []


def _frozen_lines(coupling: CouplingMap) -> list[str]:
    lines = [
        f"stays: {f.layer}, {f.channels} channels: {f.reason}" + (f" ({f.where})" if f.where else "")
        for f in coupling.frozen
    ]
    if coupling.unreached:
        lines.append(f"not reached by the example inputs, left as they are: {_some(coupling.unreached)}")
    return lines


def _some(names: tuple[str, ...], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, +{len(names) - most} more" if len(names) > most else shown


def _render(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=140, color_system=None).print(table)
    return text.getvalue().rstrip()
