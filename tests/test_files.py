"""Files that are whole at any time."""

from __future__ import annotations

import os
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


def test_the_umask_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", None)  # between two calls of it another thread's files would be open to all
    write_whole(tmp_path / "a", "")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_was_there_keeps_its_permissions_and_nobody_reads_its_draft(tmp_path: Path, mode: int) -> None:
    path = write_whole(tmp_path / "a", "old")
    path.chmod(mode)
    with draft_of(path) as draft:
        assert stat.S_IMODE(draft.stat().st_mode) & ~0o600 & ~mode == 0
        draft.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_link_stays_one_and_what_it_names_is_written(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "real")
    for text in ("first", "second"):
        with draft_of(link) as draft:
            assert draft.suffix == ".json"
            draft.write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "real").read_text() == text
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["real"]


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


@pytest.mark.parametrize(
    "error", [ConnectionError("the line is down"), FileNotFoundError(2, "No such file", "photo.png"), FileError("no")]
)
def test_an_error_of_something_else_in_the_block_is_not_called_one_of_writing(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as raised, draft_of(tmp_path / "new"):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder; name a file in it"):
        write_whole(tmp_path, "x")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_whole(tmp_path / "a" / "b", "x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="no regular file"):
        write_whole(tmp_path / "pipe", "content")
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    assert write_whole(tmp_path / ("n" * 251 + ".txt"), "content").read_text() == "content"
