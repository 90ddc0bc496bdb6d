"""Copies of modules that keep activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperprune import export_pruned, hyperize
from hyperprune.copies import copied


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
