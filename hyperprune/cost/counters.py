"""An independent count of a model's cost, by fvcore."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hyperprune.copies import copied
from hyperprune.errors import InputsError
from hyperprune.trace import ExampleInputs

LAYERS = ("conv", "linear", "addmm", "matmul", "bmm")


@dataclass(frozen=True)
class CountedCost:
    """What fvcore counts on one forward pass.

    Attributes:
        macs: multiply-adds of convolutions and linear layers.
        params: number of parameters.
        by_operator: multiply-adds by fvcore's operator name.
    """

    macs: int
    params: int
    by_operator: dict[str, int]


def count_with_fvcore(model: nn.Module, example_inputs: Any) -> CountedCost:
    """Count MACs and parameters of a plain model with fvcore (which counts one multiply-add as one).

    Args:
        model: any module; it is copied and counted in eval mode.
        example_inputs: a tensor or a tuple of positional arguments.

    Raises:
        InputsError: there are keyword arguments, which fvcore does not take.

    Example:
        >>> count_with_fvcore(nn.Linear(4, 3), torch.zeros(1, 4)).macs
        12
    """
    inputs = ExampleInputs.of(example_inputs).copied()
    if inputs.kwargs:
        raise InputsError(
            f"fvcore takes positional arguments only, and {', '.join(inputs.kwargs)} came by name. Pass a tuple in the "
            f"order of {type(model).__name__}.forward()."
        )
    level = logging.getLogger("fvcore.nn.jit_analysis")
    before = level.level
    level.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            from fvcore.nn import FlopCountAnalysis

            counter = FlopCountAnalysis(copied(model).eval(), tuple(inputs.args))
            counted = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    finally:
        level.setLevel(before)
    by_operator = {name: int(count) for name, count in counted.items()}
    macs = sum(count for name, count in by_operator.items() if name in LAYERS)
    return CountedCost(macs, sum(p.numel() for p in model.parameters()), by_operator)
