"""Large layers gate their input where that is the smaller factor: the same to rounding, bit for bit at z = 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperprune import HyperModel, export_pruned, hyperize
from hyperprune.generators import inputs
from tests.models import SMALL, random_half, small

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def every_weight_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WORTH", 0)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were gated."""
    found: list[tuple[int, ...]] = []
    gated = inputs._of_gated_input

    def watched(module: nn.Module, x: Tensor, gates: Tensor) -> Tensor:
        found.append(tuple(x.shape))
        return gated(module, x, gates)

    monkeypatch.setattr(inputs, "_of_gated_input", watched)
    return found


def deep() -> nn.Module:
    """Few positions and many weights behind a stride, as in a network's last stage."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(64, 48, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 9, 40), nn.ReLU(), nn.Linear(40, 5),
    )  # fmt: skip


def gradients(hyper: HyperModel, x: Tensor) -> dict[str, Tensor]:
    hyper.zero_grad()
    hyper(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in hyper.named_parameters() if p.grad is not None}


def never(module: nn.Module, x: object) -> None:
    return None


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_the_model_bit_for_bit_at_the_start(name: str) -> None:
    model, x = small(name)
    hyper = hyperize(model.eval(), x)
    assert torch.equal(hyper(x), model(x))
    with torch.no_grad():
        assert torch.equal(hyper(x), model(x))


def test_gradients_are_those_of_gated_weights(chosen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = hyperize(deep(), X).train().double()
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    output = hyper(X.double())
    chosen.clear()
    of_inputs = gradients(hyper, X.double())
    assert chosen == [(2, 32, 3, 3), (2, 64, 3, 3), (2, 432), (2, 40)]
    monkeypatch.setattr(inputs, "_gates_of_input", never)
    of_weights = gradients(hyper, X.double())
    assert set(of_inputs) == set(of_weights)
    for name, expected in of_weights.items():
        torch.testing.assert_close(of_inputs[name], expected)
    torch.testing.assert_close(output, hyper(X.double()))


def test_a_large_batch_gates_the_weights(chosen: list[tuple[int, ...]]) -> None:
    hyper = hyperize(deep(), X)
    chosen.clear()
    hyper(torch.randn(4096, 3, 8, 8))
    assert chosen == []


def test_narrow_types_and_strided_inputs_gate_the_weights(chosen: list[tuple[int, ...]]) -> None:
    hyper = hyperize(deep(), X)
    chosen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        hyper(X)
    hyper.model[9](torch.randn(2, 80)[:, ::2])
    assert chosen == []


def test_weights_in_groups_or_inputs_first_are_gated_themselves(chosen: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3, groups=4), nn.ConvTranspose2d(64, 32, 3))
    hyper = hyperize(model, X)
    chosen.clear()
    hyper(X)
    assert chosen == []


def test_a_frozen_weight_is_gated_all_the_same() -> None:
    hyper = hyperize(deep().requires_grad_(False), X).train()
    hyper(X).square().mean().backward()
    assert hyper.bank.latents.grad is not None
    assert bool((hyper.bank.latents.grad != 0).any())


def test_the_export_of_a_searched_network_is_exact() -> None:
    hyper = hyperize(deep(), X).eval()
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(0)))
    slim = export_pruned(hyper)
    torch.testing.assert_close(slim(X), hyper(X), rtol=1e-5, atol=1e-6)


def test_transforms_of_torch_func_and_other_devices_work() -> None:
    hyper = hyperize(deep(), X).eval()
    expected = hyper(X)
    each = torch.func.vmap(lambda image: hyper(image[None])[0])(X)
    torch.testing.assert_close(each, expected)
    tangent = torch.randn_like(X)
    _, along = torch.func.jvp(hyper, (X,), (tangent,))
    step = 1e-6
    finite = hyper.double()(X.double() + step * tangent) - hyper(X.double() - step * tangent)
    torch.testing.assert_close(along.double(), finite / (2 * step), rtol=1e-3, atol=1e-4)
    assert hyper.float().to("meta")(X.to("meta")).shape == expected.shape


def test_gradients_of_gradients_are_those_of_gated_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper, x = hyperize(deep(), X).train().double(), X.double().requires_grad_()

    def twice() -> Tensor:
        (first,) = torch.autograd.grad(hyper(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), hyper.bank.latents)[0]

    of_inputs = twice()
    monkeypatch.setattr(inputs, "_gates_of_input", never)
    torch.testing.assert_close(of_inputs, twice())
