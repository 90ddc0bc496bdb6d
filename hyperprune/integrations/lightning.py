"""``HyperPrune``: a Lightning callback that prunes one attribute of a LightningModule while it trains."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hyperprune.arguments import is_count, is_positive
from hyperprune.budget import Budget
from hyperprune.errors import MissingLibraryError, ModelError, SearchError
from hyperprune.export import export_with_proof
from hyperprune.hyper import HyperModel, hyperize
from hyperprune.search import Search
from hyperprune.verify import Proof

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingLibraryError("lightning is not installed: pip install 'hyperprune[lightning]'") from error


class HyperPrune(Callback):
    """Hyperize before the optimiser is made, search while training, put the slim network in place at the end.

    ``trainer.fit`` trains and searches ``module.model``; afterwards that attribute holds the slim network, plain and
    proved equal, and ``trainer.test(module)`` tests it. A checkpoint taken on the way resumes with ``ckpt_path=``.
    The fraction of MACs that is left is logged each epoch as ``macs_fraction`` (``backbone_macs_fraction`` of another
    attribute: several callbacks may each prune one).

    Args:
        budget: what the slim network may cost.
        steps: optimiser steps of the search: a count, or a fraction of all steps of this fit; by default a third,
            as in the benchmark.
        example_inputs: as for ``hyperize``; the module's ``example_input_array`` by default.
        attribute: the network within the LightningModule; it must be there before ``setup`` (make it in
            ``__init__``).
        search_options: anything else ``Search`` takes, for instance ``sparsifier=L1Proximal()``.

    Attributes:
        search: the search; None before the training starts.
        proof: how well the slim network equals the searched one; None before the export.

    Raises:
        SearchError: ``steps`` is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=10, callbacks=[HyperPrune(Budget(macs=0.5))])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> save_pruned(module.model, "slim.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self,
        budget: Budget,
        *,
        steps: int | float = 1 / 3,
        example_inputs: Any = None,
        attribute: str = "model",
        search_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not (is_count(steps) or (is_positive(steps) and steps <= 1)):
            raise SearchError(f"steps must be a whole number of at least 1 or a fraction in (0, 1], not {steps!r}.")
        self.budget = budget
        self.steps = steps
        self.example_inputs = example_inputs
        self.attribute = attribute
        self.search_options = dict(search_options or {})
        self.search: Search | None = None
        self.proof: Proof | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Tell several of these callbacks apart in one checkpoint."""
        return self._generate_state_key(attribute=self.attribute)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hyperize the network before ``configure_optimizers`` sees it.

        Raises:
            ModelError: there is no such network, no inputs, or a callback that averages weights is listed before.
        """
        model = self._network(pl_module)
        if stage == "fit" and self.proof is None and not isinstance(model, HyperModel):
            _require_first(self, trainer)
            setattr(pl_module, self.attribute, hyperize(model, self._inputs(pl_module)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the search, or go on with that of the checkpoint."""
        hyper = self._network(pl_module)
        if not isinstance(hyper, HyperModel) or (self.search is not None and self.search.done):
            return
        optimizer = _holder(trainer.optimizers, hyper)
        if self._saved is None and self.search is not None:  # an earlier fit ended before it
            self._saved = self.search.state_dict()
        options = self.search_options
        self.search_options = copy.deepcopy(options)  # for another fit: a rule serves one search
        self.search = Search(hyper, optimizer, self.budget, self._steps_of(trainer), **options)
        if self._saved is not None:
            self.search.load_state_dict(self._saved)
            self._saved = None
        self.search.attach(optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how much is left."""
        if self.search is not None:
            before = "" if self.attribute == "model" else f"{self.attribute}_"
            pl_module.log(f"{before}macs_fraction", self.search.progress().macs_fraction)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, if the search has reached its budget."""
        if not isinstance(self._network(pl_module), HyperModel):
            return
        if self.search is not None and self.search.done:
            self.export(pl_module)
        else:
            warnings.warn(
                f"the training ended before the search did, so {self.attribute!r} is still the searched network. "
                "Fit longer, give the search fewer steps, or call export(module) for what there is.",
                stacklevel=2,
            )

    def export(self, pl_module: LightningModule) -> nn.Module:
        """Put the slim network in place of the searched one, now, and return it.

        Raises:
            ProofError: the slim network does not equal the searched one; the searched one stays.
        """
        slim, self.proof = export_with_proof(self._network(pl_module))  # type: ignore[arg-type]  # checked there
        setattr(pl_module, self.attribute, slim)
        return slim

    def state_dict(self) -> dict[str, Any]:
        """Return the search's state, for Lightning's checkpoints."""
        return {"search": None if self.search is None else self.search.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the search begins."""
        self._saved = state_dict["search"]

    def _network(self, pl_module: LightningModule) -> nn.Module:
        model = getattr(pl_module, self.attribute, None)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{type(pl_module).__name__} has no module {self.attribute!r} yet. Make it in __init__, or name the "
                "right one: HyperPrune(..., attribute='backbone')."
            )
        return model

    def _inputs(self, pl_module: LightningModule) -> Any:
        inputs = pl_module.example_input_array if self.example_inputs is None else self.example_inputs
        if inputs is None:
            raise ModelError(
                "HyperPrune needs example inputs: pass example_inputs=torch.randn(1, 3, 224, 224), or set "
                f"self.example_input_array in {type(pl_module).__name__}."
            )
        return inputs

    def _steps_of(self, trainer: Trainer) -> int:
        if is_count(self.steps):
            return int(self.steps)
        total = trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise SearchError(
                f"steps={self.steps} is a fraction, but this fit has no known length. Give max_epochs or max_steps "
                "to the Trainer, or a whole number of steps to HyperPrune."
            )
        return max(1, round(self.steps * total))


def _require_first(callback: Callback, trainer: Trainer) -> None:
    """Refuse a callback that has copied the module already, to average its weights."""
    for earlier in takewhile(lambda other: other is not callback, trainer.callbacks):  # type: ignore[attr-defined]
        if any(base.__name__.endswith("WeightAveraging") for base in type(earlier).__mro__):
            name = type(earlier).__name__
            raise ModelError(
                f"{name} is listed before HyperPrune, so it would average a copy of the network as it is before it is "
                f"hyperized. List HyperPrune first: callbacks=[HyperPrune(...), {name}(...)]."
            )


def _holder(optimizers: list[Optimizer], hyper: HyperModel) -> Optimizer:
    """Return the optimiser that holds the latents (or the first, whose lack Search will explain)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(parameter is hyper.bank.latents for parameter in group["params"]):
                return optimizer
    return optimizers[0]
