from __future__ import annotations

import copy

import pytest
import timm
import torch
from einops.layers.torch import Rearrange
from torch import nn

from hyperprune import DHP, Lean, hyperize, load_pruned, save_pruned
from hyperprune.errors import ModelError
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


class Rearranged(Attention):
    """Attention in the words of einops, whose layers were told the number of heads when they were made."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__(fused=False, heads=heads)
        self.apart = Rearrange("b n (three h d) -> three b h n d", three=3, h=heads)
        self.joined = Rearrange("b h n d -> b n (h d)")

    def forward(self, x):
        q, k, v = self.apart(self.qkv(x))
        scores = torch.einsum("bhid,bhjd->bhij", q * self.dim**-0.5, k)
        return self.proj(self.joined(torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)))


def test_heads_that_a_layer_of_einops_counts_go(tmp_path):
    x = torch.randn(2, 7, 24)
    hyper = hyperize(Rearranged(), x)
    hyper.bank.remove_(torch.tensor([False, True, False, False]))
    slim, proof = export_with_proof(hyper)
    assert slim.apart.axes_lengths == {"three": 3, "h": 3}
    assert proof.relative_error < 1e-6
    save_pruned(slim, tmp_path / "slim.safetensors")
    for again in (copy.deepcopy(slim), load_pruned(Rearranged(), tmp_path / "slim.safetensors")):
        assert torch.equal(again.eval()(x), slim.eval()(x))


def test_sizes_in_private_attributes_are_mended():
    class Private(nn.Module):
        def __init__(self):
            super().__init__()
            self._width, self.a, self.b = 6, nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x).view(-1, 3, self._width))

    hyper = hyperize(Private(), torch.randn(2, 3, 4))
    hyper.bank.keep_(torch.arange(6) < 4)
    assert export_with_proof(hyper)[0]._width == 4


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


class GroupedQuery(nn.Module):
    """Six query heads share two heads of keys and values, the fused way or by repeating keys and values."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.ratio, self.fused = 6, 2, 4, 3, fused
        self.q, self.k, self.v = nn.Linear(10, 24), nn.Linear(10, 8), nn.Linear(10, 8)
        self.proj = nn.Linear(24, 5)

    def forward(self, x):
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        parts = zip((self.q, self.k, self.v), sizes, strict=True)
        q, k, v = (layer(x).unflatten(-1, (size, self.dim)).transpose(1, 2) for layer, size in parts)
        if not self.fused:
            k, v = k.repeat_interleave(self.ratio, dim=1), v.repeat_interleave(self.ratio, dim=1)
        x = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.fused)
        return self.proj(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [True, False])
def test_with_grouped_queries_a_unit_is_a_key_head_with_all_its_query_heads(fused):
    hyper = hyperize(GroupedQuery(fused), torch.randn(2, 7, 10))
    group = hyper.coupling.group("q")
    assert (group.size, group.width, group.makers) == (2, 12, ("q", "k", "v"))
    hyper.bank.remove_(torch.tensor([True, False]))
    slim, proof = export_with_proof(hyper)
    assert (slim.heads, slim.kv_heads, slim.q.out_features, slim.v.out_features) == (3, 1, 12, 4)
    assert proof.relative_error < 1e-6


