"""Models as people write them: shared layers, bare parameters, odd inputs and outputs, other types and layouts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, StochasticDepth

from hyperprune import Budget, export_onnx, hyperize, prune, report, save_program
from hyperprune.errors import ModelError, NothingPrunableError, TraceError
from hyperprune.export import export_with_proof
from hyperprune.labels import Call, rule, unregister
from hyperprune.labels.reasons import INEXACT, SIZE_IN_FORWARD
from hyperprune.latency import compare_latency
from hyperprune.trace import ExampleInputs
from tests.halving import halved, runs, stays, units_of
from tests.models import Net, randomise_norms_

IMAGE = (2, 3, 8, 8)


class TestSharedLayers:
    def test_a_layer_called_several_times_loses_the_same_channels_at_every_call(self) -> None:
        parts = {"stem": nn.Conv2d(3, 8, 1), "step": nn.Conv2d(8, 8, 3, padding=1), "out": nn.Conv2d(8, 2, 1)}

        def run(net: Any, x: Tensor) -> Tensor:
            x = torch.relu(net.stem(x))
            for _ in range(3):
                x = x + torch.relu(net.step(x))
            return net.out(x)

        hyper, slim = halved(Net(parts, run), torch.randn(IMAGE))
        assert units_of(hyper, "step") == 8
        assert slim.step.in_channels == slim.step.out_channels == slim.stem.out_channels < 8

    def test_a_block_with_a_batch_norm_may_be_called_twice(self) -> None:
        block = {"conv": nn.Conv2d(8, 8, 3, padding=1), "norm": nn.BatchNorm2d(8)}
        parts = {"stem": nn.Conv2d(3, 8, 1), **block, "out": nn.Conv2d(8, 2, 1)}

        def run(net: Any, x: Tensor) -> Tensor:
            x = torch.relu(net.stem(x))
            for _ in range(2):
                x = x + torch.relu(net.norm(net.conv(x)))
            return net.out(x)

        hyper, _ = halved(Net(parts, run), torch.randn(IMAGE))
        assert units_of(hyper, "conv") == 8

    def test_one_layer_under_two_names_is_still_one_layer_after_export(self) -> None:
        layer = nn.Conv2d(6, 6, 3, padding=1)
        parts = {"stem": nn.Conv2d(3, 6, 1), "a": layer, "b": layer, "out": nn.Conv2d(6, 2, 1)}
        _, slim = halved(Net(parts, lambda net, x: net.out(net.b(torch.relu(net.a(net.stem(x)))))), torch.randn(IMAGE))
        assert slim.a is slim.b
        assert slim.a.in_channels < 6

    def test_modules_that_share_a_parameter_stay_whole_and_tied_while_the_rest_goes(self) -> None:
        parts = {name: nn.Conv2d(i, o, 1) for name, i, o in [("stem", 3, 6), ("a", 6, 6), ("b", 6, 6), ("mid", 6, 8)]}
        parts["b"].weight = parts["a"].weight
        parts["out"] = nn.Conv2d(8, 2, 1)
        model = Net(parts, lambda net, x: net.out(torch.relu(net.mid(net.b(torch.relu(net.a(net.stem(x))))))))
        hyper, slim = halved(model, torch.randn(IMAGE))
        assert slim.a.weight is slim.b.weight
        assert "shared between modules" in stays(hyper, "a") + stays(hyper, "b")
        assert slim.mid.out_channels < 8

    def test_an_embedding_tied_to_the_head_leaves_the_hidden_width_prunable(self) -> None:
        parts = {"table": nn.Embedding(11, 6), "up": nn.Linear(6, 16), "down": nn.Linear(16, 6)}
        parts["head"] = nn.Linear(6, 11, bias=False)
        parts["head"].weight = parts["table"].weight
        model = Net(parts, lambda net, x: net.head(net.down(torch.relu(net.up(net.table(x))))))
        _, slim = halved(model, torch.arange(8).reshape(2, 4))
        assert slim.head.weight is slim.table.weight
        assert slim.up.out_features < 16


class TestBareParameters:
    def test_functional_convolutions_and_linear_layers_are_pruned(self) -> None:
        parts = {
            "kernel": nn.Parameter(torch.randn(8, 3, 3, 3)),
            "shift": nn.Parameter(torch.randn(8)),
            "mix": nn.Parameter(torch.randn(6, 8)),
            "out": nn.Linear(6, 2),
        }

        def run(net: Any, x: Tensor) -> Tensor:
            x = torch.relu(F.conv2d(x, net.kernel, net.shift, padding=1)).mean((2, 3))
            return net.out(torch.relu(F.linear(x, net.mix)))

        _, slim = halved(Net(parts, run), torch.randn(IMAGE))
        assert slim.kernel.shape[0] == slim.shift.shape[0] == slim.mix.shape[1] < 8
        assert slim.mix.shape[0] == slim.out.in_features < 6

    def test_a_functional_grouped_convolution_follows_an_attribute(self) -> None:
        parts = {"stem": nn.Conv2d(3, 12, 1), "kernel": nn.Parameter(torch.randn(12, 1, 3, 3)), "width": 12}
        parts["out"] = nn.Conv2d(12, 2, 1)
        model = Net(parts, lambda net, x: net.out(F.conv2d(net.stem(x), net.kernel, groups=net.width)))
        _, slim = halved(model, torch.randn(IMAGE))
        assert slim.width == slim.kernel.shape[0] < 12


class Shortcut(nn.Module):
    """A function as a layer (option A of the CIFAR ResNet)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_zero_padded_shortcut_written_as_a_lambda() -> None:
    parts = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "conv1": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "conv2": nn.Conv2d(16, 16, 3, padding=1),
        "shortcut": Shortcut(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)),
        "fc": nn.Linear(16, 2),
    }

    def run(net: Any, x: Tensor) -> Tensor:
        x = torch.relu(net.stem(x))
        x = torch.relu(net.conv2(torch.relu(net.conv1(x))) + net.shortcut(x))
        return net.fc(x.mean((2, 3)))

    hyper, slim = halved(Net(parts, run), torch.randn(IMAGE))
    assert units_of(hyper, "stem") == units_of(hyper, "conv2") == 8
    assert slim.conv2.out_channels == slim.stem.out_channels + 8


