"""The pictures on the page: inline SVG whose lengths are percentages, so that it fits any screen.

Words and numbers stand beside the pictures as HTML, where they keep their size, can be copied and are read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperprune.reporting import words
from hyperprune.reporting.markup import Markup, element, joined

if TYPE_CHECKING:
    from hyperprune.reporting.change import Change
    from hyperprune.verify import Proof

KEYS = (("dense", "dense network"), ("slim", "slim network"))
DECADES = 12  # of relative error, from 1e-12 to 1


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, its style, and (step, percent) points."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def bar(change: Change, largest: float) -> Markup:
    """Return the slim number in front of the dense one, on a scale that ends at ``largest``."""
    return element(
        "svg",
        element("rect", class_="dense", width=_share(change.dense, largest), height="100%", rx=2),
        element("rect", class_="slim", width=_share(change.slim, largest), height="100%", rx=2),
        class_="bar",
        aria_hidden="true",
    )


def pair(change: Change, largest: float, spreads: Sequence[tuple[float, float] | None]) -> Markup:
    """Return two bars, one above the other, each with a line over its spread."""
    parts: list[Markup] = []
    for at, (value, style, spread) in enumerate(
        zip((change.dense, change.slim), ("dense", "slim"), spreads, strict=True)
    ):
        top = 50 * at
        parts.append(element("rect", class_=style, y=f"{top + 4}%", width=_share(value, largest), height="42%", rx=2))
        if spread is not None:
            x1, x2 = (_share(end, largest) for end in spread)
            parts.append(element("line", class_="spread", x1=x1, x2=x2, y1=f"{top + 25}%", y2=f"{top + 25}%"))
    return element("svg", *parts, class_="pair", aria_hidden="true")


def skyline(changes: Sequence[Change], largest: float, places: int) -> Markup:
    """Return one column per layer, the dense width behind the slim one, on a line with room for ``places``."""
    columns = [_columns(changes, largest, style) for style in ("dense", "slim")]
    return element(
        "svg", *columns, class_="skyline", viewBox=f"0 0 {places} 100", preserveAspectRatio="none", aria_hidden="true"
    )


def _columns(changes: Sequence[Change], largest: float, style: str) -> Markup:
    heights = [100 * getattr(change, style) / largest for change in changes]
    path = "".join(f"M{at:g} 100V{100 - height:.1f}h0.84V100z" for at, height in enumerate(heights))
    return element("path", class_=style, d=path)


def chart(curves: Sequence[Curve], last: float, low: float, high: float, summary: str) -> Markup:
    """Return lines over the steps of a search, with percent at the left and steps below.

    Args:
        curves: what to draw; every curve has a point.
        last: step at the right edge.
        low: percent at the lower edge.
        high: percent at the upper edge.
        summary: what the picture says, for those who do not see it.
    """
    last = last or 1
    ticks = _ticks(low, high)
    lines = [_guide(100 * (high - tick) / (high - low)) for tick in ticks]
    lines += [_line(curve, last, low, high) for curve in curves]
    picture = element("svg", *lines, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=summary)
    labels = [element("span", f"{tick:g}%", style=f"top:{100 * (high - tick) / (high - low):.1f}%") for tick in ticks]
    below = [element("span", f"{last * share:,.0f}") for share in (0, 0.5, 1)]
    return element(
        "div",
        element("div", *labels, class_="percents", aria_hidden="true"),
        element("div", picture, class_="plot"),
        element("div", *below, class_="steps", aria_hidden="true"),
        class_="chart",
    )


def legend(curves: Sequence[Curve]) -> Markup:
    """Return the curves' names with the number each ends at."""
    return element("ul", *(_entry(curve) for curve in curves), class_="legend")


def _entry(curve: Curve) -> Markup:
    sample = element("line", class_=f"curve {curve.style}", x1="0", x2="26", y1="6", y2="6")
    start, end = curve.points[0][1], curve.points[-1][1]
    return element(
        "li",
        element("svg", sample, width=26, height=12, aria_hidden="true"),
        f" {curve.name}: {start:.1f}% → ",
        element("b", f"{end:.1f}%"),
    )


def _line(curve: Curve, last: float, low: float, high: float) -> Markup:
    spots = [(100 * step / last, 100 * (high - value) / (high - low)) for step, value in curve.points]
    return element("polyline", class_=f"curve {curve.style}", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in spots))


def _guide(y: float) -> Markup:
    return element("line", class_="guide", x1=0, x2=100, y1=f"{y:.2f}", y2=f"{y:.2f}")


def _ticks(low: float, high: float) -> list[float]:
    """Return four to six round numbers between the edges."""
    pace = next(pace for pace in (0.5, 1, 2, 5, 10, 20, 25, 50) if (high - low) / pace <= 5)
    first = math.ceil(low / pace)
    return [pace * at for at in range(first, math.floor(high / pace) + 1)]


def scale(proof: Proof) -> Markup:
    """Return the error as a bar on a logarithmic scale, with a mark at the tolerance."""
    mark = f"{_decades(proof.tolerance):.1f}%"
    return element(
        "svg",
        element("rect", class_="empty", width="100%", height="100%", rx=2),
        element(
            "rect",
            class_="slim" if proof.holds else "failed",
            width=f"{_decades(proof.relative_error):.1f}%",
            height="100%",
            rx=2,
        ),
        element("line", class_="tolerance", x1=mark, x2=mark, y1="0", y2="100%"),
        class_="bar",
        aria_hidden="true",
    )


def _decades(error: float) -> float:
    """Return where an error lies on the scale, in percent; what is no number lies at its end."""
    if math.isnan(error) or error >= 1:
        return 100.0
    return 0.0 if error <= 0 else max(0.0, 100 * (1 + math.log10(error) / DECADES))


def _share(value: float, largest: float) -> str:
    return f"{100 * value / largest if largest else 0:.2f}%"


def swatches() -> Markup:
    """Return the key of all bars."""
    keys = [element("li", element("i", class_=style), f" {name}") for style, name in KEYS]
    return element("ul", joined(keys), class_="legend")


def change_cell(change: Change, largest: float) -> Markup:
    """Return a bar with both numbers and the share that is kept under it."""
    return joined([bar(change, largest), element("span", change_words(change), class_="number")])


def change_words(change: Change) -> Markup:
    """Return both numbers and the share that is kept; lines break between the two only."""
    kept = "" if change.dense == change.slim else f"({words.percent(change.kept)})"
    return joined([whole(words.amounts(change)), " ", whole(kept)])


def whole(text: str) -> Markup:
    """Return text that stays on one line."""
    return element("span", text, class_="whole")
