"""``search.attach(optimizer)``: loops that are not the user's own, with the real libraries."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hyperprune import (
    BinaryGates,
    Budget,
    Fisher,
    HyperModel,
    HyperpruneError,
    L1Proximal,
    Search,
    export_pruned,
    hyperize,
)
from tests.models import residual

STEPS = 8


def data() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    return torch.randn(24, 3, 8, 8, generator=made), torch.arange(24) % 3


def start(make: Callable[[Any], torch.optim.Optimizer] | None = None, **options: Any) -> tuple[HyperModel, Any, Search]:
    hyper = hyperize(residual(), torch.zeros(1, 3, 8, 8)).train()
    groups = hyper.parameter_groups(lr=0.02)
    optimizer = torch.optim.SGD(groups, momentum=0.9) if make is None else make(groups)
    return hyper, optimizer, Search(hyper, optimizer, Budget(macs=0.5), STEPS, **options)


def backward(hyper: HyperModel) -> Tensor:
    images, labels = data()
    loss = F.cross_entropy(hyper(images), labels)
    loss.backward()
    return loss


def assert_searched_alike(one: HyperModel, other: HyperModel) -> None:
    assert bool((~one.living()).any())
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_attached_is_the_same_as_calling_step() -> None:
    torch.manual_seed(1)
    by_hand, optimizer, search = start()
    torch.manual_seed(1)
    by_itself, attached, its_search = start()
    assert its_search.attach(attached) is its_search
    for _ in range(STEPS):
        for hyper, made in ((by_hand, optimizer), (by_itself, attached)):
            made.zero_grad()
            backward(hyper)
            made.step()
        search.step()
    assert search.done
    assert its_search.done
    assert_searched_alike(by_hand, by_itself)


def test_a_closure_is_observed_after_it_has_run() -> None:
    torch.manual_seed(1)
    by_hand, optimizer, search = start()
    torch.manual_seed(1)
    by_closure, other, its_search = start()
    its_search.attach(other)

    def closure() -> Tensor:
        other.zero_grad()
        return backward(by_closure)

    for at in range(STEPS):
        optimizer.zero_grad()
        backward(by_hand)
        optimizer.step()
        search.step()
        loss = other.step(closure) if at % 2 else other.step(closure=closure)
        assert isinstance(loss, Tensor)
    assert_searched_alike(by_hand, by_closure)


def test_a_second_driver_and_a_foreign_optimiser_are_refused() -> None:
    _, optimizer, search = start()
    with pytest.raises(HyperpruneError, match="optimiser the search was made with"):
        search.attach(start()[1])
    search.attach(optimizer)
    with pytest.raises(HyperpruneError, match="already"):
        search.attach(optimizer)
    with pytest.raises(HyperpruneError, match="count twice"):
        search.step()
    assert search.step_count == 0


def test_the_optimiser_keeps_an_attached_search_alive() -> None:
    hyper, optimizer, search = start()
    search.attach(optimizer)
    del search
    gc.collect()
    for _ in range(STEPS):
        backward(hyper)
        optimizer.step()
    assert hyper.cost.total(hyper.cost.full).macs > 0
    assert not bool(hyper.living().all())


def fused(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


@pytest.mark.parametrize("make", [None, fused], ids=["sgd", "fused adamw"])
def test_a_step_that_the_scaler_skips_is_none(make: Any) -> None:
    hyper, optimizer, search = start(make)
    search.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for at in range(3):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(hyper(data()[0]), data()[1])).backward()
        if at == 1:
            hyper.model.fc.parametrizations.weight.original.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert search.step_count == 2


def test_a_fused_optimiser_shows_the_search_unscaled_gradients() -> None:
    scores = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(1)
        hyper, optimizer, search = start(fused, every=2)
        search.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(F.cross_entropy(hyper(data()[0]), data()[1])).backward()
        scaler.step(optimizer)
        scores.append(search.state_dict()["sparsifier"]["score"]["within"]["average"])
    assert scores[0].max() > 0
    torch.testing.assert_close(scores[0], scores[1])


def test_the_learning_rate_is_read_where_it_is_after_the_optimiser_was_loaded() -> None:
    """load_state_dict replaces the groups: the l1 step must follow the new one's learning rate."""
    hyper, optimizer, search = start(sparsifier=L1Proximal(), every=1)
    optimizer.load_state_dict(optimizer.state_dict())
    search.attach(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = hyper.bank.latents.detach().clone()
    for _ in range(2):
        backward(hyper)
        optimizer.step()
    assert torch.equal(hyper.bank.latents, before), "without a learning rate there is no step"


def train(hyper: HyperModel, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(hyper)
        optimizer.step()


@pytest.mark.parametrize("rule", [Fisher, L1Proximal, BinaryGates])
def test_an_attached_search_is_saved_and_resumed_with_its_optimiser(tmp_path: Path, rule: Any) -> None:
    torch.manual_seed(1)
    whole, optimizer, search = start(sparsifier=rule(), every=2)
    search.attach(optimizer)
    train(whole, optimizer, 5)
    torch.save({"network": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(whole, optimizer, STEPS - 5)
    resumed, other, its_search = start(sparsifier=rule(), every=2)
    its_search.attach(other)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["network"])
    other.load_state_dict(state["optimizer"])
    assert its_search.step_count == 5
    train(resumed, other, STEPS - 5)
    assert its_search.done
    assert_searched_alike(whole, resumed)


def test_only_an_attached_search_travels_with_its_optimiser() -> None:
    hyper, optimizer, search = start()
    assert "searches" not in optimizer.state_dict()
    before = optimizer.state_dict()
    search.attach(optimizer)
    train(hyper, optimizer, 2)
    optimizer.load_state_dict(before)
    assert search.step_count == 2, "a state from before it was attached says nothing of it"
    newer = Search(hyper, optimizer, Budget(macs=0.4), STEPS)
    assert "searches" not in optimizer.state_dict(), "a newer search, not attached, has taken its place"
    assert newer.step_count == 0


def test_two_networks_that_one_optimiser_trains_resume_each_its_own_search() -> None:
    def both() -> tuple[list[HyperModel], torch.optim.Optimizer, list[Search]]:
        torch.manual_seed(1)
        networks = [hyperize(residual(), torch.zeros(1, 3, 8, 8)).train() for _ in range(2)]
        optimizer = torch.optim.SGD([group for hyper in networks for group in hyper.parameter_groups(lr=0.02)])
        steps = (STEPS, 2 * STEPS)
        return (
            networks,
            optimizer,
            [
                Search(hyper, optimizer, Budget(macs=0.5), count, every=2).attach(optimizer)
                for hyper, count in zip(networks, steps, strict=True)
            ],
        )

    def go_on(networks: list[HyperModel], optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            for hyper in networks:
                backward(hyper)
            optimizer.step()

    networks, optimizer, _ = both()
    go_on(networks, optimizer, 4)
    states = copy.deepcopy([hyper.state_dict() for hyper in networks]), copy.deepcopy(optimizer.state_dict())
    go_on(networks, optimizer, 6)
    others, other, searches = both()
    for hyper, state in zip(others, states[0], strict=True):
        hyper.load_state_dict(state)
    other.load_state_dict(states[1])
    assert [(search.step_count, search.steps) for search in searches] == [(4, STEPS), (4, 2 * STEPS)]
    go_on(others, other, 6)
    for one, resumed in zip(networks, others, strict=True):
        assert_searched_alike(one, resumed)


def test_the_state_of_another_search_leaves_search_and_optimiser_as_found() -> None:
    hyper, optimizer, search = start()
    search.attach(optimizer)
    train(hyper, optimizer, 2)
    other = torch.optim.SGD(hyper.parameter_groups(lr=0.5))
    smaller = Search(hyper, other, Budget(macs=0.4), STEPS).attach(other)
    with pytest.raises(HyperpruneError, match="budget"):
        other.load_state_dict({**other.state_dict(), "searches": [search.state_dict()]})
    assert smaller.step_count == 0
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5]


def test_accelerate_resumes_the_search_with_its_state(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    states = []
    for resumes in (False, True):
        torch.manual_seed(1)
        hyper, optimizer, search = start(every=2)
        model, wrapped = accelerator.prepare(hyper, optimizer)
        search.attach(wrapped)
        if resumes:
            accelerator.load_state(str(tmp_path))
            assert search.step_count == 4
        else:
            train(model, wrapped, 4)
            accelerator.save_state(str(tmp_path))
        train(model, wrapped, 4)
        accelerator.free_memory()
        assert search.done
        states.append(hyper)
    assert_searched_alike(*states)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    hyper, optimizer, search = start()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=4)
    model, wrapped, loader = accelerator.prepare(hyper, optimizer, loader)
    search.attach(wrapped)
    for _ in range(4):
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(images), labels))
                wrapped.step()
                wrapped.zero_grad()
    assert search.done, "24 batches are 12 steps"
    assert search.step_count == STEPS
    slim = export_pruned(accelerator.unwrap_model(model))
    assert sum(p.numel() for p in slim.parameters()) == search.progress().params


def test_a_search_can_be_made_with_accelerates_wrapper() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    hyper, optimizer, _ = start()
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    search = Search(hyper, wrapped, Budget(macs=0.5), STEPS).attach(wrapped)
    for _ in range(STEPS):
        backward(hyper)
        wrapped.step()
    assert search.done


@pytest.mark.parametrize("resumes", [False, True])
def test_transformers_trainer(tmp_path: Path, resumes: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    images, labels = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 3
    examples = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=9, per_device_train_batch_size=4, report_to=[], seed=5,
        disable_tqdm=True, save_strategy="steps", save_steps=3, max_grad_norm=1.0, label_names=["labels"],
        remove_unused_columns=False,  # Trainer reads the names from forward, and HyperModel takes any
    )  # fmt: skip

    def searched(**resume: Any) -> tuple[HyperModel, Search]:
        torch.manual_seed(4)
        hyper = hyperize(transformers.ResNetForImageClassification(config), {"pixel_values": images[:2]})
        optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.02), momentum=0.9)
        search = Search(hyper, optimizer, Budget(macs=0.5), steps=6, every=2).attach(optimizer)
        trainer = transformers.Trainer(hyper, arguments, train_dataset=examples, optimizers=(optimizer, None))
        trainer.train(**resume)
        return hyper, search

    hyper, search = searched()
    if resumes:
        first = hyper
        hyper, search = searched(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert_searched_alike(first, hyper)
    assert search.done
    assert search.step_count == 6
    slim = export_pruned(hyper)
    assert isinstance(slim, transformers.ResNetForImageClassification)
    assert sum(p.numel() for p in slim.parameters()) == search.progress().params
    assert (tmp_path / "checkpoint-9" / "model.safetensors").exists()
