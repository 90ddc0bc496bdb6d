"""Files that are whole at any time."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hyperprune.errors import FileError
from hyperprune.files import draft_of, write_whole


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a" / "b.json", "{}")
    assert path.read_text() == "{}"
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]


def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    written = write_whole(tmp_path / "ours", b"")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def write_half(path: Path, error: type[BaseException]) -> None:
    with draft_of(path) as draft:
        draft.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_what_stood_there_stays_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = write_whole(tmp_path / "old", "old")
    wanted = FileError if isinstance(error, OSError) else error
    with pytest.raises(wanted):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder; name a file in it"):
        write_whole(tmp_path, "x")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_whole(tmp_path / "a" / "b", "x")
