"""The Lightning callback, with the real library."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hyperprune import Budget, HyperModel, HyperpruneError, Search
from hyperprune.sparsifiers import Sparsifier, Taylor
from tests.models import residual

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from hyperprune.integrations.lightning import HyperPrune  # noqa: E402  after the skip

BATCHES = 6


class Classifier(pl.LightningModule):
    """What a user has: a network in ``self.model``, and nothing about pruning."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = residual() if model is None else model
        self.example_input_array = torch.zeros(2, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("hits", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader() -> DataLoader[Any]:
    made = torch.Generator().manual_seed(3)
    images, labels = torch.randn(4 * BATCHES, 3, 8, 8, generator=made), torch.arange(4 * BATCHES) % 3
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


@pytest.fixture(autouse=True)
def _quiet(recwarn: pytest.WarningsRecorder) -> None:
    """Lightning warns about worker counts and the like; they are its own affair."""


def assert_slim(module: Classifier, callback: HyperPrune, macs: float) -> None:
    assert not isinstance(module.model, HyperModel)
    assert type(module.model) is type(residual())
    assert callback.proof is not None
    assert callback.proof.holds
    assert callback.search is not None
    progress = callback.search.progress()
    assert progress.macs_fraction <= macs
    assert sum(p.numel() for p in module.model.parameters()) == progress.params


def test_fit_searches_and_leaves_the_slim_network_in_place(tmp_path: Path) -> None:
    module, callback = Classifier(), HyperPrune(Budget(macs=0.5), steps=0.5)
    made = trainer(tmp_path, callback, max_epochs=2, enable_checkpointing=False)
    made.fit(module, loader(), loader())
    assert callback.search is not None
    assert callback.search.steps == callback.search.step_count == BATCHES
    assert made.callback_metrics["macs_fraction"] <= 0.5
    assert_slim(module, callback, 0.5)
    made.test(module, loader(), verbose=False)  # the slim network, and no second hyperize
    assert_slim(module, callback, 0.5)


def test_accumulated_gradients_count_as_one_step(tmp_path: Path) -> None:
    module, callback = Classifier(), HyperPrune(Budget(params=0.6), steps=1.0)
    made = trainer(tmp_path, callback, max_epochs=2, accumulate_grad_batches=3, enable_checkpointing=False)
    made.fit(module, loader())
    assert callback.search is not None
    assert callback.search.steps == callback.search.step_count == 2 * BATCHES // 3


def test_the_scores_are_those_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    """Lightning runs the backward pass inside optimizer.step(closure): the gradients must be the fresh ones."""
    by_lightning, by_hand = Classifier(), Classifier()
    by_hand.load_state_dict(by_lightning.state_dict())
    callback = HyperPrune(Budget(macs=0.5), steps=BATCHES)
    callback_less = HyperPrune(Budget(macs=0.5), steps=BATCHES)
    trainer(tmp_path, callback, max_steps=BATCHES - 1, enable_checkpointing=False).fit(by_lightning, loader())

    callback_less.setup(trainer(tmp_path), by_hand, "fit")
    (optimizer,), _ = by_hand.configure_optimizers()
    search = Search(by_hand.model, optimizer, Budget(macs=0.5), BATCHES)
    by_hand.train()
    for batch in list(loader())[: BATCHES - 1]:
        optimizer.zero_grad()
        by_hand.training_step(batch, 0).backward()
        optimizer.step()
        search.step()
    assert callback.search is not None
    assert callback.search.step_count == BATCHES - 1
    for name, value in by_hand.model.state_dict().items():
        assert torch.equal(by_lightning.model.state_dict()[name], value), name


def test_a_checkpoint_in_the_middle_of_the_search_resumes_to_the_same_network(tmp_path: Path) -> None:
    start = residual().state_dict()

    def fit(epochs: int, **options: Any) -> tuple[Classifier, HyperPrune, Any]:
        module, callback = Classifier(), HyperPrune(Budget(macs=0.5), steps=2 * BATCHES)
        module.model.load_state_dict(start)
        made = trainer(tmp_path, callback, max_epochs=epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.fit(module, loader(), **options)
        return module, callback, made

    _, _, half = fit(1)
    resumed, callback, _ = fit(3, ckpt_path=half.checkpoint_callback.best_model_path, weights_only=True)
    whole, _, _ = fit(3)
    assert_slim(resumed, callback, 0.5)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_fit_that_ends_before_the_search_says_so_and_keeps_the_network(tmp_path: Path) -> None:
    module, callback = Classifier(), HyperPrune(Budget(macs=0.5), steps=100)
    with pytest.warns(UserWarning, match="ended before the search did"):
        trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, loader())
    assert isinstance(module.model, HyperModel)
    slim = callback.export(module)
    assert slim is module.model


@pytest.mark.parametrize("rule", [None, Taylor()])
def test_a_second_fit_goes_on_where_the_first_ended(rule: Sparsifier | None, tmp_path: Path) -> None:
    module = Classifier()
    callback = HyperPrune(Budget(macs=0.5), steps=BATCHES + 2, search_options={"sparsifier": rule})
    trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, loader())
    assert callback.search is not None
    assert callback.search.step_count == BATCHES
    trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, loader())
    assert_slim(module, callback, 0.5)


