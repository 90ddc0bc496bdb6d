"""A search that is killed and resumed ends where an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from hyperprune import DHP, Budget, Fisher, HyperModel, L1Proximal, Lean, PublishedL1, Search, export_pruned, hyperize
from hyperprune.errors import ModelError, SearchError
from hyperprune.files import draft_of, write_whole
from hyperprune.generators import Generator
from hyperprune.sparsifiers import (
    Balanced,
    BinaryGates,
    Cut,
    FirstOrder,
    HardConcrete,
    Random,
    Saliency,
    Sparsifier,
    Uniform,
)
from tests.fresh import exit_code_of
from tests.models import Block, residual

STEPS, SEARCH, EVERY = 26, 20, 3  # training goes on for a while after the search; a checkpoint every third step
IMAGES = (6, 3, 8, 8)
RULES: dict[str, Callable[[], Sparsifier]] = {
    "fisher": Fisher,
    "l1": L1Proximal,
    "published": lambda: PublishedL1(lambda_=0.05),
}
GENERATORS: dict[str, Generator] = {"lean": Lean(), "dhp": DHP(embedding=2), "dhp scratch": DHP(2, scratch=True)}
MOMENTS = ("before the step", "between optimizer.step and search.step", "while a checkpoint is written")


class Mixed(nn.Module):
    """Batch norm, group norm, dropout, and a layer norm over channels: everything that keeps a state of some kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Block(8, 10)
        self.conv, self.norm = nn.Conv2d(8, 12, 3, stride=2), nn.GroupNorm(1, 12)
        self.drop, self.hidden, self.layer_norm = nn.Dropout(0.2), nn.Linear(12, 16), nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(torch.relu(self.bn(self.stem(x))))
        y = torch.relu(self.norm(self.conv(y))).mean((2, 3))
        return self.out(torch.relu(self.layer_norm(self.hidden(self.drop(y)))))


