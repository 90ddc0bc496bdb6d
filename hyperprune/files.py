"""Files that are whole at any time: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperprune.errors import FileError

SHOWN = 32  # letters of a file's name in that of its draft: longer names have no room for more


@contextmanager
def draft_of(path: str | Path) -> Iterator[Path]:
    """Hand out a draft in the same folder; it takes the place of ``path`` when the block ends well.

    Whatever goes wrong before that (an exception, a full disk, a kill), what stood at ``path`` stands there still.
    The draft has the suffix of ``path``. Missing folders are made; links stay links, and permissions as they were.

    Raises:
        FileError: ``path`` is a folder or a device, its folder cannot be written, or the disk is full. Of the block's
            own errors only those are meant that come from writing the draft; others leave it as they are.

    Example:
        >>> with draft_of("runs/numbers.json") as draft:  # doctest: +SKIP
        ...     draft.write_text("{}")
    """
    if not isinstance(path, (str, os.PathLike)):
        raise FileError(f"a file's path is needed, not {type(path).__name__}.")
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises where a folder above cannot be entered
        raise FileError(f"{path} is a folder; name a file in it, such as {path / 'slim'}.")
    place = Path(os.path.realpath(path))
    if os.path.exists(place) and not os.path.isfile(place):
        raise FileError(f"{path} is no regular file, and writing would replace it; name a file.")
    draft = place.with_name(f".{path.stem[:SHOWN]}-{secrets.token_hex(8)}{path.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = _begun(draft, place)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    try:
        yield draft
        _flush(draft)
        draft.chmod(mode)  # only now: a writer may have put a file of its own in the draft's place
        os.replace(draft, place)
    except OSError as error:
        if not _of_writing(error, draft):
            raise
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


def _begun(draft: Path, place: Path) -> int:
    """Make the draft, open to nobody who may not read what stands in its place; return the permissions it is to get."""
    if place.exists():
        mode = stat.S_IMODE(place.stat().st_mode)
        draft.touch(mode | stat.S_IRUSR | stat.S_IWUSR, exist_ok=False)
        return mode
    draft.touch(exist_ok=False)
    return stat.S_IMODE(draft.stat().st_mode)  # what the umask leaves


def _of_writing(error: OSError, draft: Path) -> bool:
    """Tell an error of the draft from one of whatever else runs meanwhile, such as a connection.

    A write to a full or broken disk is a plain OSError that names no file.
    """
    return str(error.filename) == str(draft) or (error.filename is None and type(error) is OSError)
