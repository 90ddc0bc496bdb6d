"""Which axes are freed, and with which inputs that is tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperprune.batches import batch_of, with_batch
from hyperprune.errors import InputsError
from hyperprune.onnx_export.axes import free_axes, in_order, trials, widened
from hyperprune.onnx_export.graph import output_names
from hyperprune.trace import ExampleInputs


def test_only_tensors_as_long_as_the_first_share_the_batch() -> None:
    inputs = ExampleInputs.of((torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(()), torch.zeros(4)))
    assert free_axes(inputs, batch=True, size=False) == [{0: "batch"}, {}, {}, {0: "batch"}]
    assert [len(t) if t.ndim else 0 for t in with_batch(inputs, 7).tensors()] == [7, 3, 0, 7]


@pytest.mark.parametrize(
    ("shape", "names"),
    [((1, 3, 9), ["length"]), ((1, 3, 9, 9), ["height", "width"]), ((1, 3, 5, 9, 9), ["depth", "height", "width"])],
)
def test_sizes_are_named_by_the_number_of_axes(shape: tuple[int, ...], names: list[str]) -> None:
    (axes,) = free_axes(ExampleInputs.of(torch.zeros(shape)), batch=False, size=True)
    assert axes == dict(enumerate(names, start=2))


def test_rows_of_a_larger_batch_differ_and_hold_only_values_that_were_given() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    rows = with_batch(ExampleInputs.of(tokens), 4).args[0]
    assert len({tuple(row) for row in rows.tolist()}) == 4
    assert rows.sort(dim=1).values.tolist() == [[5, 6, 7, 8]] * 4
    assert torch.equal(rows[:1], tokens)


def test_a_batch_of_one_is_widened_for_the_trace_and_a_larger_one_is_not() -> None:
    assert batch_of(widened(ExampleInputs.of(torch.zeros(1, 2)))) == 2
    assert batch_of(widened(ExampleInputs.of(torch.zeros(6, 2)))) == 6


@pytest.mark.parametrize("given", [1, 2, 5])
def test_the_batch_that_is_tried_is_another_than_the_one_given_and_the_one_traced(given: int) -> None:
    inputs = ExampleInputs.of(torch.zeros(given, 2))
    tried = [batch_of(trial) for trial in trials(inputs, batch=True, size=False)]
    assert tried[0] == given
    assert tried[1] not in (given, batch_of(widened(inputs)))


def test_height_and_width_are_tried_with_different_factors() -> None:
    inputs = ExampleInputs.of(torch.zeros(1, 3, 8, 8))
    assert [tuple(t.args[0].shape) for t in trials(inputs, batch=False, size=True)] == [(1, 3, 8, 8), (1, 3, 24, 16)]


@pytest.mark.parametrize("tensor", [torch.zeros(()), torch.zeros(0, 3)], ids=["scalar", "no row"])
def test_inputs_without_a_row_have_no_batch(tensor: torch.Tensor) -> None:
    with pytest.raises(InputsError, match=r"axis 0 has length 0|no batch axis"):
        with_batch(ExampleInputs.of(tensor), 2)


def test_keyword_arguments_come_in_the_order_of_the_signature() -> None:
    class Two(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first + second

    inputs = ExampleInputs.of({"second": torch.ones(1), "first": torch.zeros(1)})
    assert list(in_order(inputs, Two()).kwargs) == ["first", "second"]


def test_outputs_are_named_by_their_place() -> None:
    t = torch.zeros(1)
    assert output_names(t) == ["output"]
    assert output_names((t, t)) == ["output_0", "output_1"]
    assert output_names({"a": t, "b": {"c": t}, "none": None}) == ["a", "b_c"]
    assert output_names({"a": {"b": t}, "a_b": t}) == ["a_b", "a_b_out"]
