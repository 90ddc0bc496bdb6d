"""Parameters that forward() itself writes to in train mode."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from hyperprune import hyperize
from hyperprune.edits import edited
from hyperprune.trace import ExampleInputs

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Critic(nn.Module):
    """Three convolutions and a score; ``edit`` runs in train mode, on the second one."""

    def __init__(self, edit):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 12, 3, padding=1)
        self.fourth = nn.Conv2d(12, 6, 3, padding=1)
        self.score = nn.Linear(6, 1)
        self.edit = edit

    def forward(self, x):
        if self.training:
            self.edit(self.second)
        x = self.second(self.first(x).relu()).relu()
        return self.score(self.fourth(self.third(x).relu()).mean(dim=(2, 3)))


def clip(layer):
    layer.weight.data.clamp_(-0.1, 0.1)


def clip_a_view(layer):
    with torch.no_grad():
        layer.weight[:4].clamp_(-0.1, 0.1)


def decay_out(layer):
    torch.mul(layer.weight.detach(), 0.5, out=layer.weight.data)


def replace_data(layer):
    layer.weight.data = layer.weight.data * 0.5


def scale_all(layer):
    torch._foreach_mul_([layer.weight.data], 0.5)


def replace(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * 0.5)


EDITS = [clip, clip_a_view, decay_out, replace_data, scale_all, replace]


@pytest.mark.parametrize("edit", EDITS)
def test_every_way_to_write_to_a_weight_is_noticed(edit):
    model = Critic(edit)
    before = [parameter.clone() for parameter in model.parameters()]
    assert set(edited(model, ExampleInputs.of(X))) == {"second.weight"}
    assert all(map(torch.equal, before, model.parameters())), "on a copy"


@pytest.mark.parametrize("edit", EDITS)
def test_the_layer_stays_plain_and_trains_as_before(edit):
    torch.manual_seed(0)
    model = Critic(edit)
    hyper = hyperize(model, X)
    assert {group.name for group in hyper.coupling.groups} == {"third", "fourth"}
    assert "changed by forward() in train mode" in str(hyper.coupling)
    for mode in (True, False, True):
        assert torch.equal(hyper.train(mode)(X), model.train(mode)(X))


def test_what_is_set_by_the_first_data_alone_may_go():
    class Adapts(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
            self.register_buffer("ready", torch.tensor(0))

        def forward(self, x):
            if self.training and not self.ready:
                self.scale.data.copy_(1 / x.std(dim=(0, 2, 3), keepdim=True))
                self.ready.fill_(1)
            return x * self.scale

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Adapts(), nn.Conv2d(8, 2, 3))
    assert edited(model, ExampleInputs.of(X)) == {}


def test_nothing_runs_where_all_layers_are_known():
    class Once(nn.Identity):
        def forward(self, x):
            raise AssertionError("it ran")

    Once.__module__ = "torchvision.ops"
    assert edited(nn.Sequential(nn.Linear(2, 2), Once()), ExampleInputs.of(X)) == {}


def test_batch_norm_gets_two_examples():
    model = nn.Sequential(Critic(clip), nn.BatchNorm1d(1))
    assert set(edited(model, ExampleInputs.of(X[:1]))) == {"0.second.weight"}


def test_what_was_written_before_a_run_failed_counts():
    class Loss(nn.Module):
        def forward(self, x):
            raise ValueError("targets are needed in train mode")

    assert set(edited(nn.Sequential(Critic(clip), Loss()), ExampleInputs.of(X))) == {"0.second.weight"}


class Clipped(nn.Conv2d):
    """Clips where no look at the class tells that it asks for the mode, and only while gradients are taken."""

    @torch.no_grad()
    def clip(self):
        if getattr(self, "training"):  # noqa: B009
            self.weight.clamp_(-0.02, 0.02)

    def forward(self, x):
        if torch.is_grad_enabled():
            self.clip()
        return super().forward(x)


class EverySecond(nn.Conv2d):
    """Clips at every second step."""

    steps = 0

    def forward(self, x):
        self.steps += 1
        if self.training and self.steps % 2 == 0:
            self.weight.data.clamp_(-0.02, 0.02)
        return super().forward(x)


@pytest.mark.parametrize("made", [lambda: Clipped(8, 8, 3), lambda: EverySecond(8, 8, 3)])
def test_hidden_and_rare_edits_are_noticed_too(made):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), made(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    hyper = hyperize(model, X)
    assert [group.name for group in hyper.coupling.groups] == ["2", "3"]
    for mode in (True, True, True, False):
        assert torch.equal(hyper.train(mode)(X), model.train(mode)(X))


class Momentum(nn.Module):
    """An encoder, and its average over time (MoCo, BYOL); beside them a branch of its own."""

    def __init__(self, average):
        super().__init__()
        self.fast, self.slow = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)) for _ in range(2))
        self.other, self.head, self.average = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), average

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for fast, slow in zip(self.fast.parameters(), self.slow.parameters(), strict=True):
                    self.average(fast, slow)
        return self.fast(x), self.slow(x).detach(), self.head(self.other(x))


def in_place(fast, slow):
    slow.mul_(0.9).add_(fast, alpha=0.1)


def replaced(fast, slow):
    slow.data = slow.data * 0.9 + fast.data * 0.1


@pytest.mark.parametrize("average", [in_place, replaced])
def test_what_is_mixed_into_a_parameter_stays_with_it(average):
    torch.manual_seed(0)
    model = Momentum(average)
    found = edited(model, ExampleInputs.of(X))
    assert found["slow.0.weight"] == {"fast.0.weight"}
    assert not {name for name in found if not name.startswith("slow")}
    hyper = hyperize(model, X)
    assert [group.name for group in hyper.coupling.groups] == ["other"]
    for mode in (True, True, False):
        assert all(map(torch.equal, hyper.train(mode)(X), model.train(mode)(X)))


def test_an_edit_of_what_is_never_generated_costs_nothing():
    class Bounded(nn.BatchNorm2d):
        def forward(self, x):
            if self.training:
                self.weight.data.clamp_(min=0.1)
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Bounded(8), nn.Conv2d(8, 2, 3))
    hyper = hyperize(model, X)
    assert hyper.coupling.units == 8
    assert torch.equal(hyper.train()(X), model.train()(X))


def test_random_states_stay_as_found():
    class Draws(Critic):
        def forward(self, x):
            return super().forward(x) * (random.random() + np.random.rand())

    model = nn.Sequential(Draws(clip), nn.Dropout())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    edited(model, ExampleInputs.of(X))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
