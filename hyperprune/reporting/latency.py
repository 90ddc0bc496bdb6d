"""How long a forward pass takes, for several models on the same machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from hyperprune.latency import in_turns
from hyperprune.verify import eval_mode


@torch.no_grad()
def measure_latency(models: Mapping[str, nn.Module], example_inputs: Tensor, rounds: int = 30) -> dict[str, float]:
    """Return the median time of a forward pass of each model, in milliseconds.

    The models take turns, so that a busy moment of the machine hits all of them alike. Each runs in
    eval mode and gets its mode back.

    Args:
        models: by name; all on the device of ``example_inputs``.
        example_inputs: a batch, for instance ``(64, 3, 32, 32)``.
        rounds: timed forward passes per model, after some that warm up.
    """
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(eval_mode(model))
        calls = [partial(model, example_inputs) for model in models.values()]
        times = in_turns(calls, rounds, example_inputs.device)
    return {name: median(values) for name, values in zip(models, times, strict=True)}
