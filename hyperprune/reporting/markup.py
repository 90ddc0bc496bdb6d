"""HTML that cannot be injected: whatever is not markup already is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

VOID = ("meta", "wbr")


class Markup(str):
    """Text that is HTML already; only ``element`` and ``joined`` make it."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """Return an element; children that are plain text are escaped, and attributes always.

    A trailing underscore in an attribute's name is dropped, another becomes a hyphen. ``None`` leaves one out.

    Example:
        >>> element("p", "a < b", element("b", "!"), class_="note", aria_hidden="true")
        '<p class="note" aria-hidden="true">a &lt; b<b>!</b></p>'
    """
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    start = f"<{name}{''.join(written)}>"
    return Markup(start if name in VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Sequence[str]) -> Markup:
    """Return the children one after another, plain text escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def raw(text: str) -> Markup:
    """Vouch for a text of our own, such as a style sheet."""
    return Markup(text)


def dotted(path: str) -> Markup:
    """Return a module's path that may break into lines after its dots and underscores.

    Example:
        >>> dotted("layer1.0")
        'layer1.<wbr>0'
    """
    return Markup(escape(path).replace(".", ".<wbr>").replace("_", "_<wbr>"))
