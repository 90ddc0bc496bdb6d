"""What users wrap around a training step: AMP, accumulation, clipping, EMA, compile, checkpointing, optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from hyperprune import DHP, HardConcrete, HyperModel, L1Proximal, Lean, Search, export_pruned, hyperize
from hyperprune.errors import ModelError
from hyperprune.generators import Generator
from tests.faults.loop import HALF, IMAGES, advance, backward, images, is_met, same_state, start
from tests.models import residual

GENERATORS: dict[str, Generator] = {"lean": Lean(), "dhp": DHP(embedding=2)}


def assert_exports(hyper: HyperModel) -> nn.Module:
    assert is_met(hyper)
    slim = export_pruned(hyper)
    x = images()
    torch.testing.assert_close(slim.eval()(x), hyper.eval()(x), rtol=1e-4, atol=1e-5)
    return slim


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("generator", GENERATORS)
def test_autocast(generator: str, dtype: torch.dtype) -> None:
    hyper, optimizer, search = start(generator=GENERATORS[generator])
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=dtype == torch.float16)
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            y = hyper(images(step))
        assert y.dtype == dtype
        scaler.scale(y.float().square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        search.step()
    assert search.state_dict()["watch"]["observed"] == 8
    slim = assert_exports(hyper)
    with torch.autocast("cpu", dtype=dtype):
        within = export_pruned(hyper)
    assert {p.dtype for p in within.parameters()} == {torch.float32}, "exported under autocast, and still whole"
    assert torch.equal(within(images()), slim(images()))


def test_a_grad_scaler_that_scales_and_skips_changes_nothing() -> None:
    """Powers of two scale exactly, so the run must end like one without AMP in which no skipped step was taken."""
    plain, scaled = start(every=2), start(every=2)
    scaled[0].load_state_dict(plain[0].state_dict())
    advance(*plain, steps=8)
    hyper, optimizer, search = scaled
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for at in range(11):
        optimizer.zero_grad()
        x = images(search.step_count)
        scaler.scale(hyper(x).square().mean()).backward()
        skipped = at in (0, 4, 7)
        if skipped:
            hyper.bank.latents.grad[0] = torch.inf
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < before) == skipped
        if not skipped:
            search.step()
    assert torch.equal(plain[0].bank.latents, hyper.bank.latents)
    assert torch.equal(plain[0].bank.alive, hyper.bank.alive)
    assert search.state_dict()["watch"]["observed"] == 8


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Without batch norm, whose statistics depend on how a batch is cut."""
    scores = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 3))
        hyper, optimizer, search = start(model=model)
        for step in range(3):
            optimizer.zero_grad()
            for part in images(step).chunk(parts):
                (hyper(part).square().mean() / parts).backward()
            optimizer.step()
            search.step()
        assert search.state_dict()["watch"]["observed"] == 3
        scores.append(search.state_dict()["sparsifier"]["score"]["within"]["average"])
    assert scores[0].max() > 0
    torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_clipped_gradients(clip: Callable[..., Any]) -> None:
    hyper, optimizer, search = start()
    for step in range(8):
        optimizer.zero_grad()
        backward(hyper, images(step))
        clip(hyper.parameters(), 1e-2)
        optimizer.step()
        search.step()
    assert_exports(hyper)


def test_channels_last_gives_the_same_gradients_and_is_kept_by_the_slim_network() -> None:
    hyper, _, _ = start()
    backward(hyper)
    plain = hyper.bank.latents.grad.clone()
    hyper.zero_grad()
    hyper.to(memory_format=torch.channels_last)
    backward(hyper, images().to(memory_format=torch.channels_last))
    torch.testing.assert_close(hyper.bank.latents.grad, plain, rtol=1e-4, atol=1e-6)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 0)
    assert export_pruned(hyper).block1.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def ema(hyper: HyperModel, **options: Any) -> AveragedModel:
    return AveragedModel(hyper, multi_avg_fn=get_ema_multi_avg_fn(0.5), **options)


