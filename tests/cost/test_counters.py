"""The second opinion on a network's cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hyperprune.cost import count_with_fvcore
from hyperprune.errors import InputsError
from hyperprune.trace import ExampleInputs


@pytest.mark.parametrize("inputs", [{"input": torch.zeros(1, 4)}, ExampleInputs((), {"input": torch.zeros(1, 4)})])
def test_inputs_by_name_are_refused_with_a_way_out(inputs: Any) -> None:
    with pytest.raises(InputsError, match=r"input came by name. Pass a tuple in the order of Linear.forward\(\)"):
        count_with_fvcore(nn.Linear(4, 3), inputs)