class GhostNorm(nn.BatchNorm2d):
    """Batch norm over parts of a batch while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(GhostNorm, self).forward(part) for part in x.chunk(2)])


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.4),
    "dropout of whole channels": lambda: nn.Dropout2d(0.4),
    "alpha dropout": lambda: nn.AlphaDropout(0.4),
    "stochastic depth": lambda: StochasticDepth(0.5, "row"),
    "drop path": lambda: timm.layers.DropPath(0.5),
    "ghost batch norm": lambda: randomise_norms_(GhostNorm(8)),
    "frozen batch norm": lambda: frozen_norm(8),
    "timm's frozen batch norm": lambda: timm.layers.FrozenBatchNormAct2d(8),
    "sync batch norm": lambda: randomise_norms_(nn.SyncBatchNorm(8)),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
}


def frozen_norm(width: int) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(width)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 1.5)
    return norm


@pytest.mark.parametrize("name", RANDOM)
def test_layers_that_behave_otherwise_in_train_mode(name: str) -> None:
    if name == "sync batch norm" and not torch.cuda.is_available():
        pytest.skip("trains on GPUs only")
    parts = {"stem": nn.Conv2d(3, 8, 3, padding=1), "odd": RANDOM[name](), "mid": nn.Conv2d(8, 8, 1)}
    parts["out"] = nn.Conv2d(8, 2, 1)
    model = Net(parts, lambda net, x: net.out(torch.relu(x0 := net.odd(net.stem(x))) + net.mid(x0)))
    _, slim = halved(model, torch.randn(4, 3, 8, 8))
    assert slim.stem.out_channels < 8
    assert all(len(b) < 8 for b in slim.odd.buffers() if b.ndim)


def test_the_buffers_of_a_frozen_batch_norm_are_sliced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), frozen_norm(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    _, slim = halved(model, torch.randn(IMAGE))
    assert {len(buffer) for buffer in slim[1].buffers()} == {slim[0].out_channels}


class TwoTowers(nn.Module):
    """Two inputs, the second perhaps missing, and any wrapping of the outputs."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(6, 8)
        self.mid, self.out = nn.Linear(8, 6), nn.Linear(6, 2)
        self.wrap = wrap

    def forward(self, left: Tensor, right: Tensor | None = None, *, scale: float = 1.0) -> Any:
        x = self.a(left) if right is None else self.a(left) + self.b(right)
        hidden = torch.relu(self.mid(torch.relu(x * scale)))
        return self.wrap(self.out(hidden), self.out(-hidden))


@dataclass
class Pair:
    first: Tensor
    second: Tensor


LEFT, RIGHT = torch.randn(3, 4), torch.randn(3, 6)
INPUTS = {
    "one tensor": LEFT,
    "a tuple": (LEFT, RIGHT),
    "keywords": {"left": LEFT, "right": RIGHT},
    "keywords and a number": {"left": LEFT, "right": RIGHT, "scale": 0.5},
}
WRAPPINGS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tuple": lambda a, b: (a, b),
    "a list in a dict": lambda a, b: {"all": [a, b], "none": None},
    "an ordered dict": lambda a, b: OrderedDict(out=a, aux=b),
    "a dataclass": Pair,
}


@pytest.mark.parametrize("given", INPUTS)
def test_several_inputs(given: str) -> None:
    _, slim = halved(TwoTowers(lambda a, b: a), INPUTS[given])
    assert slim.mid.out_features < 6
    assert slim.a.out_features < 8


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_several_outputs(wrapping: str) -> None:
    _, slim = halved(TwoTowers(WRAPPINGS[wrapping]), (LEFT, RIGHT))
    assert type(slim(LEFT, RIGHT)) is type(WRAPPINGS[wrapping](LEFT, RIGHT))
    assert slim.mid.out_features < 6


def test_a_list_of_tensors_as_one_argument() -> None:
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "out": nn.Conv2d(16, 2, 1)}
    model = Net(parts, lambda net, xs: net.out(torch.relu(torch.cat([net.a(xs[0]), net.b(xs[1])], 1))))
    _, slim = halved(model, ([torch.randn(IMAGE), torch.randn(IMAGE)],))
    assert slim.a.out_channels + slim.b.out_channels == slim.out.in_channels < 16


def test_auxiliary_classifiers_of_googlenet_follow_in_train_mode() -> None:
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    x = torch.randn(2, 3, 64, 64)
    _, slim = halved(randomise_norms_(model), x)
    outputs = slim.train()(x)
    assert [tuple(out.shape) for out in (outputs.logits, outputs.aux_logits1, outputs.aux_logits2)] == [(2, 1000)] * 3
    assert slim.aux1.conv.conv.in_channels < model.aux1.conv.conv.in_channels


def test_a_segmentation_network_returns_its_ordered_dict() -> None:
    backbone = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 3, 2, 1), mid=nn.Conv2d(8, 12, 3, 2, 1)))
    body = torchvision.models._utils.IntermediateLayerGetter(backbone, {"stem": "aux", "mid": "out"})
    fcn = torchvision.models.segmentation.fcn.FCNHead
    model = torchvision.models.segmentation.FCN(body, fcn(12, 5), fcn(8, 5))
    _, slim = halved(model, torch.randn(2, 3, 16, 16))
    assert list(slim(torch.randn(1, 3, 16, 16))) == ["out", "aux"]
    assert slim.backbone.mid.out_channels < 12


def test_a_feature_extractor_keeps_the_channels_of_its_features() -> None:
    model = timm.create_model("resnet10t", features_only=True, pretrained=False)
    _, slim = halved(randomise_norms_(model), torch.randn(1, 3, 64, 64))
    features = slim(torch.randn(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == model.feature_info.channels()


def test_a_detection_backbone_with_a_feature_pyramid() -> None:
    model = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=2)
    hyper, slim = halved(model, torch.randn(1, 3, 64, 64))
    assert [f.shape[1] for f in slim(torch.randn(1, 3, 64, 64)).values()] == [256] * 5
    assert units_of(hyper, "body.layer4.0.conv1") == 512
    trained = dict(model.named_parameters())
    assert all(p.requires_grad == trained[name].requires_grad for name, p in slim.named_parameters())


def test_a_feature_pyramid_ties_its_levels() -> None:
    parts = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 8, 3, 2, 1), "fpn": FeaturePyramidNetwork([6, 8], 10)}
    parts["head"] = nn.Conv2d(10, 2, 1)

    def run(net: Any, x: Tensor) -> list[Tensor]:
        low = torch.relu(net.a(x))
        levels = net.fpn(OrderedDict(low=low, high=torch.relu(net.b(low))))
        return [net.head(level) for level in levels.values()]

    _, slim = halved(Net(parts, run), torch.randn(IMAGE))
    assert slim.head.in_channels < 10
    assert len({block[0].in_channels for block in slim.fpn.layer_blocks}) == 1


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (1, 3, 20, 12)])
def test_other_batches_and_images_than_the_example(shape: tuple[int, ...]) -> None:
    model = timm.create_model("test_convnext", pretrained=False, num_classes=7)
    hyper, slim = halved(model, torch.randn(2, 3, 32, 32))
    x = torch.randn(shape[0], 3, 4 * shape[2], 4 * shape[3])
    left, right = runs(hyper, x, training=False)[0], runs(slim, x, training=False)[0]
    assert (left - right).abs().max() <= 1e-5 * left.abs().max()


def small_resnet() -> nn.Module:
    return randomise_norms_(timm.create_model("test_resnet", pretrained=False, num_classes=7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_a_model_is_kept(dtype: torch.dtype) -> None:
    model, x = small_resnet().to(dtype), torch.randn(2, 3, 32, 32, dtype=dtype)
    hyper, slim = halved(model, x, bound={torch.float64: 1e-10}.get(dtype, 0.1))
    assert {tensor.dtype for tensor in slim.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert slim(x).dtype is dtype
    _, proof = export_with_proof(hyper.double())
    assert proof.relative_error <= 1e-10


def test_the_memory_format_is_kept() -> None:
    model = small_resnet().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    _, slim = halved(model, x)
    wide = [p for p in slim.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    assert not any(p.is_contiguous() for p in wide)


def test_parts_that_are_not_trained_stay_so_while_searching_and_after_export() -> None:
    model = small_resnet()
    model.conv1.requires_grad_(False)
    model.layer1.requires_grad_(False)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    hyper, slim = halved(model, torch.randn(2, 3, 32, 32))
    assert {name for name, p in slim.named_parameters() if not p.requires_grad} == fixed
    searched = [p for p in hyper.model.parameters() if not p.requires_grad]
    assert len(searched) == len(fixed)
    hyper(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is None for p in searched)
    assert hyper.bank.latents.grad is not None


class Stack(nn.Sequential):
    """A Sequential with a forward of its own."""

    def __init__(self, *layers: nn.Module, **options: Any) -> None:
        super().__init__(*layers)
        self.options = options

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args) * kwargs.get("scale", self.options["scale"])


def test_a_subclass_of_sequential_that_takes_anything() -> None:
    model = Stack(nn.Conv2d(3, 8, 1), Stack(nn.ReLU(), nn.Conv2d(8, 6, 1), scale=0.5), nn.Conv2d(6, 2, 1), scale=2.0)
    x = torch.randn(IMAGE)
    _, slim = halved(model, x)
    assert slim.options == {"scale": 2.0}
    assert torch.equal(slim(x, scale=4.0), 2 * slim(x))


class CachedBias(nn.Module):
    """Attention whose bias is looked up once in eval mode and kept."""

    def __init__(self, heads: int = 4, width: int = 3) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.proj = nn.Linear(6, 3 * heads * width), nn.Linear(heads * width, 2)
        self.table = nn.Parameter(torch.randn(heads, 5))
        self.register_buffer("places", torch.arange(25).reshape(5, 5) % 5, persistent=False)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> CachedBias:
        super().train(mode)
        self.cache = {} if mode else self.cache
        return self

    def bias(self) -> Tensor:
        if self.training:
            return self.table[:, self.places]
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.table[:, self.places]
        return self.cache["cpu"]

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) + self.bias()).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, length, self.heads * self.width))


def test_a_model_that_has_cached_its_attention_biases_in_eval_mode() -> None:
    model, x = CachedBias().eval(), torch.randn(2, 5, 6)
    with torch.no_grad():
        model(x)
    assert model.cache
    _, slim = halved(model, x)
    assert model.cache
    assert slim.table.shape[0] == slim.heads < 4
    assert slim.train().eval()(x).shape == (2, 5, 2)


def test_a_forward_that_depends_on_values_is_refused_with_its_line_and_a_way_out() -> None:
    model = Net({"a": nn.Conv2d(3, 4, 1)}, lambda net, x: net.a(x) if x.sum() > 0 else -net.a(x))
    with pytest.raises(TraceError, match=r"(?s)test_odd_models\.py:\d+.*example inputs that take the branch"):
        hyperize(model, torch.randn(IMAGE))


@torch.library.custom_op("oddtests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


halve.register_autograd(lambda context, gradient: gradient / 2)


class Doubled(torch.autograd.Function):
    """An activation with a gradient of its own."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def with_activation(function: Callable[[Tensor], Tensor]) -> nn.Module:
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "out": nn.Conv2d(8, 2, 1)}
    return Net(parts, lambda net, x: net.out(torch.relu(net.b(function(net.a(x))))))


@pytest.fixture
def halving_is_known() -> Iterator[None]:
    @rule("oddtests::halve")
    def halving(call: Call) -> Any:
        return call.labels(call.arg("x"))

    yield
    unregister("oddtests::halve")


def test_what_a_custom_operation_without_a_rule_touches_stays_and_is_reported() -> None:
    hyper, slim = halved(with_activation(halve), torch.randn(IMAGE))
    assert slim.a.out_channels == 8
    assert slim.b.out_channels < 8
    assert stays(hyper, "a") == "no rule for oddtests::halve"
    assert "models.py" in next(f.where for f in hyper.coupling.frozen if f.layer == "a")


@pytest.mark.usefixtures("halving_is_known")
def test_a_rule_of_the_users_makes_a_custom_operation_prunable() -> None:
    _, slim = halved(with_activation(halve), torch.randn(IMAGE))
    assert slim.a.out_channels < 8
    assert slim.b.out_channels < 8


def test_an_autograd_function_is_looked_into_and_keeps_its_own_gradient() -> None:
    model, x = with_activation(Doubled.apply), torch.randn(IMAGE)
    _, slim = halved(model, x)
    assert slim.a.out_channels < 8
    slim(x).sum().backward()
    assert slim.a.weight.grad is not None


class TestWeightsThatAreBuffers:
    """Fixed filters and projections: nothing gates a buffer, so what it reads stays; what it makes may go."""

    def test_of_a_convolution(self) -> None:
        net = Net(
            {"stem": nn.Conv2d(3, 8, 3), "after": nn.Conv2d(6, 7, 3), "out": nn.Conv2d(7, 2, 1)},
            lambda net, x: net.out(torch.relu(net.after(torch.relu(F.conv2d(torch.relu(net.stem(x)), net.filters))))),
        )
        net.register_buffer("filters", torch.randn(6, 8, 1, 1))
        hyper, slim = halved(net, torch.randn(IMAGE))
        assert "a buffer" in stays(hyper, "stem")
        assert slim.filters.shape[0] == slim.after.in_channels

    def test_of_a_linear_layer(self) -> None:
        net = Net(
            {"stem": nn.Linear(5, 8), "after": nn.Linear(6, 7), "out": nn.Linear(7, 2)},
            lambda net, x: net.out(torch.relu(net.after(torch.relu(F.linear(torch.relu(net.stem(x)), net.random))))),
        )
        net.register_buffer("random", torch.randn(6, 8))
        hyper, slim = halved(net, torch.randn(4, 5))
        assert "a buffer" in stays(hyper, "stem")
        assert slim.after.in_features == slim.random.shape[0]


class Experts(nn.Module):
    """A sparse mixture: how many tokens an expert sees depends on their values."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        weights, chosen = self.gate(tokens).softmax(-1).topk(1, -1)
        sums = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            mine = torch.where(chosen[:, 0] == index)[0]
            sums.index_add_(0, mine, expert(tokens[mine]) * weights[mine])
        return x + sums.view_as(x)


def test_sizes_that_depend_on_values_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(5, 8), Experts(), nn.Linear(8, 3))
    hyper, _ = halved(model, torch.randn(2, 6, 5))
    assert units_of(hyper, "1.experts.0.0") == 12