def test_an_average_of_the_weights_exports_and_lives_where_the_network_lives() -> None:
    hyper, optimizer, search = start()
    average = ema(hyper)
    for _ in range(8):
        advance(hyper, optimizer, search)
        average.update_parameters(hyper)
    assert torch.equal(average.module.living(), hyper.living())
    assert not torch.equal(average.module.bank.latents, hyper.bank.latents)
    slim = assert_exports(average.module)
    assert slim(images()).isfinite().all()


def test_an_average_that_is_older_than_the_last_step_of_the_search_is_warned_of() -> None:
    hyper, optimizer, search = start()
    average = ema(hyper)
    for _ in range(8):
        average.update_parameters(hyper)
        advance(hyper, optimizer, search)
    with pytest.warns(UserWarning, match=r"macs instead of .*average \(EMA\) is to be updated after search.step\(\)"):
        export_pruned(average.module)
    average.update_parameters(hyper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_pruned(average.module)


def test_sampled_gates_can_be_averaged_from_before_their_first_noise() -> None:
    hyper, optimizer, search = start(sparsifier=HardConcrete())
    average = ema(hyper)
    for _ in range(8):
        advance(hyper, optimizer, search)
        average.update_parameters(hyper)
    assert torch.equal(average.module.living(), hyper.living())
    assert_exports(average.module)


def test_an_average_of_what_lives_is_refused_and_mended_as_the_error_says() -> None:
    hyper, optimizer, search = start()
    average = ema(hyper, use_buffers=True)
    for _ in range(8):
        advance(hyper, optimizer, search)
        average.update_parameters(hyper)
    with pytest.raises(ModelError, match=r"ema\.module\.bank\.alive\.copy_\(hyper\.bank\.alive\)"):
        export_pruned(average.module)
    average.module.bank.alive.copy_(hyper.bank.alive)
    assert_exports(average.module)


def recomputed(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)  # type: ignore[method-assign]


@pytest.mark.parametrize("generator", GENERATORS)
def test_activation_checkpointing_put_around_blocks_of_the_hyper_model(generator: str) -> None:
    ends = []
    for saving in (False, True):
        torch.manual_seed(0)
        hyper, optimizer, search = start(generator=GENERATORS[generator])
        if saving:
            recomputed(hyper.model.block1)
            recomputed(hyper.model.block2)
        for step in range(8):  # recomputing batch norm moves its statistics twice, in any network
            optimizer.zero_grad()
            backward(hyper.eval(), images(step))
            optimizer.step()
            search.step()
        ends.append(hyper)
    assert same_state(*ends)
    assert is_met(ends[0])


class Saving(nn.Module):
    """A network that recomputes its middle by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.last(checkpoint(lambda z: torch.relu(self.middle(z)), y, use_reentrant=False)).mean((2, 3))


def test_activation_checkpointing_inside_the_users_forward() -> None:
    hyper, optimizer, search = start(model=Saving())
    advance(hyper, optimizer, search, 8)
    assert {group.name for group in hyper.coupling.groups} == {"first", "middle"}
    assert_exports(hyper)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd foreach": lambda g: torch.optim.SGD(g, momentum=0.9, foreach=True),
    "sgd fused": lambda g: torch.optim.SGD(g, momentum=0.9, fused=True),
    "sgd maximize": lambda g: torch.optim.SGD(g, maximize=True),
    "adam": torch.optim.Adam,
    "adam foreach": lambda g: torch.optim.Adam(g, foreach=True),
    "adam fused": lambda g: torch.optim.Adam(g, fused=True),
    "adam amsgrad": lambda g: torch.optim.Adam(g, amsgrad=True),
    "adamw foreach": lambda g: torch.optim.AdamW(g, foreach=True),
    "adamw fused": lambda g: torch.optim.AdamW(g, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adagrad fused": lambda g: torch.optim.Adagrad(g, fused=True),
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_optimiser(name: str) -> None:
    hyper, optimizer, search = start(make=OPTIMIZERS[name])
    advance(hyper, optimizer, search, 8)
    assert search.state_dict()["watch"]["observed"] == 8
    assert_exports(hyper)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_learning_rate_held_as_a_tensor(capturable: bool) -> None:
    if capturable and not torch.cuda.is_available():
        pytest.skip("torch offers capturable optimisers on accelerators only")
    device = "cuda" if capturable else "cpu"
    hyper = hyperize(residual().to(device), torch.zeros(IMAGES, device=device))
    rate = torch.tensor(0.01, device=device)
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=rate), capturable=capturable, foreach=capturable)
    search = Search(hyper, optimizer, HALF, 8, sparsifier=L1Proximal())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*had to be cut at once")
        for step in range(8):
            backward(hyper, images(step).to(device))
            optimizer.step()
            search.step()
    assert is_met(hyper)
    assert isinstance(search.progress().pressure, float)
    assert isinstance(search.state_dict()["sparsifier"]["pressure"], float)


def test_lbfgs_whose_closure_makes_the_gradients() -> None:
    hyper = hyperize(residual(), torch.zeros(IMAGES))
    optimizer = torch.optim.LBFGS(hyper.parameters(), lr=0.01, max_iter=3)  # takes one parameter group only
    search = Search(hyper, optimizer, HALF, 8)
    for step in range(8):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            return backward(hyper, images(step))

        optimizer.step(closure)
        search.step()
    assert search.state_dict()["watch"]["observed"] >= 8
    assert_exports(hyper)


def explained(hyper: HyperModel) -> Any:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch._dynamo.explain(hyper)(images())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("generator", GENERATORS)
def test_compile_finds_one_graph(generator: str, training: bool) -> None:
    found = explained(start(generator=GENERATORS[generator])[0].train(training))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


class Normed(nn.Module):
    """Norms over channels, a standardised weight and gated rows: everything of ours that can lie in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 1), StdConv2d(6, 8, 3), nn.GroupNorm(1, 8)
        self.hidden, self.layer_norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.query, self.key = nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(self.stem(x)))).flatten(2).transpose(1, 2)
        y = self.layer_norm(self.hidden(y))
        look = (self.query(y) @ self.key(y).transpose(1, 2)).softmax(-1)
        return self.out((look @ y).mean(1))


