"""The documentation as tests see it: blocks of code, headings and links of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PRINTED = "<!-- printed -->"  # stands before a block that shows what the blocks before it print

_LINK = re.compile(r"(?<!\\)!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word behind the fence.
        text: what lies between the fences.
        line: the line of the page on which the text starts.
        printed: whether it shows what was printed.
    """

    language: str
    text: str
    line: int
    printed: bool


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Return the fenced blocks of a page, in order."""
    found: list[Block] = []
    opened, language, before = 0, "", ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("```") and not opened:
            opened, language, before = number, line[3:].strip(), lines[number - 2] if number > 1 else ""
        elif line == "```":
            found.append(Block(language, "\n".join(lines[opened : number - 1]) + "\n", opened + 1, before == PRINTED))
            opened = 0
    assert not opened, f"{page}: the block of line {opened} never ends"
    return tuple(found)


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if not inside and line != "```":
            kept.append(line)
    return "\n".join(kept)


def links_of(page: Path) -> list[str]:
    """Return the targets of all links and pictures."""
    return _LINK.findall(_CODE.sub("`code`", prose_of(page)))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    seen: dict[str, int] = {}
    anchors = set()
    for line in prose_of(page).splitlines():
        if re.match(r"#{1,6} ", line):
            anchor = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if anchor in seen else anchor)
            seen[anchor] = seen.get(anchor, 0) + 1
    return frozenset(anchors)


def commands_of(page: Path) -> list[tuple[int, str]]:
    """Return the lines of a page's shell blocks with their numbers, comments and empty lines left out."""
    shell = [block for block in blocks_of(page) if block.language in ("sh", "bash", "console")]
    lines = [(block.line + at, line) for block in shell for at, line in enumerate(block.text.splitlines())]
    return [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def inline_code_of(page: Path) -> list[str]:
    """Return what stands between single backticks."""
    return [text.strip("`") for text in _CODE.findall(prose_of(page))]


def differences(shown: str, said: str, tolerance: float = 0.1) -> Iterator[str]:
    """Say where the printed text differs from the one shown; numbers may be off by a tenth.

    Training on another processor or version of torch gives other figures in the last places.
    """
    expected, found = shown.split(), said.split()
    if len(expected) != len(found):
        yield f"shown:\n{shown}\nprinted:\n{said}"
        return
    for left, right in zip(expected, found, strict=True):
        if _NUMBER.sub("#", left) != _NUMBER.sub("#", right):
            yield f"{left!r} is shown, {right!r} was printed"
        for one, other in zip(_numbers(left), _numbers(right), strict=False):
            if abs(one - other) > tolerance * abs(one):
                yield f"{left!r} is shown, {right!r} was printed"


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]
