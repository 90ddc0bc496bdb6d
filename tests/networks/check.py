"""What must hold for every network: the same outputs at the start, exact exports, exact costs, nothing else touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperprune import DHP, HyperModel, Lean, hyperize
from hyperprune.cost import count_with_fvcore
from hyperprune.errors import ModelError, NothingPrunableError, TraceError
from hyperprune.export import export_with_proof
from hyperprune.verify import tensors_of
from tests.models import assert_same, count, random_half, snapshot
from tests.networks.description import Description
from tests.networks.network import build
from tests.networks.reference import by_hand, latent_gradients

BOUND = 1e-9
NOISE = 1e-5  # an output that is nothing but rounding has no relative error
LAYERS = ("conv", "linear", "addmm")
DRAWS = 3

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Verdict:
    """What came of one network that did not fail.

    Attributes:
        rejected: why ``hyperize`` refused it; empty if it did not.
        units: how many units it offered.
        inside: how many of them lie in front of the heads.
        error: the largest relative error of an export, in float64.
    """

    rejected: str = ""
    units: int = 0
    inside: int = 0
    error: float = 0.0


def check(description: Description) -> Verdict:
    """Take a network through everything.

    Raises:
        AssertionError: something does not hold. Any other error is a failure too.
    """
    model, inputs = build(description)
    before, state = snapshot(model), torch.random.get_rng_state()
    generator = DHP(embedding=2) if description.generator == "dhp" else Lean()
    try:
        hyper = hyperize(model, inputs, generator=generator, attention=description.attention)
    except (NothingPrunableError, TraceError, ModelError) as error:
        assert_same(before, snapshot(model))
        return Verdict(rejected=f"{type(error).__name__}: {error}")
    assert torch.equal(state, torch.random.get_rng_state()), "hyperize moved the random state"
    assert_same(before, snapshot(model))
    _equal_at_the_start(model, hyper, inputs)
    model, hyper = model.double().eval(), hyper.double().eval()
    inputs = tuple(x.double() for x in inputs)
    _latents_feel(model, hyper, inputs)
    errors = [_exact(model, hyper, inputs, description.seed + draw) for draw in range(DRAWS)]
    _counted_by_fvcore(hyper, inputs, at_most=any(step.kind == "across" for step in description.steps))
    inside = sum(group.size for group in hyper.coupling.groups if not group.name.startswith("heads."))
    return Verdict("", hyper.coupling.units, inside, max(errors))


def _equal_at_the_start(model: nn.Module, hyper: HyperModel, inputs: Inputs) -> None:
    """The same outputs bit for bit, in eval mode and in train mode with the same random numbers."""
    for training in (False, True):
        with torch.no_grad():
            expected = _run(copy.deepcopy(model).train(training), inputs)
            found = _run(copy.deepcopy(hyper).train(training), inputs)
        if isinstance(expected, str) or isinstance(found, str):
            assert expected == found, f"one of the two fails in mode {training}: {expected} / {found}"
            continue
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b), f"other outputs at the start, training={training}: {_error(a, b):.1e}"


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor] | str:
    """Return the outputs, or the message of the error: batch norm in train mode may refuse a single value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return tensors_of(model(*inputs))
        except ValueError as error:
            return str(error)


def _latents_feel(model: nn.Module, hyper: HyperModel, inputs: Inputs) -> None:
    """Every latent has the gradient that the dense network's own gradients say, zero where they say zero."""
    for network in (model, hyper):
        network.zero_grad()
        with _contiguous_gradients(network):
            outputs = tensors_of(network(*inputs))
            weights = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs]
            torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum().backward()
    felt = hyper.bank.latents.grad
    assert felt is not None, "the latents have no gradient"
    assert bool(felt.isfinite().all())
    expected = latent_gradients(model, hyper.coupling)
    if not _has_factors(hyper):
        scale = float(expected.abs().max()) or 1.0
        assert float((felt - expected).abs().max()) <= 1e-7 * scale, "a latent has another gradient"


@contextmanager
def _contiguous_gradients(network: nn.Module) -> Iterator[None]:
    """Lay gradients out anew before instance norms: torch 2.15 reads one in channels-last order as if it were not."""
    norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm2d)]
    hooks = [
        norm.register_full_backward_pre_hook(lambda _, grads: tuple(g.contiguous() for g in grads)) for norm in norms
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has_factors(hyper: HyperModel) -> bool:
    """Say whether weights are made by the hypernetwork, which gates both sides."""
    return any(name.endswith("original1") for name, _ in hyper.named_parameters())


def _exact(model: nn.Module, hyper: HyperModel, inputs: Inputs, seed: int) -> float:
    """Remove units, export, and compare with the searched network, with the one made by hand, and with the prices."""
    rng = torch.Generator().manual_seed(seed)
    keep = random_half(hyper, rng, share=(0.5, 0.8, 0.2)[seed % 3])
    latents = torch.ones(len(keep), dtype=torch.float64)
    if not _has_factors(hyper) and seed % 2:
        latents = torch.rand(len(keep), generator=rng, dtype=torch.float64) + 0.5
    with torch.no_grad():
        hyper.bank.latents.copy_(latents)
    hyper.bank.keep_(keep)
    slim, _ = export_with_proof(hyper)
    others = tuple(torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in inputs)
    reference = by_hand(model, hyper.coupling, latents * keep)
    error = 0.0
    with torch.no_grad():
        for expected in (hyper, reference):
            pairs = zip(tensors_of(expected(*others)), tensors_of(slim.eval()(*others)), strict=True)
            error = max([error, *(_error(a, b) for a, b in pairs)])
    assert error <= BOUND, f"the export is off by {error:.1e} (draw {seed})"
    _priced(hyper, slim, keep)
    return error


def _error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return float((a - b).abs().max() / a.abs().max().clamp_min(NOISE)) if a.numel() else 0.0


def _priced(hyper: HyperModel, slim: nn.Module, keep: Tensor) -> None:
    said = hyper.cost.total(count(keep, hyper.coupling)).params
    have = sum(p.numel() for p in slim.parameters())
    assert said == have, f"the cost model says {said} parameters, the export has {have}"


def _counted_by_fvcore(hyper: HyperModel, inputs: Inputs, at_most: bool) -> None:
    """Layers that mix positions are run once per channel; the cost model prices them as if no channel went."""
    slim, _ = export_with_proof(hyper)
    said = hyper.cost.total(count(hyper.living(), hyper.coupling)).macs
    counted = count_with_fvcore(slim, inputs).by_operator
    have = sum(counted.get(name, 0) for name in LAYERS)
    fits = have <= said if at_most else have == said
    assert fits, f"the cost model says {said} MACs, fvcore counts {have}"
