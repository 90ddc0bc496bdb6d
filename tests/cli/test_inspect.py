"""``hyperprune inspect``: the table, the words about a layer, JSON, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperprune import cli
from hyperprune.coupling import CouplingMap

MODEL = ["inspect", "tests.models:residual", "--input", "3x16x16"]


def test_the_table_names_groups_and_what_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(MODEL) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "3 groups, 22 units" in text
    assert "stays: fc, 3 channels" in text


def test_json_is_the_coupling(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*MODEL, "--json"]) == cli.EXIT_OK
    coupling = CouplingMap.from_json(json.loads(capsys.readouterr().out))
    assert [group.size for group in coupling.groups] == [6, 8, 8]


def test_one_layer_is_explained_and_an_unknown_one_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*MODEL, "--layer", "block1.conv1"]) == cli.EXIT_OK
    assert "8 units" in capsys.readouterr().out
    assert cli.main([*MODEL, "--layer", "block9"]) == cli.EXIT_FAILED
    assert "no layer 'block9'" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_written_beside_the_table(
    suffix: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"groups{suffix}"
    assert cli.main([*MODEL, "--plot", str(path)]) == cli.EXIT_OK
    captured = capsys.readouterr()
    assert path.read_bytes().startswith(start)
    assert "3 groups" in captured.out
    assert captured.err == f"wrote {path}\n"


def test_a_picture_goes_with_json_and_leaves_it_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*MODEL, "--plot", str(tmp_path / "groups.png"), "--json"]) == cli.EXIT_OK
    assert "groups" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["groups.txt", "groups"])
def test_a_picture_of_no_format_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*MODEL, "--plot", str(tmp_path / name)]) == cli.EXIT_FAILED
    assert "end it in .png" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