class Run:
    """Everything a training program holds; a fresh one starts from weights of its own."""

    def __init__(self, rule: str, generator: str, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
        self.hyper = hyperize(Mixed(), x, generator=GENERATORS[generator]).train()
        self.optimizer = torch.optim.SGD(self.hyper.parameter_groups(lr=0.02, weight_decay=1e-3), momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.search = Search(self.hyper, self.optimizer, Budget(macs=0.5), SEARCH, sparsifier=RULES[rule](), every=2)
        self.step = 0
        torch.manual_seed(seed)

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("hyper", "optimizer", "schedule", "search")}
        return {**parts, "step": self.step, "random": torch.get_rng_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in ("hyper", "optimizer", "schedule", "search"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        torch.set_rng_state(state["random"])

    def train(self, die: Callable[[str], None]) -> None:
        """Take one step of an ordinary loop; ``die`` may end the process on the way."""
        die(MOMENTS[0])
        rng = torch.Generator().manual_seed(self.step)
        x, y = torch.randn(IMAGES, generator=rng), torch.randint(5, IMAGES[:1], generator=rng)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.hyper(x), y).backward()
        self.optimizer.step()
        die(MOMENTS[1])
        self.search.step()
        self.schedule.step()
        self.step += 1


def pack(state: Any) -> bytes:
    """Write nested dicts and lists of tensors and numbers without pickle: safetensors, and JSON in its notes."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().clone().contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, plain(item)] for key, item in value.items()]}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(plain(state), allow_nan=False)
    return save(tensors, {"state": text})


def unpack(data: bytes) -> Any:
    """The opposite of ``pack``."""
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])

    def rich(value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return tensors[value["tensor"]]
        if isinstance(value, dict):
            return {key: rich(item) for key, item in value["dict"]}
        return [rich(item) for item in value] if isinstance(value, list) else value

    return rich(json.loads(header["__metadata__"]["state"]))


def work(folder: Path, rule: str, generator: str, seed: int, death: tuple[int, str] | None) -> None:
    """The training program: go on from the checkpoint if there is one, save one now and then, perhaps be killed."""
    run, path = Run(rule, generator, seed), folder / "checkpoint"

    def die(moment: str) -> None:
        if (run.step, moment) == death:
            os.kill(os.getpid(), signal.SIGKILL)

    if path.exists():
        run.load_state(unpack(path.read_bytes()))
    else:
        write_slowly(path, pack(run.state()), die)
    while run.step < STEPS:
        run.train(die)
        if run.step % EVERY == 0:
            write_slowly(path, pack(run.state()), die)
    write_whole(folder / "end", pack(run.hyper.state_dict()))


def write_slowly(path: Path, data: bytes, die: Callable[[str], None]) -> None:
    """Write a checkpoint in two halves, so that a kill can meet it in between."""
    with draft_of(path) as draft:
        draft.write_bytes(data[: len(data) // 2])
        die(MOMENTS[2])
        draft.write_bytes(data)


def moment_of_death(seed: int) -> tuple[int, str]:
    """Draw a step and a place in it; checkpoints are written at some steps only."""
    moment, step = MOMENTS[seed % len(MOMENTS)], random.Random(seed).randrange(EVERY, STEPS)
    return (step // EVERY * EVERY if moment == MOMENTS[2] else step), moment


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Tensor]]:
    """How uninterrupted runs end."""
    ends: dict[tuple[str, str], dict[str, Tensor]] = {}

    def end(rule: str, generator: str) -> dict[str, Tensor]:
        if (rule, generator) not in ends:
            folder = tmp_path_factory.mktemp("straight")
            assert exit_code_of(work, folder, rule, generator, 0, None) == 0
            ends[rule, generator] = unpack((folder / "end").read_bytes())
        return ends[rule, generator]

    return end


CASES = [
    ("fisher", "lean"), ("fisher", "lean"), ("fisher", "lean"), ("l1", "lean"), ("published", "lean"),
    ("l1", "dhp"), ("published", "dhp scratch"),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "rule", "generator"), [(seed, *case) for seed, case in enumerate(CASES)])
def test_a_killed_search_ends_like_an_uninterrupted_one(
    seed: int, rule: str, generator: str, straight: Any, tmp_path: Path
) -> None:
    death = moment_of_death(seed)
    print(f"seed {seed}: killed at step {death[0]}, {death[1]}")
    assert exit_code_of(work, tmp_path, rule, generator, 0, death) == -signal.SIGKILL
    assert not (tmp_path / "end").exists()
    assert exit_code_of(work, tmp_path, rule, generator, 100 + seed, None) == 0
    found, expected = unpack((tmp_path / "end").read_bytes()), straight(rule, generator)
    assert list(found) == list(expected)
    assert 0 < int(expected["bank.alive"].sum()) < len(expected["bank.alive"])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_another_seed_alone_ends_elsewhere(straight: Any, tmp_path: Path) -> None:
    """So the test above compares something that does depend on the state."""
    assert exit_code_of(work, tmp_path, "fisher", "lean", 7, None) == 0
    found = unpack((tmp_path / "end").read_bytes())
    assert not torch.equal(found["bank.latents"], straight("fisher", "lean")["bank.latents"])


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_state_fills_a_fresh_network_and_exports_equal(generator: str) -> None:
    first, second = Run("fisher", generator, 0), Run("fisher", generator, 1)
    for _ in range(SEARCH):
        first.train(lambda moment: None)
    second.hyper.load_state_dict(first.hyper.state_dict())
    x = torch.randn(IMAGES)
    first.hyper.eval()
    second.hyper.eval()
    assert torch.equal(first.hyper(x), second.hyper(x))
    assert torch.equal(first.hyper.living(), second.hyper.living())
    assert torch.equal(export_pruned(first.hyper)(x), export_pruned(second.hyper)(x))


def test_states_hold_tensors_and_numbers_only(tmp_path: Path) -> None:
    run = Run("l1", "lean", 0)
    for _ in range(5):
        run.train(lambda moment: None)
    torch.save(run.state(), tmp_path / "state.pt")
    for state in (torch.load(tmp_path / "state.pt", weights_only=True), unpack(pack(run.state()))):
        again = Run("l1", "lean", 1)
        again.load_state(state)
        assert pack(again.state()) is not None
        assert torch.equal(again.hyper.bank.latents, run.hyper.bank.latents)
        assert again.search.progress() == run.search.progress()


def hyperized(model: nn.Module, **options: Any) -> HyperModel:
    return hyperize(model, torch.randn(IMAGES), **options)


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (lambda: hyperized(residual()), lambda: hyperized(residual(width=7))),
        (lambda: hyperized(residual()), lambda: hyperized(residual(), generator=DHP())),
        (lambda: hyperized(residual()), lambda: hyperized(residual(), keep=["block1.conv1"])),
        (lambda: hyperized(residual(), keep=["block1.conv1"]), lambda: hyperized(residual(), keep=["block2.conv1"])),
    ],
    ids=["widths", "generator", "keep", "keep with as many units"],
)
def test_a_state_of_another_hyper_model_is_refused_and_changes_nothing(
    made: Callable[[], HyperModel], other: Callable[[], HyperModel]
) -> None:
    hyper, state = made(), other().state_dict()
    before = {name: value.clone() for name, value in hyper.state_dict().items()}
    with pytest.raises(ModelError, match="another generator, keep= or only="):
        hyper.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in hyper.state_dict().items())
    hyper.load_state_dict(made().state_dict())


def searching(budget: Budget, rule: Sparsifier | None = None, model: nn.Module | None = None) -> Search:
    hyper = hyperized(residual() if model is None else model)
    return Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1)), budget, 10, sparsifier=rule)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: searching(Budget(macs=0.4)), "another budget"),
        (lambda: searching(Budget(params=0.5)), "another budget"),
        (lambda: searching(Budget(macs=0.5, divisor=2)), "another divisor or floor"),
        (lambda: searching(Budget(macs=0.5, floor=2)), "another divisor or floor"),
        (lambda: searching(Budget(macs=0.5), L1Proximal()), "another rule"),
        (lambda: searching(Budget(macs=0.5), None, residual(width=8, inner=7)), "another groups"),
        (lambda: searching(Budget(macs=0.5), None, residual(classes=4)), "another dense cost"),
    ],
)
def test_a_state_of_another_search_is_refused_and_changes_nothing(other: Callable[[], Search], message: str) -> None:
    search, stranger = searching(Budget(macs=0.5)), other()
    stranger.step_count = 3
    with pytest.raises(SearchError, match=message):
        search.load_state_dict(stranger.state_dict())
    assert search.step_count == 0


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (lambda: Fisher(decay=0.9), Fisher),
        (lambda: Sparsifier(Balanced(FirstOrder(), 0.5), Cut()), Fisher),
        (Uniform, lambda: Uniform(Saliency())),
        (lambda: PublishedL1(lambda_=1e-3), lambda: PublishedL1(lambda_=5e-2)),
        (lambda: PublishedL1(least=2), PublishedL1),
        (lambda: Random(seed=1), Random),
        (lambda: BinaryGates(slope=(1.0, 8.0)), BinaryGates),
        (lambda: HardConcrete(rate=0.1), HardConcrete),
    ],
    ids=["decay", "inner score", "no inner score", "lambda", "least", "seed", "slope", "rate"],
)
def test_a_state_of_a_rule_that_was_made_otherwise_is_refused(
    made: Callable[[], Sparsifier], other: Callable[[], Sparsifier]
) -> None:
    state = searching(Budget(macs=0.5), made()).state_dict()
    with pytest.raises(SearchError, match="another rule"):
        searching(Budget(macs=0.5), other()).load_state_dict(state)
    again = searching(Budget(macs=0.5), made())
    again.load_state_dict(unpack(pack(state)))
    assert str(again.state_dict()) == str(state)


def test_numbers_of_a_rule_may_be_written_otherwise() -> None:
    state = searching(Budget(macs=0.5), BinaryGates(slope=(1, 4))).state_dict()
    searching(Budget(macs=0.5), BinaryGates(slope=(1.0, 4.0))).load_state_dict(state)


@pytest.mark.parametrize("nothing", [None, [], "state"], ids=repr)
def test_what_is_no_mapping_is_refused(nothing: Any) -> None:
    with pytest.raises(SearchError, match=r"takes what Search\.state_dict\(\) returned"):
        searching(Budget(macs=0.5)).load_state_dict(nothing)


def test_something_that_is_no_state_is_refused() -> None:
    with pytest.raises(SearchError, match="lacks 'about'"):
        searching(Budget(macs=0.5)).load_state_dict({"step": 3})


def test_a_state_survives_a_file_of_safetensors(tmp_path: Path) -> None:
    hyper = hyperized(residual())
    path = write_whole(tmp_path / "hyper.safetensors", save(dict(hyper.state_dict())))
    fresh = hyperized(residual())
    fresh.load_state_dict(load_file(path))
    assert torch.equal(fresh(torch.ones(IMAGES)), hyper(torch.ones(IMAGES)))
