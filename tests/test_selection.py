from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune import export_pruned, hyperize
from hyperprune.errors import ModelError
from tests.models import residual


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("keep", "groups"),
    [
        ([], ["0", "2"]),
        (["0"], ["2"]),
        (["[0-1]"], ["2"]),
        ([lambda name, module: isinstance(module, nn.Linear) and module.out_features == 8], ["0"]),
    ],
)
def test_kept_layers_keep_their_output_channels(keep, groups):
    hyper = hyperize(chain(), torch.randn(1, 4), keep=keep)
    assert [group.name for group in hyper.coupling.groups] == groups


def test_a_kept_layer_is_reported_as_kept_by_the_user():
    hyper = hyperize(chain(), torch.randn(1, 4), keep=["0"])
    assert "6 channels made by 0 stay: is kept by the user" in hyper.coupling.explain("0")


def test_only_restricts_the_search_to_the_named_layers():
    hyper = hyperize(chain(), torch.randn(1, 4), only=["2"])
    assert [group.name for group in hyper.coupling.groups] == ["2"]
    hyper.bank.remove_(torch.arange(8) < 5)
    assert export_pruned(hyper)[2].out_features == 3


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name():
    model = nn.Sequential()
    model.add_module("stem_conv", nn.Linear(4, 4))
    model.add_module("head", nn.Linear(4, 2))
    with pytest.raises(ModelError, match="Did you mean stem_conv"):
        hyperize(model, torch.randn(1, 4), keep=["stem_cov"])


def test_a_pattern_of_another_type_is_an_error():
    with pytest.raises(ModelError, match="a name, a glob"):
        hyperize(chain(), torch.randn(1, 4), keep=[3])


@pytest.mark.parametrize("pattern", ["1", nn.BatchNorm1d, lambda name, module: name == "1"])
def test_a_pattern_that_matches_norms_alone_says_whose_the_channels_are(pattern):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    with pytest.raises(ModelError, match="Name the convolution"):
        hyperize(model, torch.randn(3, 4), keep=[pattern])
    assert hyperize(model, torch.randn(3, 4), keep=["[2]"]).coupling.units == 6


def test_a_layer_itself_can_be_kept():
    model = residual()
    keep = [model.block1.conv1]
    assert (
        hyperize(model, torch.randn(2, 3, 8, 8), keep=keep).coupling
        == hyperize(model, torch.randn(2, 3, 8, 8), keep=["block1.conv1"]).coupling
    )
    with pytest.raises(ModelError, match="keep: nothing matches this Conv2d"):
        hyperize(model, torch.randn(2, 3, 8, 8), keep=[nn.Conv2d(3, 4, 1)])
