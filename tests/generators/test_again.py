"""Generated weights are made again in the backward pass; gradients are those of the kept weight, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from hyperprune import HyperModel, hyperize
from hyperprune.generators import again, inputs
from hyperprune.generators.gate import gated
from tests.models import SMALL, residual, small

X = (2, 3, 8, 8)


@pytest.fixture(autouse=True)
def every_weight_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WORTH", 0)


def hyperized(model: nn.Module | None = None) -> HyperModel:
    hyper = hyperize(residual() if model is None else model, torch.randn(X)).train()
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    return hyper


def gradients(hyper: HyperModel, x: Tensor) -> dict[str, Tensor]:
    hyper.zero_grad()
    hyper(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in hyper.named_parameters() if p.grad is not None}


def never() -> bool:
    return False


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_kept_weights_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(name)
    hyper = hyperize(model.train(), x)
    made_again = gradients(hyper, x)
    monkeypatch.setattr(again, "_may_open", never)
    kept = gradients(hyper, x)
    assert set(made_again) == set(kept)
    assert [key for key in kept if not torch.equal(kept[key], made_again[key])] == []


def bytes_kept(hyper: HyperModel, x: Tensor) -> int:
    """Bytes that a forward pass leaves allocated for the backward pass, by the profiler's count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = hyper(x).square().mean()
    events = profiler.profiler.kineto_results.events()
    kept = sum(event.nbytes() for event in events if event.name() == "[memory]")
    loss.backward()
    return kept


def test_nothing_as_large_as_the_weights_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Conv2d(256, 4, 3))
    hyper, x = hyperized(model), torch.randn(64, 3, 16, 16)
    weights = sum(4 * hyper.model[at].weight.numel() for at in (2, 4))
    frugal = bytes_kept(hyper, x)
    monkeypatch.setattr(again, "_may_open", never)
    assert 0.9 * weights < bytes_kept(hyper, x) - frugal <= weights


def test_a_graph_that_is_retained_gives_the_same_twice() -> None:
    hyper, x = hyperized(), torch.randn(X)
    loss = hyper(x).square().mean()
    first = torch.autograd.grad(loss, hyper.bank.latents, retain_graph=True)
    second = torch.autograd.grad(loss, hyper.bank.latents)
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    hyper, x = hyperized(), torch.randn(X, requires_grad=True)
    hyper.eval()
    expected = torch.autograd.grad(hyper(x).square().mean(), hyper.bank.latents)
    hyper.zero_grad()
    checkpoint(hyper, x, use_reentrant=reentrant).square().mean().backward()
    assert torch.equal(hyper.bank.latents.grad, expected[0])


def test_whoever_watches_what_is_kept_sees_the_weights() -> None:
    hyper, seen = hyperized(), []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        hyper(torch.randn(X))
    assert tuple(hyper.model.block1.conv1.weight.shape) in seen


def test_a_weight_changed_before_the_backward_pass_is_an_error() -> None:
    hyper = hyperized()
    loss = hyper(torch.randn(X)).square().mean()
    with torch.no_grad():
        hyper.model.block1.conv1.parametrizations.weight.original.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_an_input_changed_before_the_backward_pass_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    hyper = hyperized(model)
    inner: list[Tensor] = []
    hyper.model[1].register_forward_hook(lambda module, args, output: inner.append(output))
    loss = hyper(torch.randn(X)).square().mean()
    with torch.no_grad():
        inner[0].add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_a_forward_pass_that_fails_leaves_no_window_open() -> None:
    hyper = hyperized()
    with pytest.raises(RuntimeError):
        hyper.model.block1.conv1(torch.randn(2, 99, 8, 8))
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert again._window.made is None


def test_per_sample_gradients_of_torch_func_still_work() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    hyper, x = hyperized(model), torch.randn(4, 3, 8, 8)
    state = {name: p.detach() for name, p in hyper.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(hyper, parameters, (sample[None],)).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    together = gradients(hyper, x)
    for name, expected in together.items():
        torch.testing.assert_close(each[name].mean(0), expected, rtol=1e-4, atol=1e-6)


def test_a_copy_makes_its_own_weights_again() -> None:
    hyper, x = hyperized(), torch.randn(X)
    copied = copy.deepcopy(hyper)
    with torch.no_grad():
        copied.bank.latents.mul_(2)
    expected = gradients(hyper, x)
    loss = copied(x).square().mean()
    del hyper
    loss.backward()
    assert not torch.equal(copied.bank.latents.grad, expected["bank.latents"])


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3), 1), ((4, 3, 2, 2), 1), ((3, 4, 2, 2), 0), ((4, 1, 3), 1), ((1, 1, 2), 0), ((5,), 0)]
)
def test_the_gradient_of_a_gated_weight_is_that_of_the_product(shape: tuple[int, ...], axis: int) -> None:
    view = [size if at == axis else 1 for at, size in enumerate(shape)]
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(view, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gated(weight, gates), weight * gates)
    assert torch.autograd.gradcheck(gated, (weight, gates))
    assert torch.autograd.gradgradcheck(gated, (weight, gates))


def test_layers_with_small_weights_run_without_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 4, 3))
    hyper = hyperized(model)
    windowed = [at for at in (2, 4) if "forward" in vars(type(hyper.model[at]))]
    assert windowed == [2]
