"""Parameters that forward() itself writes to in train mode."""

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
    assert edited(model, ExampleInputs.of(X)) == {"second.weight"}
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
    assert edited(model, ExampleInputs.of(X)) == frozenset()


def test_nothing_runs_where_no_code_asks_for_the_mode():
    class Once(nn.Sequential):
        def forward(self, x):
            raise AssertionError("it ran")

    assert edited(Once(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()), ExampleInputs.of(X)) == frozenset()


def test_batch_norm_gets_two_examples():
    model = nn.Sequential(Critic(clip), nn.BatchNorm1d(1))
    assert edited(model, ExampleInputs.of(X[:1])) == {"0.second.weight"}


def test_random_state_stays_as_found():
    model = nn.Sequential(Critic(clip), nn.Dropout())
    state = torch.get_rng_state()
    edited(model, ExampleInputs.of(X))
    assert torch.equal(state, torch.get_rng_state())
