"""What the README and the docs show runs, and what they link to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from hyperprune.labels import unregister

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


@pytest.fixture
def weights_on_disk(tmp_path, monkeypatch):
    """timm's real loading code, with a weights file made here instead of a download."""
    file = tmp_path / "resnet50.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50").state_dict(), file)
    create = timm.create_model

    def create_from_file(name, **options):
        return create(name, pretrained_cfg_overlay={"file": str(file)}, **options)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    return torch.load(file, weights_only=True)


def test_the_readme_snippet_runs_and_halves_the_macs_of_pretrained_weights(weights_on_disk, capsys):
    loader = [(torch.randn(4, 3, 64, 64), torch.randint(0, 1000, (4,))) for _ in range(2)]
    space = {"loader": loader, "criterion": nn.CrossEntropyLoss()}
    exec(blocks(ROOT / "README.md")[0], space)
    assert torch.equal(space["model"].conv1.weight, weights_on_disk["conv1.weight"])
    assert "groups" in capsys.readouterr().out
    assert space["search"].done
    assert 0.499 < space["search"].progress().macs_fraction <= 0.5
    assert type(space["slim"]) is type(space["model"])


def test_the_rule_shown_in_the_docs_registers():
    (example,) = [block for block in blocks(ROOT / "docs" / "architecture.md") if "@rule" in block]
    space: dict[str, object] = {}
    exec(example, space)
    assert unregister("mylib::scaled_relu") is space["scaled_relu"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []
