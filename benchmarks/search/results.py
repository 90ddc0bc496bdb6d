"""The file of results: one row a line, whole at any time, written by several processes if need be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.device import precision_here
from benchmarks.search.files import locked
from benchmarks.search.rows import Key
from benchmarks.search.settings import CHOOSING_SEED, PRESETS, Course
from hyperprune.files import write_whole

Row = dict[str, Any]
NAMES = tuple(Key.__dataclass_fields__)


def key_of(row: Row) -> Key:
    """Return what names a row."""
    return Key(**{name: row[name] for name in NAMES})


@dataclass
class Results:
    """Finished rows, on disk after every one."""

    path: Path
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what earlier calls wrote, if anything."""
        content = json.loads(path.read_text()) if path.exists() else {"settings": {}, "rows": []}
        return cls(path, content["settings"], {key_of(row): row for row in content["rows"]})

    def add(self, row: Row) -> None:
        """Take one row in and write the file; rows that other processes wrote meanwhile stay."""
        with locked(self.path.parent):
            now = Results.read(self.path)
            now.rows[key_of(row)] = row
            now.settings[row["preset"]] = settings_of(PRESETS[row["preset"]])
            write_whole(self.path, now.text())
        self.settings, self.rows = now.settings, now.rows

    def text(self) -> str:
        """Return the file's content: JSON with one row a line."""
        rows = ",\n".join(json.dumps(row) for row in self.rows.values())
        return f'{{"settings": {json.dumps(self.settings)},\n"rows": [\n{rows}\n]}}\n'

    def chosen_variant(self, key: Key) -> str | None:
        """Return the variant that the row of the first seed chose; None if that row is not there."""
        row = self.rows.get(key.of_seed(CHOOSING_SEED))
        return None if row is None or "failed" in row else row["variant"]

    def require(self, preset: str) -> None:
        """Make sure that the file's rows of a preset can be compared with new ones.

        Raises:
            SystemExit: they were run under other settings.
        """
        known = self.settings.get(preset)
        if known is not None and known != settings_of(PRESETS[preset]):
            raise SystemExit(
                f"{self.path} holds rows of the preset {preset!r} under other settings: name another file with "
                "--results, or remove those rows."
            )


def settings_of(courses: dict[str, Course]) -> dict[str, Any]:
    """Return a preset's courses, and what this machine computes them in, as plain numbers and words."""
    return {"precision": precision_here(), **{name: asdict(course) for name, course in courses.items()}}
