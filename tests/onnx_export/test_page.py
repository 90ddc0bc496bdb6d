"""What docs/deploy.md shows runs, in the order in which it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_docs import ROOT, blocks


def test_the_page_exports_a_slim_network_and_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "deploy.md"):
        exec(block, space)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("slim.onnx: one file of ")
    assert said[2].startswith("  ONNX Runtime on 5 x 3 x 64 x 64: relative error ")
    assert int(said[3]) > 0
    assert space["scores"].shape == (7, 1000)
    torch.testing.assert_close(torch.from_numpy(space["scores"]), space["slim"](torch.zeros(7, 3, 64, 64)))
