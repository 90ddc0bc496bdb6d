"""What recurrent layers do otherwise: torch's note their weights in a list, in which generated ones would grow old."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def ask_anew_(module: nn.Module) -> None:
    """Let a parametrized recurrent layer take its weights as they are at each run, in place."""
    if isinstance(module, nn.RNNBase):
        kind: Any = type(module)  # torch gives each parametrized layer a class of its own
        kind._flat_weights = property(_weights, lambda layer, noted: None)
        kind._update_flat_weights = lambda layer: None
        vars(module).pop("_flat_weights", None)


def note_weights_(module: nn.Module) -> None:
    """Let a plain recurrent layer note the weights that it has now, in place."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _weights(layer: Any) -> list[Tensor]:
    return [getattr(layer, name) for name in layer._flat_weights_names]
