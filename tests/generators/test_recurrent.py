"""Recurrent layers: their input weights are generated, whatever list torch keeps of them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune import DHP, Budget, HyperModel, Search, export_pruned, hyperize, load_pruned, prune, save_pruned
from hyperprune.hyper import plain_copy

LAYERS = {
    "LSTM": partial(nn.LSTM, batch_first=True),
    "LSTM, both directions, two layers": partial(nn.LSTM, batch_first=True, bidirectional=True, num_layers=2),
    "LSTM, projected": partial(nn.LSTM, batch_first=True, proj_size=16),
    "GRU": partial(nn.GRU, batch_first=True),
    "RNN": partial(nn.RNN, batch_first=True, bias=False, nonlinearity="relu"),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


class Reader(nn.Module):
    """Reads text from left to right: a convolution's columns are the steps of a recurrent layer (CRNN)."""

    def __init__(self, layer: Any, units: int = 32) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d((4, 1)))
        self.rnn = layer(48, units)
        made = (self.rnn.proj_size or units) * (1 + self.rnn.bidirectional)
        self.out = nn.Linear(made, 5)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.conv(x).flatten(1, 2).transpose(1, 2)
        return self.out(self.rnn(columns)[0])


def image() -> Tensor:
    return torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))


def reader(layer: Any, units: int = 32) -> Reader:
    torch.manual_seed(0)
    return Reader(layer, units)


def searched(layer: Any) -> tuple[HyperModel, torch.optim.Optimizer]:
    hyper = hyperize(reader(layer), image())
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.05), momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=0.95), steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        hyper(image()).square().mean().backward()
        optimizer.step()
        search.step()
    return hyper, optimizer


@every_layer
def test_outputs_and_gradients_are_those_of_the_plain_network(layer: Any) -> None:
    model, x = reader(layer), image()
    hyper = hyperize(model, x)
    assert [(group.size, group.name) for group in hyper.coupling.groups] == [(24, "conv.0")]
    assert torch.equal(hyper(x), model(x))
    for net in (model, hyper):
        net(x).square().sum().backward()
    own, generated = model.rnn.weight_ih_l0, hyper.model.rnn.parametrizations.weight_ih_l0.original
    torch.testing.assert_close(generated.grad, own.grad)
    assert hyper.bank.latents.grad.abs().min() > 0


@every_layer
def test_a_search_ends_in_a_plain_layer_that_reads_less_and_can_be_saved(layer: Any, tmp_path: Path) -> None:
    hyper, _ = searched(layer)
    slim = export_pruned(hyper)
    assert type(slim.rnn) is type(hyper.model.rnn).__mro__[1]
    assert slim.rnn.input_size < 48
    save_pruned(slim, tmp_path / "slim.safetensors")
    loaded = load_pruned(reader(layer), tmp_path / "slim.safetensors")
    assert loaded.rnn._flat_weights[0] is loaded.rnn.weight_ih_l0
    assert torch.equal(loaded.eval()(image()), slim.eval()(image()))


def test_a_plain_copy_notes_its_own_weights() -> None:
    hyper, _ = searched(LAYERS["GRU"])
    plain = plain_copy(hyper)
    assert [id(weight) for weight in plain.rnn._flat_weights] == [id(weight) for weight in plain.rnn.parameters()]


def test_the_last_export_is_not_what_ran_before() -> None:
    """A list of weights that torch made before a cut, or before a step, would still give an output."""
    hyper, optimizer = searched(LAYERS["GRU"])
    slim = export_pruned(hyper).eval()
    before = slim(image())
    with torch.no_grad():
        slim.rnn.weight_ih_l0.mul_(2)
    assert not torch.equal(slim(image()), before)
    hyper.eval()
    before = hyper(image())
    hyper(image()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(hyper(image()), before)


def test_copies_after_a_run_and_other_types_take_their_own_weights() -> None:
    hyper, _ = searched(LAYERS["LSTM"])
    hyper(image()).sum()  # leaves no graph behind that a copy would stumble over
    other = copy.deepcopy(hyper).double()
    with torch.no_grad():
        hyper.model.rnn.parametrizations.weight_ih_l0.original.zero_()
    x = image().double()
    assert other.eval()(x).dtype == torch.float64
    slim = export_pruned(other)
    torch.testing.assert_close(slim.eval()(x), other(x))
    assert len(slim.rnn._flat_weights) == 4
    assert slim.rnn._flat_weights[0] is slim.rnn.weight_ih_l0


def test_large_weights_train_as_those_of_the_plain_network() -> None:
    model, x = reader(LAYERS["LSTM"], units=512), image()
    hyper = hyperize(model, x)
    for net in (model, hyper):
        net(x).square().sum().backward()
    own, generated = model.rnn.weight_ih_l0, hyper.model.rnn.parametrizations.weight_ih_l0.original
    torch.testing.assert_close(generated.grad, own.grad)


def test_a_hypernetwork_makes_the_input_weights_too() -> None:
    hyper = hyperize(reader(LAYERS["GRU"]), image(), generator=DHP())
    hyper.bank.remove_(torch.arange(24) % 3 == 0)
    assert export_pruned(hyper).rnn.input_size == 32


def counted(model: nn.Module, x: Tensor) -> int:
    hyper = hyperize(model, x)
    return hyper.cost.total(hyper.cost.full).macs


def test_all_weights_count_at_every_step() -> None:
    """Four gates; the second layer reads both directions of the first."""
    x = torch.randn(2, 5, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(3, 8), nn.Linear(14, 2)
            self.rnn = nn.LSTM(8, 7, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(self.a(x))[0])

    layers = 2 * (4 * 7 * 8 + 4 * 7 * 7) + 2 * (4 * 7 * 14 + 4 * 7 * 7)
    assert counted(Net(), x) == 10 * (3 * 8 + layers + 14 * 2)
    slim = prune(Net(), x, Budget(macs=0.9))
    assert counted(slim, x) <= 0.9 * counted(Net(), x)


def test_a_cell_loses_inputs() -> None:
    class Stepwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.cell, self.out = nn.Linear(3, 16), nn.LSTMCell(16, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x.unbind(1):
                state = self.cell(self.a(step), state)
            return self.out(state[0])

    hyper = hyperize(Stepwise(), torch.randn(2, 4, 3))
    hyper.bank.remove_(torch.arange(16) < 6)
    assert export_pruned(hyper).cell.input_size == 10
