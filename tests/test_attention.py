from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from hyperprune import hyperize
from hyperprune.export import export_with_proof


class Attention(nn.Module):
    """Multi-head attention, fused or written out, whose sizes are attributes."""

    def __init__(self, fused: bool, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.dim, self.inner, self.fused = heads, width // heads, width, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.dim**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, self.inner))


@pytest.mark.parametrize("fused", [True, False])
class TestHeads:
    def test_a_head_is_a_unit_of_query_key_and_value(self, fused):
        hyper = hyperize(Attention(fused), torch.randn(1, 7, 24))
        group = hyper.coupling.group("qkv")
        assert (group.size, group.width) == (4, 18)
        assert group.readers == ("proj",)

    def test_removing_a_head_exports_exactly_and_mends_the_sizes(self, fused):
        hyper = hyperize(Attention(fused), torch.randn(2, 7, 24))
        hyper.bank.remove_(torch.tensor([False, True, False, False]))
        slim, proof = export_with_proof(hyper)
        assert (slim.heads, slim.dim, slim.inner) == (3, 6, 18)
        assert slim.qkv.out_features == 54
        assert proof.relative_error < 1e-6


def test_attention_whose_head_count_cannot_be_mended_keeps_its_heads():
    class Literal(Attention):
        def forward(self, x):
            q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2 + 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
            x = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(x.transpose(1, 2).reshape(x.shape[0], x.shape[2], 12 + 12))

    model = nn.Sequential(nn.Linear(7, 24), Literal(True), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3))
    hyper = hyperize(model, torch.randn(1, 5, 7))
    assert "1.qkv" not in [group.name for group in hyper.coupling.groups]
    assert "2" in [group.name for group in hyper.coupling.groups]


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_transformers_lose_heads_hidden_units_and_residual_channels_exactly(name):
    torch.manual_seed(0)
    model, x = timm.create_model(name), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
    hyper = hyperize(model, x).eval()
    assert torch.equal(hyper(x), model.eval()(x))
    half = torch.rand(hyper.coupling.units) < 0.5
    half[[group.start for group in hyper.coupling.groups]] = True
    hyper.bank.keep_(half)
    slim, proof = export_with_proof(hyper)
    assert type(slim) is type(model)
    assert proof.relative_error < 1e-5
    assert hyper.cost.total([1] * len(hyper.coupling.groups)).macs < 0.1 * hyper.cost.total(hyper.cost.full).macs
