from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune import export_pruned, hyperize
from hyperprune.export import export_with_proof


class Residual(nn.Module):
    """A pre-norm residual block: the stream is read by a norm, a layer and the head."""

    def __init__(self, norm: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 1)
        self.norm = norm
        self.inner = nn.Conv2d(width, 20, 1)
        self.out = nn.Conv2d(20, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.out(torch.relu(self.normed(x)))
        return self.head(x.mean((2, 3)))

    def normed(self, x):
        return self.inner(self.norm(x))


class ChannelsLast(Residual):
    def normed(self, x):
        return self.inner(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class OwnLayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


NETWORKS = {
    "layer norm": lambda: ChannelsLast(nn.LayerNorm(12)),
    "layer norm with its own permutation": lambda: Residual(OwnLayerNorm2d(12)),
    "rms norm": lambda: ChannelsLast(nn.RMSNorm(12)),
    "group norm": lambda: Residual(nn.GroupNorm(3, 12)),
    "group norm of one group": lambda: Residual(nn.GroupNorm(1, 12)),
}


def trained(name: str) -> nn.Module:
    """A network whose norm has weights and biases that matter."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", NETWORKS)
class TestNormsOverChannels:
    def test_hyperize_is_bit_exact_in_eval_and_train_mode(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        for mode in (False, True):
            assert torch.equal(hyper.train(mode)(x), model.train(mode)(x))

    def test_the_residual_stream_is_prunable_and_the_export_exact(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        stream = hyper.coupling.group("embed")
        hyper.bank.remove_(torch.arange(hyper.coupling.units).eq(stream.start))
        slim, proof = export_with_proof(hyper)
        assert slim.embed.out_channels == 12 - stream.width
        assert proof.relative_error < 1e-6

    def test_removing_a_channel_changes_what_the_norm_computes_for_the_others(self, name):
        model, x = trained(name), torch.randn(2, 3, 5, 5)
        hyper = hyperize(model, x)
        before = hyper(x)
        hyper.bank.remove_(torch.arange(hyper.coupling.units).eq(hyper.coupling.group("embed").start))
        assert (hyper(x) - before).abs().max() > 1e-3

    def test_the_norm_is_a_plain_layer_again_after_export(self, name):
        model, x = trained(name), torch.randn(1, 3, 5, 5)
        slim = export_pruned(hyperize(model, x))
        assert type(slim.norm) is type(model.norm)
        assert not slim.norm._forward_pre_hooks
        assert torch.equal(slim.norm.weight, model.norm.weight)


def test_the_users_own_hooks_stay_on_the_norm():
    calls = []
    model = ChannelsLast(nn.LayerNorm(12))
    model.norm.register_forward_pre_hook(lambda module, args: calls.append(len(args)))
    slim = export_pruned(hyperize(model, torch.randn(1, 3, 5, 5)))
    calls.clear()
    slim(torch.randn(1, 3, 5, 5))
    assert calls == [1]


def test_a_norm_called_inside_another_layers_forward_keeps_its_channels():
    class Functional(Residual):
        def normed(self, x):
            rows = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (12,), self.norm.weight, self.norm.bias)
            return self.inner(rows.permute(0, 3, 1, 2))

    hyper = hyperize(Functional(nn.LayerNorm(12)), torch.randn(1, 3, 5, 5))
    assert [group.name for group in hyper.coupling.groups] == ["inner"]
    assert any("norm reads all channels" in frozen.reason for frozen in hyper.coupling.frozen)


def test_a_norm_whose_input_is_passed_by_name_counts_the_living_too():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.norm(input=self.a(x)))

    hyper = hyperize(Named(), torch.randn(2, 3))
    hyper.bank.remove_(torch.arange(8) < 3)
    slim, proof = export_with_proof(hyper)
    assert slim.norm.normalized_shape == (5,)
    assert not slim.norm._forward_pre_hooks
    assert not slim.norm._forward_pre_hooks_with_kwargs
    assert proof.relative_error < 1e-6
