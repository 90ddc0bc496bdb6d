"""What holds for every generator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hyperprune import DHP, Lean, export_pruned, hyperize
from hyperprune.generators import Generator
from hyperprune.generators.base import attach, detach
from hyperprune.hyper import plain_copy
from tests.models import SMALL, assert_same, dead_units, random_half, relative_error, residual, small, snapshot, zeroed

every_generator = pytest.mark.parametrize("generator", [Lean(), DHP(), DHP(embedding=1)], ids=["lean", "dhp", "dhp1"])
every_model = pytest.mark.parametrize("name", SMALL)


@every_generator
@every_model
def test_at_the_start_outputs_are_those_of_the_model_bit_for_bit_in_eval_mode(name: str, generator: Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model.eval(), x, generator=generator)
    assert torch.equal(hyper(x), model(x))


@every_generator
@every_model
def test_at_the_start_outputs_are_those_of_the_model_bit_for_bit_in_train_mode(name: str, generator: Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model.train(), x, generator=generator)
    assert torch.equal(hyper(x), model(x))


@every_generator
def test_dropout_falls_on_the_same_places(generator: Generator) -> None:
    model, x = residual(dropout=0.5).train(), torch.randn(4, 3, 8, 8)
    hyper = hyperize(model, x, generator=generator)
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    assert torch.equal(hyper(x), expected)


@every_generator
def test_the_model_the_mode_and_the_random_state_are_left_as_found(generator: Generator) -> None:
    model, x = residual(dropout=0.5).train(), torch.randn(4, 3, 8, 8)
    model.block1.eval()
    model.stem.weight.requires_grad_(False)
    model(x).sum().backward()
    before, state = snapshot(model), torch.random.get_rng_state()
    hyper = hyperize(model, x, generator=generator)
    assert_same(before, snapshot(model))
    assert torch.equal(state, torch.random.get_rng_state())
    assert [m.training for m in hyper.model.modules() if type(m) in (nn.BatchNorm2d, nn.Dropout)] == [
        m.training for m in model.modules() if type(m) in (nn.BatchNorm2d, nn.Dropout)
    ]


@every_generator
@every_model
def test_layers_keep_their_class_for_isinstance(name: str, generator: Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model, x, generator=generator)
    for path, module in model.named_modules():
        assert isinstance(hyper.model.get_submodule(path), type(module))
    assert any(parametrize.is_parametrized(module) for module in hyper.model.modules())


@every_generator
@every_model
def test_every_latent_receives_a_gradient_on_the_first_backward(name: str, generator: Generator) -> None:
    model, x = small(name)
    hyper = hyperize(model.train(), x, generator=generator)
    for network in (model, hyper):
        output = network(x)
        (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    gradient = hyper.bank.latents.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    dead = dead_units(model, hyper)
    assert torch.equal(gradient == 0, dead), "only a unit whose activation is dead may go without a gradient"
    assert int(dead.sum()) < len(dead) / 4


@every_generator
@every_model
def test_removed_units_equal_zeroed_weights_and_carved_channels(
    name: str, generator: Generator, rng: torch.Generator
) -> None:
    model, x = small(name)
    model, x = model.double().eval(), x.double()
    hyper = hyperize(model, x, generator=generator)
    keep = random_half(hyper, rng)
    hyper.bank.keep_(keep)
    expected = zeroed(hyper, keep)(x)
    assert relative_error(expected, hyper(x)) < 1e-12
    assert relative_error(expected, export_pruned(hyper)(x)) < 1e-12


@every_generator
def test_a_copy_has_a_bank_of_its_own_and_exporting_it_leaves_the_original_whole(generator: Generator) -> None:
    model, x = residual().eval(), torch.randn(2, 3, 8, 8)
    hyper = hyperize(model, x, generator=generator)
    copied = copy.deepcopy(hyper)
    copied.bank.remove_(torch.arange(copied.coupling.units) % 2 == 0)
    assert torch.equal(hyper(x), model(x)), "changing the copy changed the original"
    assert not torch.equal(copied(x), model(x)), "the copy reads the original's bank"
    slim = export_pruned(copied)
    assert slim.stem.out_channels == 3
    assert torch.equal(hyper(x), model(x)), "exporting the copy broke the original"
    assert parametrize.is_parametrized(hyper.model.block1.conv1)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 2 == 0)
    assert torch.equal(hyper(x), copied(x))


@every_generator
def test_a_state_dict_goes_round_and_names_every_tensor_once(generator: Generator, rng: torch.Generator) -> None:
    model, x = residual().eval(), torch.randn(2, 3, 8, 8)
    hyper = hyperize(model, x, generator=generator)
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    hyper.bank.keep_(random_half(hyper, rng))
    state = copy.deepcopy(hyper.state_dict())
    assert len({tensor.data_ptr() for tensor in hyper.state_dict().values() if tensor.numel()}) == len(
        [tensor for tensor in state.values() if tensor.numel()]
    )
    fresh = hyperize(residual().eval(), x, generator=generator)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), hyper(x))


@every_generator
def test_frozen_weights_stay_frozen_and_their_latents_are_trained(generator: Generator) -> None:
    model, x = residual(), torch.randn(2, 3, 8, 8)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    hyper = hyperize(model, x, generator=generator)
    assert [p for p in hyper.parameters() if p.requires_grad] == [hyper.bank.latents]
    assert not any(p.requires_grad for p in export_pruned(hyper).parameters())


@every_generator
def test_timms_padded_convolution_keeps_its_class_and_its_forward(generator: Generator, rng: torch.Generator) -> None:
    layers: Any = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        layers.Conv2dSame(3, 6, 3, stride=2), nn.ReLU(), layers.Conv2dSame(6, 8, 3, stride=2), nn.Conv2d(8, 2, 1)
    )
    x = torch.randn(2, 3, 9, 9)
    hyper = hyperize(model, x, generator=generator)
    assert isinstance(hyper.model[2], layers.Conv2dSame)
    assert torch.equal(hyper(x), model(x))
    hyper.bank.keep_(random_half(hyper, rng))
    assert type(export_pruned(hyper)[2]) is layers.Conv2dSame


@every_generator
def test_plain_copies_have_the_generated_weights_as_plain_parameters(generator: Generator) -> None:
    model, x = residual(), torch.randn(2, 3, 8, 8)
    hyper = hyperize(model, x, generator=generator)
    with torch.no_grad():
        hyper.bank.latents.uniform_(0.5, 1.5)
    plain = plain_copy(hyper).eval()
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert torch.equal(plain(x), hyper.eval()(x))


@every_generator
def test_attributes_of_a_weight_are_those_of_what_it_is_made_from_and_of_the_plain_weight(generator: Generator) -> None:
    hyper = hyperize(residual(), torch.randn(4, 3, 8, 8))
    model, bank, coupling = residual(), hyper.bank, hyper.coupling
    model.block1.conv2.weight.no_decay = True
    attach(model, bank, coupling, generator, seed=0)
    made = list(model.block1.conv2.parametrizations.weight.parameters(recurse=False))
    assert [vars(original) for original in made] == [{"no_decay": True}] * len(made)
    detach(model)
    assert vars(model.block1.conv2.weight) == {"no_decay": True}
