"""Seeded ways to damage a checkpoint file."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from hyperprune.checkpoint.storage import CHECKSUM, DOCUMENT

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e300, "", "x", "\ud800", "__class__",
    [], {}, [[]], [0, 0], [-1],
)  # fmt: skip


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip a few bits, anywhere or in the header."""
    changed = bytearray(data)
    end = len(data) if rng.random() < 0.5 else header_end(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off, or the beginning."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.8 else data[at:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Put bytes in, or repeat some that are there."""
    at = rng.randrange(len(data) + 1)
    start = rng.randrange(len(data))
    piece = rng.choice((rng.randbytes(rng.randint(1, 64)), bytes(8), data[start : start + 100]))
    return data[:at] + piece + data[at:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Write zeros, noise or another part of the file over a part of it."""
    at, length, start = rng.randrange(len(data)), rng.randint(1, 200), rng.randrange(len(data))
    piece = rng.choice((bytes(length), rng.randbytes(length), data[start : start + length]))
    return data[:at] + piece + data[at + len(piece) :]


def header_length(data: bytes, rng: random.Random) -> bytes:
    """Lie about the length of the header."""
    return struct.pack("<Q", rng.choice((0, 1, 2**16, 2**27, 2**40, 2**63, 2**64 - 1, rng.randrange(10**4)))) + data[8:]


def deep(data: bytes, rng: random.Random) -> bytes:
    """Nest lists very deep, in the header or in the document."""
    depth = rng.choice((200, 5_000, 100_000))
    nested = "[" * depth + "]" * depth
    header, rest = split(data)
    if rng.random() < 0.5:
        return join(nested, rest)
    header["__metadata__"][DOCUMENT] = header["__metadata__"][DOCUMENT].replace('"plans":', f'"plans":{nested},"x":', 1)
    return join(json.dumps(header), rest)


def table(data: bytes, rng: random.Random) -> bytes:
    """Edit the table of tensors: swap two, rename one, change a shape, a dtype or an offset."""
    header, rest = split(data)
    names = [name for name in header if name != "__metadata__"]
    a, b = rng.sample(names, 2)
    kind = rng.randrange(6)
    if kind == 0:
        header[a], header[b] = header[b], header[a]
    elif kind == 1:
        header[rng.choice((a + "x", "", "__metadata__"))] = header.pop(a)
    elif kind == 2:
        header[a]["shape"] = rng.choice((header[a]["shape"][::-1], [*header[a]["shape"], 1], [2**62, 4], [-1], [], [0]))
    elif kind == 3:
        header[a]["dtype"] = rng.choice(("F64", "F16", "I32", "U8", "F8_E4M3", "XXX", "BOOL"))
    elif kind == 4:
        header[a]["data_offsets"] = rng.choice(
            ([0, 0], [0, 2**63], header[b]["data_offsets"], [4, 0], [-4, 0], ["a", 0])
        )
    else:
        del header[a]
    return join(json.dumps(header), rest)


def notes(data: bytes, rng: random.Random) -> bytes:
    """Edit the header's notes around the document."""
    header, rest = split(data)
    found = header["__metadata__"]
    kind = rng.randrange(5)
    if kind == 0:
        del found[rng.choice(list(found))]
    elif kind == 1:
        found[rng.choice(list(found))] = rng.choice(("", "x", "{}", "[]", "null", "NaN", "1e999", '{"version":1}'))
    elif kind == 2:
        found["added"] = "harmless"
    elif kind == 3:
        found[DOCUMENT], found[CHECKSUM] = found[CHECKSUM], found[DOCUMENT]
    else:
        header["__metadata__"] = rng.choice(ODD[:-5])
    return join(json.dumps(header), rest)


def document(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, repeat or move one value of the document; it stays JSON."""
    header, rest = split(data)
    content = json.loads(header["__metadata__"][DOCUMENT])
    edit_value(content, rng)
    header["__metadata__"][DOCUMENT] = json.dumps(content)
    return join(json.dumps(header), rest)


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip, truncate, insert, overwrite, header_length, deep, table, notes, document,
)  # fmt: skip


def edit_value(content: Any, rng: random.Random) -> None:
    """Change one place in nested lists and dicts, chosen at random."""
    owner, key = rng.choice(list(_places(content)))
    kind = rng.randrange(5)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif kind == 2 and isinstance(owner, list):
        owner.reverse()
    elif kind == 3 and type(owner[key]) is int:
        owner[key] += rng.choice((-1, 1, 100))
    else:
        owner[key] = rng.choice(ODD)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def header_end(data: bytes) -> int:
    """Return where the tensors begin."""
    return 8 + int.from_bytes(data[:8], "little")


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header, and the bytes of the tensors."""
    return json.loads(data[8 : header_end(data)]), data[header_end(data) :]


def join(header: str, rest: bytes) -> bytes:
    """Put a file together again."""
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest
