"""MACs and parameters: by hand, by formula, and by two independent counters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperprune import HyperModel, export_pruned, hyperize
from hyperprune.cost import Cost, CostModel, count_with_fvcore
from tests.models import SMALL, Net, count, couple, random_half, randomise_norms_, small


def cost_of(model: nn.Module, x: Tensor) -> Cost:
    model_cost = CostModel(couple(model, x), model)
    return model_cost.total(model_cost.full)


def counted_by_torch(model: nn.Module, x: Tensor) -> int:
    """Torch counts a multiply and an add as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    counts = counter.get_flop_counts()["Global"]
    assert counts
    return sum(counts.values()) // 2


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "params"),
    [
        (nn.Conv2d(3, 4, 3), (1, 3, 8, 8), 4 * 3 * 3 * 3 * 6 * 6, 4 * 3 * 3 * 3 + 4),
        (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 8), 2 * 4 * 3 * 3 * 3 * 6 * 6, 4 * 3 * 3 * 3),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (1, 3, 8, 8), 4 * 3 * 9 * 4 * 4, 4 * 3 * 9 + 4),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8), 4 * 9 * 6 * 6, 4 * 9 + 4),
        (nn.Conv2d(4, 6, 1, groups=2), (1, 4, 8, 8), 6 * 2 * 8 * 8, 6 * 2 + 6),
        (nn.Conv1d(3, 4, 5), (1, 3, 16), 4 * 3 * 5 * 12, 4 * 3 * 5 + 4),
        (nn.Conv3d(3, 4, 2), (1, 3, 4, 4, 4), 4 * 3 * 8 * 27, 4 * 3 * 8 + 4),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), (1, 3, 8, 8), 3 * 4 * 4 * 8 * 8, 3 * 4 * 4 + 4),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 8, 8), 4 * 3 * 9 * 8 * 8, 4 * 3 * 9 + 6),
        (nn.Linear(5, 7), (2, 5), 2 * 5 * 7, 5 * 7 + 7),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7, 5 * 7 + 7),
        (nn.BatchNorm2d(4), (2, 4, 8, 8), 0, 8),
        (nn.PReLU(4), (2, 4, 8, 8), 0, 4),
    ],
    ids=str,
)
def test_a_layer_costs_what_a_hand_computes(layer: nn.Module, shape: tuple[int, ...], macs: int, params: int) -> None:
    assert cost_of(nn.Sequential(layer), torch.randn(shape)) == Cost(macs, params)


def test_a_layer_used_twice_costs_its_macs_twice_and_its_parameters_once() -> None:
    model = Net({"a": nn.Conv2d(3, 3, 1, bias=False)}, lambda net, x: net.a(net.a(x)))
    assert cost_of(model, torch.randn(1, 3, 4, 4)) == Cost(2 * 9 * 16, 9)


def test_parameters_that_are_never_reached_count_as_they_are() -> None:
    model = Net({"a": nn.Linear(3, 4), "idle": nn.Linear(10, 10)}, lambda net, x: net.a(x))
    assert cost_of(model, torch.randn(1, 3)) == Cost(12, 16 + 110)


def test_a_head_that_runs_in_train_mode_only_costs_parameters_but_no_macs() -> None:
    model = Net(
        {"a": nn.Linear(3, 4), "aux": nn.Linear(4, 2)}, lambda n, x: (n.a(x), n.aux(n.a(x))) if n.training else n.a(x)
    )
    assert cost_of(model, torch.randn(1, 3)) == Cost(12, 16 + 10)


def test_two_widths_of_a_chain_multiply() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    cost = CostModel(couple(model, torch.randn(1, 3)), model)
    for a in range(1, 5):
        for b in range(1, 6):
            expected = Cost(3 * a + a * b + 2 * b, 3 * a + a + a * b + b + 2 * b + 2)
            assert cost.total(np.array([a, b])) == expected


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_random_plan_costs_what_the_exported_model_costs(name: str, seed: int) -> None:
    model, x = small(name)
    hyper = hyperize(model, x)
    slim, planned = pruned(hyper, seed)
    assert planned.params == sum(p.numel() for p in slim.parameters())
    assert planned.macs == counted_by_torch(slim, x)
    assert planned.macs == count_with_fvcore(slim, x).macs


def pruned(hyper: HyperModel, seed: int) -> tuple[nn.Module, Cost]:
    keep = random_half(hyper, torch.Generator().manual_seed(seed))
    hyper.bank.keep_(keep)
    return export_pruned(hyper), hyper.cost.total(count(keep, hyper.coupling))


@pytest.fixture(scope="module")
def resnet18() -> tuple[HyperModel, Tensor]:
    models = pytest.importorskip("torchvision.models")
    x = torch.randn(1, 3, 64, 64)
    return hyperize(randomise_norms_(models.resnet18(weights=None)), x), x


@pytest.mark.parametrize("seed", range(3))
def test_resnet18_slimmed_at_random_costs_what_fvcore_and_torch_count(
    resnet18: tuple[HyperModel, Tensor], seed: int
) -> None:
    hyper, x = resnet18
    slim, planned = pruned(hyper, seed)
    assert planned.macs == count_with_fvcore(slim, x).macs == counted_by_torch(slim, x)
    assert planned.params == sum(p.numel() for p in slim.parameters())


def test_resnet18_costs_what_the_literature_says() -> None:
    models = pytest.importorskip("torchvision.models")
    dense = cost_of(models.resnet18(weights=None), torch.randn(1, 3, 224, 224))
    assert dense == Cost(1_814_073_344, 11_689_512)


@pytest.mark.parametrize("name", SMALL)
def test_a_change_of_one_group_is_the_difference_of_two_totals(name: str) -> None:
    model, x = small(name)
    coupling = couple(model, x)
    cost, rng = CostModel(coupling, model), np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(1, cost.full + 1)
        delta = rng.integers(-counts, cost.full - counts + 1)
        changes = cost.changes(counts, delta)
        for group in range(len(counts)):
            moved = counts.copy()
            moved[group] += delta[group]
            for resource in ("macs", "params"):
                difference = getattr(cost.total(moved), resource) - getattr(cost.total(counts), resource)
                assert changes[resource][group] == difference


def test_the_layers_add_up_to_the_total_and_have_the_shapes_of_the_slim_model() -> None:
    model, x = small("residual")
    hyper = hyperize(model, x)
    slim, planned = pruned(hyper, 0)
    layers = hyper.cost.layers(count(hyper.living(), hyper.coupling))
    assert sum(layer.macs for layer in layers) == planned.macs
    assert sum(layer.params for layer in layers) == planned.params
    shapes = {name: tuple(p.shape) for name, p in slim.named_parameters()}
    assert {layer.tensor: layer.shape for layer in layers if layer.params} == shapes


def test_counting_leaves_the_model_and_the_random_state_as_found() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Dropout()), torch.randn(1, 4)
    state = torch.random.get_rng_state()
    assert count_with_fvcore(model.train(), x).by_operator == {"linear": 12}
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def relu_twice(x: Tensor) -> Tensor:
    return x.relu().relu()


@pytest.mark.parametrize("cheap", [relu_twice, torch.sigmoid])
def test_what_has_no_weight_costs_nothing(cheap: Callable[[Tensor], Tensor]) -> None:
    model = Net({"a": nn.Linear(3, 4)}, lambda net, x: cheap(net.a(x)))
    assert cost_of(model, torch.randn(1, 3)) == Cost(12, 16)


class Mixing(nn.Module):
    """A layer over the positions of an image, between two over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.positions, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(16, 16), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.positions(self.inner(x).flatten(2)).relu().mean(2))


class Crossed(nn.Module):
    """Attention of five queries to sixteen keys, whose weight holds all three projections."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.head(self.attention(x[:, :5], x, x, need_weights=False)[0])


class Modulated(nn.Module):
    """Layers of all kinds whose weights follow from the input (StyleGAN, hypernetworks)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4, 3, 2, 2))
        self.mixed = nn.Parameter(torch.randn(2, 3))
        self.style, self.inner = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        style = self.inner(self.style(x.mean((2, 3))).relu()).mean()
        x = nn.functional.conv_transpose2d(nn.functional.conv2d(x, self.conv * style), self.up * style, stride=2)
        return nn.functional.linear(x.mean((2, 3)), self.mixed * style)


class Experts(nn.Module):
    """Four experts whose weights are one tensor, and mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 8), nn.Linear(5, 2)
        self.experts, self.batched = nn.Parameter(torch.randn(4, 8, 6)), nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bi,eij->ebj", self.inner(x).relu(), self.experts)
        return self.head((x @ self.batched).mean(0))


@pytest.mark.parametrize(
    ("make", "shape"), [(Mixing, (2, 3, 16, 16)), (Crossed, (2, 16, 8)), (Modulated, (2, 3, 8, 8))], ids=str
)
def test_macs_that_follow_other_widths_are_exact_too(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    hyper = hyperize(model, x)
    assert sum(tensor.macs for tensor in hyper.cost.layers(hyper.cost.full)) <= hyper.cost.total(hyper.cost.full).macs
    for seed in range(3):
        slim, planned = pruned(hyper, seed)
        assert planned.macs == count_with_fvcore(slim, x).macs


def test_experts_cost_what_they_multiply() -> None:
    assert cost_of(Experts(), torch.randn(7, 3)).macs == 7 * (3 * 8 + 4 * (8 * 6 + 6 * 5) + 5 * 2)
