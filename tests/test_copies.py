"""Copies of modules that keep activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from hyperprune import DHP, Lean, export_pruned, hyperize
from hyperprune.copies import copied
from hyperprune.generators import Generator


class Keeps(nn.Module):
    """Keeps what it computed last, as feature extractors and distillation code do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.maps: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.feature = torch.relu(self.first(x))
        self.maps["first"] = [self.feature]
        return self.out(self.feature)


def test_what_is_kept_comes_along_without_its_history() -> None:
    model = Keeps()
    model(torch.ones(2, 4))
    twin = copied(model)
    assert torch.equal(twin.feature, model.feature)
    assert twin.maps["first"][0] is twin.feature
    assert twin.feature.data_ptr() != model.feature.data_ptr()
    assert not twin.feature.requires_grad
    assert model.feature.requires_grad


def test_shared_tensors_are_shared() -> None:
    layer = nn.Linear(2, 2)
    twin = copied(layer, shared=[layer.weight])
    assert twin.weight is layer.weight
    assert twin.bias is not layer.bias


def test_a_model_that_keeps_activations_is_hyperized_and_exported_after_a_step() -> None:
    model, x = Keeps(), torch.randn(2, 4)
    model(x)
    hyper = hyperize(model, x)
    hyper(x).sum().backward()
    hyper.bank.keep_(torch.arange(8) < 4)
    assert export_pruned(hyper).first.out_features == 4


@pytest.mark.parametrize("generator", [Lean(), DHP()], ids=["lean", "DHP"])
def test_attributes_of_parameters_come_along_to_the_slim_network(generator: Generator) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].weight.no_decay = model[0].bias.no_decay = True
    hyper = hyperize(model, torch.randn(1, 4), generator=generator)
    hyper.bank.remove_(torch.arange(8) < 5)
    slim = export_pruned(hyper)
    assert [name for name, p in slim.named_parameters() if hasattr(p, "no_decay")] == ["0.bias", "2.weight"]
    assert next(name for name, p in hyper.model.named_parameters() if hasattr(p, "no_decay")) == "0.bias"


def test_removing_a_parametrization_from_a_copy_leaves_the_original_alone() -> None:
    layer = weight_norm(nn.Linear(3, 2))
    made = copied(layer)
    remove_parametrizations(made, "weight")
    x = torch.ones(1, 3)
    assert type(made) is nn.Linear
    assert torch.equal(made(x), layer(x))