@pytest.mark.parametrize("steps", [0, -3, 0.0, 1.5])
def test_steps_out_of_range_are_refused(steps: float) -> None:
    with pytest.raises(HyperpruneError, match="fraction"):
        HyperPrune(Budget(macs=0.5), steps=steps)


def test_a_missing_attribute_and_missing_inputs_are_explained(tmp_path: Path) -> None:
    with pytest.raises(HyperpruneError, match="attribute='backbone'"):
        HyperPrune(Budget(macs=0.5), attribute="net").setup(trainer(tmp_path), Classifier(), "fit")
    module = Classifier()
    module.example_input_array = None
    with pytest.raises(HyperpruneError, match="example_input_array"):
        HyperPrune(Budget(macs=0.5)).setup(trainer(tmp_path), module, "fit")


def test_a_fraction_of_an_endless_fit_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=-1, enable_checkpointing=False)
    callback = HyperPrune(Budget(macs=0.5), steps=0.5)
    with pytest.raises(HyperpruneError, match="no known length"):
        callback._steps_of(made)


def test_two_callbacks_prune_two_networks_of_one_module(tmp_path: Path) -> None:
    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.other = residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) + self.other(x)

    module, half = Two(), Budget(macs=0.5)
    callbacks = [HyperPrune(half, steps=1.0), HyperPrune(half, steps=1.0, attribute="other")]
    made = trainer(tmp_path, *callbacks, max_epochs=1)
    made.fit(module, loader())
    assert {"macs_fraction", "other_macs_fraction"} <= made.callback_metrics.keys()
    assert all(callback.proof is not None and callback.proof.holds for callback in callbacks)


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_the_network_before_it_is_hyperized_are_refused(name: str, tmp_path: Path) -> None:
    kinds = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(kinds, name):
        pytest.skip(f"this version of Lightning has no {name}")
    module, averaging = Classifier(), getattr(kinds, name)(**({"swa_lrs": 0.1} if name[0] == "S" else {}))
    with pytest.raises(HyperpruneError, match=rf"callbacks=\[HyperPrune\(...\), {name}"):
        trainer(tmp_path, averaging, HyperPrune(Budget(macs=0.5)), max_epochs=1).fit(module, loader())
    assert type(module.model) is type(residual()), "the module is as it was"


def test_an_average_of_the_weights_is_exported(tmp_path: Path) -> None:
    kinds = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(kinds, "EMAWeightAveraging"):
        pytest.skip("this version of Lightning has no EMAWeightAveraging")
    module, callback = Classifier(), HyperPrune(Budget(macs=0.5), steps=4)
    averaging = kinds.EMAWeightAveraging(use_buffers=False)
    trainer(tmp_path, callback, averaging, max_epochs=2).fit(module, loader())
    assert_slim(module, callback, 0.5)
