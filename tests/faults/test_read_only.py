"""Folders that may be read and not written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from hyperprune.checkpoint import save_pruned
from hyperprune.errors import FileError
from hyperprune.files import write_whole

NOBODY = 65534


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with one file that the present user may not write; root gives up its rights meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        (folder / "old").write_text("old")
        folder.chmod(0o555)
        if root:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_read_only_folder_is_named_and_left_alone(read_only: Path) -> None:
    for write in (lambda path: write_whole(path, "new"), lambda path: save_pruned(nn.Linear(1, 1), path)):
        for path in (read_only / "old", read_only / "new", read_only / "deeper" / "new"):
            with pytest.raises(FileError, match=f"{path} cannot be written: Permission denied"):
                write(path)
    assert [file.name for file in read_only.iterdir()] == ["old"]
    assert (read_only / "old").read_text() == "old"