class Stream(nn.Module):
    """A residual stream with torch's own attention."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 24), nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4, **options)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.attention(y, y, y, need_weights=False)[0])


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}], ids=str)
def test_torchs_own_attention_loses_heads_together_with_the_stream(options):
    model, x = Stream(**options), torch.randn(2, 7, 5)
    hyper = hyperize(model, x)
    assert torch.equal(hyper(x), model(x))
    assert [(group.size, group.makers[0]) for group in hyper.coupling.groups] == [(4, "embed")]
    hyper.bank.remove_(torch.tensor([False, True, False, False]))
    slim, proof = export_with_proof(hyper)
    layer = slim.attention
    assert (layer.embed_dim, layer.num_heads, layer.head_dim, layer.kdim) == (18, 3, 6, 18)
    assert slim.embed.out_features == 18
    assert proof.relative_error < 1e-6


@pytest.mark.parametrize("generator", [Lean(), DHP(embedding=2)], ids=["lean", "dhp"])
@pytest.mark.parametrize(
    ("model", "shape", "width"),
    [
        (Attention(True), (2, 7, 24), 6),
        (Attention(False), (2, 7, 24), 6),
        (Attention(True, heads=1), (2, 7, 24), 24),
        (Rearranged(), (2, 7, 24), 6),
        (Rearranged(heads=1), (2, 7, 24), 24),
        (GroupedQuery(True), (2, 7, 10), 4),
        (GroupedQuery(False), (2, 7, 10), 4),
        (Stream(), (2, 7, 5), 6),
    ],
    ids=["fused", "written", "one head", "einsum", "einsum, one head", "grouped", "repeated", "torch"],
)
class TestWidth:
    def test_a_unit_is_one_channel_inside_every_head(self, model, shape, width, generator):
        hyper = hyperize(model, torch.randn(shape), attention="width", generator=generator)
        assert [group.size for group in hyper.coupling.groups] == [width]

    def test_the_start_is_bit_exact_and_any_widths_export_exactly(self, model, shape, width, generator):
        x = torch.randn(shape)
        hyper = hyperize(model, x, attention="width", generator=generator)
        assert torch.equal(hyper(x), model(x))
        with torch.no_grad():
            hyper.bank.latents.uniform_(0.5, 1.5)
        for kept in range(1, width):
            hyper.bank.keep_(torch.randperm(width) < kept)
            slim, proof = export_with_proof(hyper)
            assert proof.relative_error < 1e-5
        assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_what_attention_loses_must_be_known():
    with pytest.raises(ModelError, match=r"attention must be one of 'heads', 'width', not 'depth'"):
        hyperize(Attention(True), torch.randn(1, 7, 24), attention="depth")


class Crossed(nn.Module):
    """Two streams; ``how`` says what torch's own attention gets as query, key and value."""

    def __init__(self, how, **options):
        super().__init__()
        self.left, self.right, self.how = nn.Linear(5, 24), nn.Linear(4, 24), how
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)
        self.head = nn.Linear(24, 3)

    def forward(self, x, memory):
        return self.head(self.attention(*self.how(self.left(x), self.right(memory)))[0])


@pytest.mark.parametrize("attention", ["heads", "width"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 24, "vdim": 24}], ids=str)
@pytest.mark.parametrize(
    "how",
    [lambda q, m: (q, m, m), lambda q, m: (q + 1, q + 1, q), lambda q, m: (m, q, q * 2)],
    ids=["memory", "positions added to query and key", "three tensors"],
)
def test_torchs_own_attention_between_streams_loses_heads_with_both(how, options, attention):
    model, inputs = Crossed(how, **options).eval(), (torch.randn(2, 7, 5), torch.randn(2, 6, 4))
    hyper = hyperize(model, inputs, attention=attention)
    assert torch.equal(hyper(*inputs), model(*inputs))
    (group,) = hyper.coupling.groups
    assert group.size == {"heads": 4, "width": 6}[attention]
    hyper.bank.remove_(torch.arange(group.size) == 1)
    slim, proof = export_with_proof(hyper)
    assert slim.attention.embed_dim == slim.left.out_features == (18 if attention == "heads" else 20)
    assert proof.relative_error < 1e-6


