"""Values read from JSON, one kind each: the value itself, or an error that says where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hyperprune.errors import CheckpointError

LARGEST = 2**31 - 1
LONGEST_NAME = 2**20
LONGEST_LIST = 2**24


def record(value: Any, where: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where} must be an object, not {_kind(value)}.")
    return dict(value)


def require(data: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Make sure that an object has exactly these entries."""
    if missing := sorted(set(names) - set(data)):
        raise CheckpointError(f"{where} lacks {missing[0]!r}.")
    if strange := sorted(set(data) - set(names)):
        raise CheckpointError(f"{where} has an unknown entry {strange[0][:80]!r}.")


def array(value: Any, where: str, longest: int = LONGEST_LIST) -> list[Any]:
    """Return a list of bounded length."""
    if not isinstance(value, list):
        raise CheckpointError(f"{where} must be a list, not {_kind(value)}.")
    if len(value) > longest:
        raise CheckpointError(f"{where} has {len(value):,} items; at most {longest:,} are read.")
    return value


def row(value: Any, where: str, length: int) -> list[Any]:
    """Return a list of exactly this length."""
    if len(array(value, where)) != length:
        raise CheckpointError(f"{where} must have {length} items, not {len(value)}.")
    return list(value)


def whole(value: Any, where: str) -> int:
    """Return an integer from 0 to ``LARGEST``; true and false are none."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise CheckpointError(f"{where}: {_kind(value)} must be an integer from 0 to {LARGEST}.")
    return value


def wholes(value: Any, where: str) -> list[int]:
    """Return a list of integers."""
    return [whole(item, where) for item in array(value, where)]


def number(value: Any, where: str) -> float:
    """Return a finite number."""
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        raise CheckpointError(f"{where}: {_kind(value)} must be a number of at most {LARGEST}.")
    return float(value)


def text(value: Any, where: str) -> str:
    """Return a string of bounded length."""
    if not isinstance(value, str):
        raise CheckpointError(f"{where} must be a string, not {_kind(value)}.")
    if len(value) > LONGEST_NAME:
        raise CheckpointError(f"{where} has {len(value):,} characters; at most {LONGEST_NAME:,} are read.")
    return value


def texts(value: Any, where: str) -> dict[str, str]:
    """Return an object whose values are strings."""
    return {text(key, where): text(item, f"{where}[{key[:80]!r}]") for key, item in record(value, where).items()}


def _kind(value: Any) -> str:
    shown = repr(value) if isinstance(value, (bool, float, str, type(None))) else ""
    if type(value) is int:
        shown = str(value) if abs(value) < 10**18 else "a number of many digits"
    return shown[:80] or type(value).__name__