def test_compile_finds_one_graph_with_norms_and_attention() -> None:
    hyper = hyperize(Normed(), torch.zeros(IMAGES))
    assert len(hyper.norms) == 3
    assert hyper.coupling.standardised
    assert hyper.coupling.products
    found = explained(hyper.train())
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_compiled_network_is_searched_alike_and_compiled_once(generator: str) -> None:
    """Cutting units changes values, not shapes, so decisions cost no new compilation."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    ends = []
    counter = CompileCounterWithBackend("aot_eager")
    for compiled in (False, True):
        torch.manual_seed(0)
        hyper, optimizer, search = start(generator=GENERATORS[generator])
        run = torch.compile(hyper, backend=counter) if compiled else hyper
        for step in range(8):
            optimizer.zero_grad()
            backward(run, images(step))
            optimizer.step()
            search.step()
        ends.append(hyper)
    assert counter.frame_count == 1
    assert torch.equal(ends[0].living(), ends[1].living())
    torch.testing.assert_close(ends[0].bank.latents, ends[1].bank.latents)
    assert_exports(ends[1])


@pytest.mark.slow
def test_inductor_computes_the_same() -> None:
    torch._dynamo.reset()
    hyper, _, _ = start()
    hyper.bank.remove_(torch.arange(hyper.coupling.units) % 3 == 0)
    eager = backward(hyper)
    gradient = hyper.bank.latents.grad.clone()
    hyper.zero_grad()
    loss = backward(torch.compile(hyper))
    torch.testing.assert_close(loss, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hyper.bank.latents.grad, gradient, rtol=1e-3, atol=1e-5)