def test_a_lazy_layer_is_to_be_called_once_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet.*Call the model once"):
        hyperize(model, torch.randn(IMAGE))


class Expanding(nn.Module):
    """A size in expand() where -1 would do."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.dim = 8
        self.queries = nn.Parameter(torch.randn(1, 4, 8))
        self.embed, self.inner, self.out = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.written = written

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), 4, 8 if self.written else self.dim)
        return self.out(torch.relu(self.inner(torch.cat([queries, self.embed(x)], 1))))


def test_a_size_in_expand_follows_its_attribute_and_stays_where_it_is_a_number() -> None:
    hyper, slim = halved(Expanding(written=False), torch.randn(2, 6, 5))
    assert units_of(hyper, "embed") == 8
    assert slim.dim == slim.queries.shape[-1] < 8
    hyper, _ = halved(Expanding(written=True), torch.randn(2, 6, 5))
    assert units_of(hyper, "embed") == 0
    assert units_of(hyper, "inner") == 12


class OptionA(nn.Module):
    """A shortcut that pads with as many zeros as there are channels: a size that no attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 7, 1)
        self.wide, self.out = nn.Conv2d(7, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        short = torch.cat([x, x.new_zeros(x.shape)], 1)
        x = self.wide(torch.relu(self.inner(x)))
        x = x + short
        return self.out(torch.relu(x))


def test_a_line_that_no_slim_network_can_run_keeps_its_channels() -> None:
    hyper, _ = halved(OptionA(), torch.randn(IMAGE))
    assert units_of(hyper, "inner") == 7
    assert units_of(hyper, "first") == units_of(hyper, "wide") == 0
    assert INEXACT in stays(hyper, "wide")


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM; the network around it asks for its first state."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gates = self.gates(torch.cat([x, state[0]], 1))
        take, keep, show, new = gates.split(self.hidden, 1)
        cell = keep.sigmoid() * state[1] + take.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell

    def start(self, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        shape = (batch, self.hidden, height, width)
        return torch.zeros(shape), torch.zeros(shape)


class Video(nn.Module):
    """Frames [batch, time, 3, height, width] through a convolutional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Conv2d(3, 5, 1), ConvLSTMCell(5, 6), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell.start(len(x), *x.shape[-2:])
        for frame in x.unbind(1):
            state = self.cell(torch.relu(self.embed(frame)), state)
        return self.out(state[0])


def test_the_state_that_a_network_makes_for_its_recurrent_cell_loses_channels() -> None:
    hyper, slim = halved(Video(), torch.randn(2, 3, 3, 4, 5))
    assert units_of(hyper, "embed") == 5
    assert units_of(hyper, "cell.gates") == 4 * 6
    assert slim.cell.hidden == slim.out.in_channels < 6


class Accumulated(nn.Module):
    """A sum that starts as zeros, of a size written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.new_zeros(len(x), 6, *x.shape[2:]) + self.first(x)
        return self.out(torch.relu(self.inner(x)))


def test_zeros_of_a_written_size_keep_what_they_meet_and_say_so() -> None:
    hyper, _ = halved(Accumulated(), torch.randn(IMAGE))
    assert units_of(hyper, "inner") == 7
    assert units_of(hyper, "first") == 0
    assert SIZE_IN_FORWARD in stays(hyper, "first")


class Conditioned(nn.Module):
    """Scales and shifts an image by one number per example, stretched to an embedding of written length."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.embed, self.out = nn.Conv2d(3, 6, 1), nn.Linear(4, 12), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3)).unsqueeze(1).expand(-1, 4)
        scale, shift = self.embed(level)[:, :, None, None].chunk(2, 1)
        return self.out(torch.relu(self.image(x) * (1 + scale) + shift))


def test_a_layer_keeps_what_it_reads_of_a_stretched_number() -> None:
    hyper, slim = halved(Conditioned(), torch.randn(IMAGE))
    assert (units_of(hyper, "image"), units_of(hyper, "embed")) == (6, 12)
    assert slim.embed.in_features == 4


class Upcast(nn.Module):
    """Attention weights in float32, whatever the network's type: in float64 it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(5, 12), nn.Linear(12, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(torch.relu(self.embed(x))).chunk(3, -1)
        weights = (query @ key.transpose(1, 2) / 2).float().softmax(-1)
        return self.out(weights @ value.float())


def test_a_network_that_runs_in_float32_alone_is_rehearsed_in_float32() -> None:
    hyper, _ = halved(Upcast(), torch.randn(2, 6, 5))
    assert units_of(hyper, "embed") == 12


class Transposed(nn.Module):
    """GPT-2's linear layers: the weight lies the other way round, inputs first."""

    def __init__(self, inputs: int, outputs: int, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return torch.addmm(self.bias, x, self.weight)
        return torch.mm(x, self.weight) + self.bias


@pytest.mark.parametrize("fused", [True, False])
def test_a_weight_may_lie_the_other_way_round(fused: bool) -> None:
    model = nn.Sequential(
        Transposed(5, 8, fused), nn.ReLU(), Transposed(8, 9, fused), nn.GELU(), Transposed(9, 3, fused)
    )
    hyper, slim = halved(model, torch.randn(4, 5))
    assert hyper.coupling.units == 17
    assert slim[2].weight.shape == (slim[0].bias.numel(), slim[2].bias.numel())


@pytest.mark.parametrize(
    "act",
    [
        *(torch.negative, torch.absolute, torch.sinh, torch.asinh, torch.atan, torch.sinc, torch.erfc, torch.fix),
        *(lambda x: torch.clip(x, -1, 1), lambda x: F.rrelu(x), lambda x: torch.exp2(x.clip(-2, 2))),
        *(lambda x: torch.subtract(x, 1), lambda x: torch.fmax(x, -x), lambda x: torch.multiply(x, x)),
        *(lambda x: torch.divide(x, 2), lambda x: torch.xlogy(x, x.abs() + 1), lambda x: torch.logaddexp(x, -x)),
    ],
)
def test_what_treats_each_element_by_itself_is_no_obstacle(act: Callable[[Tensor], Tensor]) -> None:
    parts = {"a": nn.Conv2d(3, 8, 1), "out": nn.Conv2d(8, 2, 1)}
    hyper, _ = halved(Net(parts, lambda net, x: net.out(act(net.a(x)))).eval(), torch.randn(IMAGE))
    assert units_of(hyper, "a") == 8


class Equalised(nn.Module):
    """StyleGAN's convolution: the weight times a number that its constructor works out, or its forward()."""

    def __init__(self, inputs: int, outputs: int, fixed: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.Parameter(torch.randn(outputs))
        self.scale = (inputs * 9) ** -0.5
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale if self.fixed else self.weight[0].numel() ** -0.5
        return F.conv2d(x, self.weight * scale, self.bias, padding=1)


def test_a_weight_times_a_number_is_still_that_weight() -> None:
    model = nn.Sequential(
        Equalised(3, 8, True), nn.LeakyReLU(0.2), Equalised(8, 6, True), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    hyper, slim = halved(model, torch.randn(IMAGE))
    assert hyper.coupling.units == 14
    assert slim[2].scale == model[2].scale


def test_a_number_that_follows_from_a_weights_shape_keeps_its_channels() -> None:
    head = (nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Equalised(8, 6, False), nn.ReLU(), *head)
    hyper, _ = halved(model, torch.randn(IMAGE))
    assert (units_of(hyper, "0"), units_of(hyper, "4")) == (0, 7)


class InPlace(nn.Module):
    """Normalises the very tensor it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.first(x.sub_(0.5).div_(0.25))))


def test_a_model_may_change_its_input_in_place_and_the_users_tensor_stays() -> None:
    x = torch.randn(IMAGE)
    before = x.clone()
    hyper = hyperize(InPlace(), x)
    hyper.bank.keep_(torch.arange(8) < 4)
    assert export_with_proof(hyper)[1].relative_error < 1e-5
    assert torch.equal(x, before)


def test_files_reports_and_timings_of_such_a_model_leave_the_users_tensor_alone(tmp_path: Path) -> None:
    model, x = InPlace(), torch.randn(IMAGE)
    before = x.clone()
    slim = prune(model, x, Budget(macs=0.5, activation_bytes=0.9))
    assert save_program(slim, x, tmp_path / "slim.pt2").relative_error < 1e-5
    report(model, slim, x)
    compare_latency(model, slim, x, backends=("eager",), runs=1)
    if find_spec("onnxscript"):
        assert export_onnx(slim, x, tmp_path / "slim.onnx").relative_error < 1e-4
    assert torch.equal(x, before)


def test_a_float32_network_may_return_float64() -> None:
    parts = {"first": nn.Conv2d(3, 8, 3), "out": nn.Conv2d(8, 2, 3)}
    hyper, _ = halved(Net(parts, lambda net, x: net.out(torch.relu(net.first(x))).double()), torch.randn(IMAGE))
    assert units_of(hyper, "first") == 8


@dataclass(slots=True)
class Slotted:
    logits: Tensor
    hidden: Tensor


def test_a_dataclass_with_slots_may_come_out() -> None:
    parts = {"first": nn.Conv2d(3, 8, 1), "inner": nn.Conv2d(8, 4, 1), "out": nn.Conv2d(4, 2, 1)}

    def run(net: Any, x: Tensor) -> Slotted:
        hidden = net.inner(torch.relu(net.first(x)))
        return Slotted(net.out(torch.relu(hidden)), hidden)

    hyper, _ = halved(Net(parts, run), torch.randn(IMAGE))
    assert (units_of(hyper, "first"), units_of(hyper, "inner")) == (8, 0)


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.zeros(IMAGE)
    with pytest.raises(ModelError, match="meta device"):
        hyperize(model, x)


@pytest.mark.parametrize("kept", [nn.Conv2d, lambda path, module: path == "0", "0"])
def test_one_pattern_needs_no_list(kept: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(4, 3, 1, 1)
    assert hyperize(model, x).coupling.units == 14
    assert hyperize(model, x, keep=kept).coupling.units == 6
    assert hyperize(model, x, only=kept).coupling.units == 8


class Averages(nn.Module):
    """Keeps an average of its features that only training touches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.training:
            self.average.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
        return self.out(x)


def test_a_buffer_that_only_training_touches_is_slim_too() -> None:
    _, slim = halved(Averages(), torch.randn(IMAGE))
    assert slim.average.numel() == slim.first.out_channels < 8
    slim.train()(torch.randn(IMAGE))
    assert bool(slim.average.any())


@pytest.mark.parametrize("squeeze", [torch.squeeze, lambda x: x.squeeze(1), lambda x: x.squeeze((1, 2, 3))])
def test_an_axis_that_squeeze_would_take_for_none_keeps_two_channels(squeeze):
    class Squeezes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

        def forward(self, x):
            x = squeeze(self.second(self.first(x).relu()).mean((2, 3), keepdim=True))
            return self.head(x.flatten(1))

    x = torch.randn(2, 3, 9, 9)
    hyper = hyperize(Squeezes().eval(), x)
    assert [(group.name, group.least) for group in hyper.coupling.groups] == [("first", 1), ("second", 2)]
    hyper.bank.keep_(torch.tensor([unit in (0, 8, 9) for unit in range(hyper.coupling.units)]))
    assert export_with_proof(hyper)[0](x).shape == (2, 2)


def test_a_number_from_a_width_costs_its_own_channels_and_not_the_attention_beside_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.joint, self.back = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24)
            self.up, self.down, self.head, self.heads = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 3), 4

        def forward(self, x):
            x = self.stem(x)
            batch, tokens, _ = x.shape
            q, k, v = self.joint(x).reshape(batch, tokens, 3, self.heads, 6).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(-2, -1) * 6**-0.5).softmax(-1) @ v
            x = x + self.back(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * 6))
            hidden = self.up(x).relu()
            return self.head(x + self.down(hidden / hidden.shape[-1] ** 0.5))

    hyper = hyperize(Block().eval(), torch.randn(2, 7, 5))
    assert sorted((group.name, group.size) for group in hyper.coupling.groups) == [("joint", 4), ("stem", 24)]
    assert {stays.layer: stays.reason for stays in hyper.coupling.frozen}["up"] == INEXACT


def test_rounding_that_a_network_amplifies_costs_no_channels_where_float64_cannot_tell():
    class Amplifies(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(5, 64), nn.Linear(64, 32), nn.Linear(32, 4)

        def forward(self, x):
            assert x.dtype == torch.float32
            return torch.sin(1500 * self.head(self.second(self.first(x).relu()).relu()))

    torch.manual_seed(0)
    hyper = hyperize(Amplifies().eval(), torch.randn(8, 5))
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 2 == 1)
    _, proof = export_with_proof(hyper)
    assert 1e-5 < proof.relative_error < 1e-4, "too much for the rehearsal's own bound"
    assert [group.size for group in hyper.coupling.groups] == [64, 32]


@pytest.mark.parametrize("example", [torch.zeros(1, 6), torch.ones(1, 6)], ids=["zeros", "ones"])
def test_examples_without_content_hide_no_mistake(example):
    layers = {"a": nn.Linear(6, 16, bias=False), "b": nn.Linear(16, 3, bias=False), "c": nn.Linear(16, 3, bias=False)}

    def run(net, x):
        y = net.a(x)
        return net.b(y.relu() / y.shape[-1] ** 0.5) + net.c(y.relu())

    with pytest.raises(NothingPrunableError, match="a: 16 channels stay"):
        hyperize(Net(layers, run), example)


def test_images_of_ones_hide_no_mistake_and_masks_of_ones_stay():
    def run(net, x, mask):
        y = net.a(x)
        return net.b(torch.cat([y[:, :4].roll(1, -1), y[:, 4:]], 1)) * mask[:, None]  # four of sixteen, whatever lives

    with pytest.raises(NothingPrunableError, match="a: 16 channels stay"):
        hyperize(
            Net({"a": nn.Conv1d(3, 16, 3), "b": nn.Conv1d(16, 4, 1)}, run), (torch.ones(1, 3, 9), torch.ones(1, 7))
        )
    inputs = ExampleInputs.of((torch.ones(1, 3, 9), torch.ones(1, 7))).lively()
    assert (inputs.args[0].std() > 0, inputs.args[1].std() > 0) == (True, False)


def test_a_network_that_takes_nothing_but_its_example_is_compared_on_that():
    def run(net, x):
        return net.b(net.a(x).relu()) * (1 - 2 * x.amax()).sqrt()  # not a number for most

    hyper = hyperize(Net({"a": nn.Linear(6, 16), "b": nn.Linear(16, 3)}, run), torch.zeros(1, 6))
    assert not hyper.inputs.args[0].any()
    assert hyper.coupling.units == 16


class NonLocal(nn.Module):
    """Attention between positions (non-local networks): one attribute is the width of three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = width // 2
        self.g, self.theta, self.phi = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        self.back = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        g, theta, phi = (part(x).view(len(x), self.inner, -1) for part in (self.g, self.theta, self.phi))
        mixed = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        return x + self.back(mixed.transpose(1, 2).reshape(len(x), self.inner, *x.shape[2:]))


def test_one_attribute_for_the_width_of_several_layers_makes_these_lose_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), NonLocal(12), nn.Conv2d(12, 2, 1))
    hyper, slim = halved(model, torch.randn(IMAGE))
    group = hyper.coupling.group("1.g")
    assert (group.makers, group.size) == (("1.g", "1.theta", "1.phi"), 6)
    assert slim[1].inner == slim[1].g.out_channels < 6


class GatedStream(nn.Module):
    """A gate and a residual stream of one width, which one attribute holds (WaveGlow, VITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.pre, self.out = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 2, 1)
        self.inner, self.both = nn.Conv1d(12, 24, 3, padding=1), nn.Conv1d(12, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        made = self.inner(x)
        gated = torch.tanh(made[:, : self.width]) * torch.sigmoid(made[:, self.width :])
        both = self.both(gated)
        return self.out(torch.relu(x + both[:, : self.width]) + both[:, self.width :])


def test_a_gate_and_a_stream_whose_width_is_one_attribute_lose_the_same() -> None:
    hyper, slim = halved(GatedStream(), torch.randn(2, 3, 9))
    assert [group.size for group in hyper.coupling.groups] == [12]
    assert slim.width == slim.pre.out_channels < 12
    assert slim.inner.out_channels == slim.both.out_channels == 2 * slim.width


class DeadEnd(nn.Module):
    """Blocks that add to a stream and to an output: nobody reads what the last one adds to the stream (Conv-TasNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv1d(3, 12, 1), nn.Conv1d(10, 2, 1)
        self.back = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(12, 10, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for back, skip in zip(self.back, self.skip, strict=True):
            total = total + skip(torch.relu(x))
            x = x + back(torch.relu(x))
        return self.out(torch.relu(total))


def test_an_addition_whose_result_nobody_reads_ties_what_it_adds() -> None:
    hyper, slim = halved(DeadEnd(), torch.randn(2, 3, 9))
    assert {group.name: group.size for group in hyper.coupling.groups} == {"stem": 12, "skip.0": 10}
    assert slim.back[1].out_channels == slim.stem.out_channels < 12


class TwoCuts(nn.Module):
    """One cut whose sizes are attributes, and one of a number that nothing repairs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.context = 12, 8
        self.both, self.features, self.some = nn.Conv2d(3, 20, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(9, 4, 1)
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, context = torch.split(self.both(x), [self.hidden, self.context], 1)
        some = self.some(self.features(x)[:, :9])
        return self.out(torch.cat([hidden.tanh(), context.relu(), some], 1))


def test_a_size_that_cannot_be_repaired_costs_no_channels_of_a_line_that_can() -> None:
    hyper, slim = halved(TwoCuts(), torch.randn(IMAGE))
    assert {stays.layer: stays.channels for stays in hyper.coupling.frozen} == {"features": 16, "out": 2}
    assert units_of(hyper, "both") == 20
    assert slim.hidden + slim.context == slim.both.out_channels < 20


class Watched(nn.Module):
    """A layer beside which statistics are taken that nobody reads."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.watched, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.statistic = statistic

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.statistic(self.watched(y) + y)
        return self.out(y)


@pytest.mark.parametrize(
    "statistic",
    [
        lambda y: y.mean(1),
        lambda y: y.softmax(1).log().sum(),
        lambda y: y.flatten(2) @ y.flatten(2).transpose(1, 2),
        lambda y: torch.linalg.svdvals(y.flatten(2)),
    ],
    ids=["mean", "entropy", "gram", "singular values"],
)
def test_a_statistic_that_nobody_reads_costs_no_channels(statistic: Callable[[Tensor], Tensor]) -> None:
    hyper, slim = halved(Watched(statistic), torch.randn(IMAGE))
    assert [group.size for group in hyper.coupling.groups] == [8]
    assert slim.watched.out_channels == slim.a.out_channels < 8


def test_a_norm_over_channels_and_time_takes_inputs_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv1d(3, 9, 1), nn.LayerNorm([9, 9]), nn.Conv1d(9, 2, 1))
    hyper, slim = halved(model, torch.randn(2, 3, 9))
    single = torch.randn(3, 9)
    torch.testing.assert_close(slim(single), hyper(single), rtol=1e-4, atol=1e-5)
