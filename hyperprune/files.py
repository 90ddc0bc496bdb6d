"""Files that are whole at any time: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperprune.errors import FileError


@contextmanager
def draft_of(path: str | Path) -> Iterator[Path]:
    """Hand out a draft in the same folder; it takes the place of ``path`` when the block ends well.

    Whatever goes wrong before that (an exception, a full disk, a kill), what stood at ``path`` stands there still.
    The draft has the suffix of ``path``. Missing folders are made.

    Raises:
        FileError: ``path`` is a folder, or its folder cannot be written.

    Example:
        >>> with draft_of("runs/numbers.json") as draft:  # doctest: +SKIP
        ...     draft.write_text("{}")
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises where a folder above cannot be entered
        raise FileError(f"{path} is a folder; name a file in it, such as {path / 'slim'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    draft = Path(name)
    try:
        os.close(handle)
        yield draft
        draft.chmod(_usual_mode())  # only now: a writer may have put a file of its own in the draft's place
        _flush(draft)
        os.replace(draft, path)
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}. What stood there before stays.") from error
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file whole or not at all, and return its path.

    Raises:
        FileError: as ``draft_of``.
    """
    data = content.encode() if isinstance(content, str) else content
    with draft_of(path) as draft:
        draft.write_bytes(data)
    return Path(path)


def _flush(path: Path) -> None:
    """Let the content reach the disk before the name does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _usual_mode() -> int:
    """Return the permissions a new file gets (mkstemp's are for the owner only)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
