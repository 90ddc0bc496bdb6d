"""The Hub: the standard mixin, against local folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hyperprune import Budget, prune
from hyperprune.errors import CheckpointError, ModelError
from hyperprune.hub import HubModel
from hyperprune.plan import plans_of
from tests.models import residual

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def slim() -> nn.Module:
    return prune(residual(), X, Budget(macs=0.5)).eval()


def test_a_slim_network_comes_back_from_a_folder(slim: nn.Module, tmp_path: Path) -> None:
    HubModel(slim).save_pretrained(tmp_path / "repo")
    found = HubModel.from_pretrained(str(tmp_path / "repo"), model=residual())
    assert isinstance(found, HubModel)
    assert type(found.model) is type(slim)
    assert not found.training
    assert plans_of(found.model) == plans_of(slim)
    assert torch.equal(found(X), slim(X))


def test_the_folder_is_what_the_hub_expects(slim: nn.Module, tmp_path: Path) -> None:
    HubModel(slim, spec="timm/resnet18").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text()) == {"spec": "timm/resnet18"}
    assert "library_name: hyperprune" in (tmp_path / "README.md").read_text()


def test_what_came_back_can_be_saved_again(slim: nn.Module, tmp_path: Path) -> None:
    HubModel(slim, spec="timm/resnet18").save_pretrained(tmp_path / "a")
    HubModel.from_pretrained(tmp_path / "a", model=residual()).save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()
    assert torch.equal(HubModel.from_pretrained(tmp_path / "b", model=residual())(X), slim(X))


def test_a_repository_may_name_a_model_of_a_library(tmp_path: Path) -> None:
    import torchvision

    dense = torchvision.models.get_model("squeezenet1_1").eval()
    x = torch.randn(1, 3, 64, 64)
    HubModel(dense, spec="torchvision/squeezenet1_1").save_pretrained(tmp_path)
    assert torch.equal(HubModel.from_pretrained(tmp_path)(x), dense(x))


def test_a_push_uploads_the_folder(slim: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    def upload(self: object, *, repo_id: str, folder_path: Path, **_: object) -> str:
        uploaded[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return "url"

    class Created:
        repo_id = "me/slim"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, **_: Created())
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    assert HubModel(slim).push_to_hub("me/slim") == "url"
    for name, content in uploaded["me/slim"].items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(HubModel.from_pretrained(tmp_path, model=residual())(X), slim(X))


@pytest.mark.parametrize("entry", ["spec", "model"])
def test_a_repository_cannot_name_code_of_its_choice(slim: nn.Module, tmp_path: Path, entry: str) -> None:
    HubModel(slim).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({entry: "os:abort"}))
    with pytest.raises(ModelError, match="names no model of timm or torchvision"):
        HubModel.from_pretrained(tmp_path)


def test_a_damaged_repository_is_refused(slim: nn.Module, tmp_path: Path) -> None:
    HubModel(slim).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        HubModel.from_pretrained(tmp_path, model=residual())


@pytest.mark.parametrize("argument", ["checkpoint_path=weights.pth", "pretrained_cfg_overlay={'file': 'w.pth'}"])
def test_a_repository_cannot_name_a_file_to_unpickle(slim: nn.Module, tmp_path: Path, argument: str) -> None:
    HubModel(slim).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"spec": f"timm/resnet10t,num_classes=3,{argument}"}))
    with pytest.raises(ModelError, match=r"could name a file.*\n?.*model=\.\.\."):
        HubModel.from_pretrained(tmp_path)