def test_a_padding_mask_costs_no_heads():
    class Encoder(Crossed):
        def forward(self, x, padding):
            return self.head(self.attention(self.left(x), src_key_padding_mask=padding))

    model = Encoder(None)
    model.attention = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 20, batch_first=True), 2)
    padding = torch.arange(6).expand(3, 6) >= torch.tensor([[6], [4], [3]])
    hyper = hyperize(model.eval(), (torch.randn(3, 6, 5), padding))
    assert sorted(group.size for group in hyper.coupling.groups) == [4, 20, 20]
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 4 == 1)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-5
    assert slim.attention.layers[0].self_attn.num_heads == 3
    x = torch.randn(3, 6, 5)
    for grad in (True, False):  # without gradients torch's encoder packs what is not padding into nested tensors
        with torch.set_grad_enabled(grad):
            kept = ~padding
            torch.testing.assert_close(slim(x, padding)[kept], hyper.eval()(x, padding)[kept], rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    """One head, scaled by hand by the root of its width."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 16), nn.Linear(12, 5)
        self.q, self.k, self.v = (nn.Linear(16, 12) for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v)


@pytest.mark.parametrize("ids", [torch.zeros(1, 8, dtype=torch.long), torch.arange(3)[:, None]], ids=["alike", "one"])
def test_tokens_that_cannot_tell_how_a_product_is_scaled_keep_its_channels(ids):
    hyper = hyperize(Scaled().eval(), ids)
    assert "q" not in [group.name for group in hyper.coupling.groups]
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 2 == 0)
    others = torch.arange(12).view(2, 6)
    torch.testing.assert_close(export_with_proof(hyper)[0](others), hyper(others))
    assert "q" in [group.name for group in hyperize(Scaled().eval(), others).coupling.groups]


@pytest.mark.parametrize("joint", ["weights", "biases"])
def test_rows_of_a_joint_tensor_are_not_taken_for_rows_of_another(joint):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
            self.weights = nn.Parameter(torch.randn(48, 16) * 0.3)
            self.biases = nn.Parameter(torch.zeros(48))
            for name in "kqv":
                setattr(self, f"w{name}", nn.Parameter(torch.randn(16, 16) * 0.3))
                setattr(self, f"b{name}", nn.Parameter(torch.randn(16)))

        def forward(self, x):
            x = torch.relu(self.stem(x))
            weights = self.weights.chunk(3) if joint == "weights" else (self.wk, self.wq, self.wv)
            biases = self.biases.chunk(3) if joint == "biases" else (self.bk, self.bq, self.bv)
            k, q, v = (nn.functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v))

    hyper = hyperize(Mixed(), torch.randn(2, 5, 6))
    with torch.no_grad():
        for parameter in hyper.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 2 == 0)
    assert export_with_proof(hyper)[1].relative_error < 1e-5


def test_a_joint_projection_counts_what_each_of_its_parts_is_applied_to():
    model = Crossed(lambda q, m: (q, m, m)).eval()
    hyper = hyperize(model, (torch.randn(3, 6, 5), torch.randn(3, 12, 4)))
    macs = {layer.tensor: layer.macs for layer in hyper.cost.layers(hyper.cost.full)}
    assert macs["attention.in_proj_weight"] == 24 * (3 * 6 * 24 + 3 * 12 * 48)


def test_a_decoder_of_torchs_own_is_slim_in_every_part():
    class Decoder(Crossed):
        def forward(self, x, memory):
            return self.head(self.attention(self.left(x), self.right(memory)))

    model = Decoder(None)
    model.attention = nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 20, batch_first=True), 2)
    inputs = torch.randn(2, 7, 5), torch.randn(2, 6, 4)
    hyper = hyperize(model.eval(), inputs)
    assert sorted(group.size for group in hyper.coupling.groups) == [4, 20, 20]
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 4 == 1)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-6
    assert slim.attention.layers[1].multihead_attn.num_heads == 3


def test_rows_taken_out_of_a_bare_projection_are_still_its_own():
    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.weight, self.head = nn.Linear(5, 6), nn.Parameter(torch.randn(14, 6)), nn.Linear(8, 3)
            self.dims = [6, 8]

        def forward(self, x):
            x = torch.relu(self.stem(x))
            back, up = self.weight.split(self.dims)
            return self.head(torch.relu(nn.functional.linear(x + nn.functional.linear(x, back), up)))

    hyper = hyperize(Joint().eval(), torch.randn(3, 5))
    assert sorted(group.size for group in hyper.coupling.groups) == [6, 8]
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 1)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-6
    assert sum(slim.dims) == len(slim.weight) < 14


def test_torchs_own_attention_between_two_streams_of_which_one_is_the_input_keeps_them():
    class Cross(Stream):
        def forward(self, x):
            y = self.norm(self.embed(x))
            return self.head(self.attention(y, x.repeat(1, 1, 5)[..., :24], y)[0])

    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), Cross())
    hyper = hyperize(model, torch.randn(2, 7, 4))
    assert "0" in [group.name for group in hyper.coupling.groups]
    assert export_with_proof(hyper)[1].holds


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


class Detection(nn.Module):
    """A small DETR: positions from two tables side by side, larger than the image, and learned queries."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 12, 4, 4)
        self.project = nn.Conv2d(12, 16, 1)
        self.rows, self.columns = nn.Parameter(torch.rand(20, 8)), nn.Parameter(torch.rand(20, 8))
        self.queries = nn.Parameter(torch.rand(7, 16))
        self.transformer = nn.Transformer(16, 4, 1, 1, 20, dropout=0.0, batch_first=True)
        self.boxes = nn.Linear(16, 4)

    def forward(self, image):
        x = self.project(self.backbone(image))
        height, width = x.shape[-2:]
        across = self.columns[:width].unsqueeze(0).repeat(height, 1, 1)
        down = self.rows[:height].unsqueeze(1).repeat(1, width, 1)
        tokens = torch.cat([across, down], dim=-1).flatten(0, 1) + x.flatten(2).transpose(1, 2)
        return self.boxes(self.transformer(tokens, self.queries.expand(len(image), -1, -1))).sigmoid()


def test_learned_queries_and_tables_of_positions_go_with_the_stream():
    torch.manual_seed(0)
    model, image = Detection().eval(), torch.randn(2, 3, 24, 16)
    hyper = hyperize(model, image)
    assert not {stays.layer for stays in hyper.coupling.frozen} - {"boxes"}
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 4 == 1)
    slim, proof = export_with_proof(hyper)
    assert proof.relative_error < 1e-6
    width = slim.project.out_channels
    assert slim.rows.shape[1] + slim.columns.shape[1] == slim.queries.shape[1] == slim.transformer.d_model == width < 16
    larger = torch.randn(1, 3, 40, 32)
    assert torch.allclose(hyper(larger), slim(larger), atol=1e-6)
