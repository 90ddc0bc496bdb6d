"""Comparing outputs of any structure."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperprune.errors import ProofError
from hyperprune.trace import ExampleInputs
from hyperprune.verify import compare, run_eval, tensors_of

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Output:
    logits: Tensor
    hidden: list[Tensor]
    loss: None = None


def test_the_error_is_the_largest_difference_over_the_largest_reference() -> None:
    proof = compare(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0]))
    assert (proof.relative_error, proof.outputs) == (0.125, 1)


def test_the_worst_of_several_outputs_counts_each_on_its_own_scale() -> None:
    proof = compare([torch.tensor([1000.0]), torch.tensor([1.0])], [torch.tensor([1001.0]), torch.tensor([1.25])])
    assert (proof.relative_error, proof.outputs) == (0.25, 2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)],
)
def test_the_tolerance_is_what_rounding_explains(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.ones(2, dtype=dtype)
    assert compare(x, x).tolerance == tolerance
    assert compare(x, x, tolerance=0.5).tolerance == 0.5


def test_a_proof_holds_up_to_its_tolerance() -> None:
    a = torch.tensor([1.0])
    assert compare(a, a + 0.25, tolerance=0.25).holds
    assert not compare(a, a + 0.25, tolerance=0.2).holds


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_gone_bad_on_one_side_never_holds(bad: float) -> None:
    assert not compare(torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad]), tolerance=1e9).holds
    assert not compare(torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0]), tolerance=1e9).holds


def test_the_same_not_a_number_on_both_sides_is_the_same() -> None:
    x = torch.tensor([float("nan"), float("inf"), 1.0])
    assert compare(x, x.clone()).relative_error == 0


def test_a_difference_from_an_all_zero_reference_never_holds() -> None:
    assert not compare(torch.zeros(3), torch.full((3,), 1e-6)).holds
    assert compare(torch.zeros(3), torch.zeros(3)).holds


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, 1), [torch.zeros(2)] * 2, []], ids=str)
def test_outputs_of_other_shapes_or_number_are_an_error(other: Any) -> None:
    with pytest.raises(ProofError, match="shapes"):
        compare(torch.zeros(2), other)


def test_tensors_are_found_in_tuples_dicts_and_dataclasses() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    found = tensors_of({"x": (a, None), "y": Output(b, [c]), "z": "text"})
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(c)]


def test_integer_outputs_must_agree_exactly() -> None:
    assert compare(torch.tensor([3]), torch.tensor([3])).holds
    assert not compare(torch.tensor([3]), torch.tensor([4])).holds


def test_running_in_eval_mode_gives_modes_and_random_state_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[2].eval()
    before, x = torch.random.get_rng_state(), torch.ones(1, 2)
    first, second = run_eval(model, ExampleInputs.of(x)), run_eval(model, ExampleInputs.of(x))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert [m.training for m in model] == [True, True, False]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_mode_comes_back_even_if_the_model_fails() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        run_eval(model, ExampleInputs.of(torch.ones(1, 3)))
    assert model.training


def test_a_proof_reads_as_a_sentence() -> None:
    assert str(compare(torch.ones(1), torch.ones(1))) == "relative error 0.0e+00 <= 1e-04 over 1 outputs"
    assert ">" in str(compare(torch.ones(1), torch.zeros(1)))


class Boxes:
    """What a user's own class looks like to torch once it is registered."""

    def __init__(self, corners: Tensor) -> None:
        self.corners = corners


torch.utils._pytree.register_pytree_node(
    Boxes, lambda boxes: ([boxes.corners], None), lambda values, _: Boxes(*values), serialized_type_name="test.Boxes"
)


def test_a_class_that_torch_can_flatten_is_looked_into() -> None:
    assert compare(Boxes(torch.tensor([4.0])), Boxes(torch.tensor([3.0]))).relative_error == 0.25


@pytest.mark.parametrize("nothing", [[], None, "text"])
def test_outputs_without_a_tensor_prove_nothing(nothing: Any) -> None:
    with pytest.raises(ProofError, match="hold no tensor"):
        compare(nothing, nothing)


@pytest.mark.parametrize("fill", [-1e9, -1e4, float("-inf"), torch.finfo(torch.float32).min])
def test_a_mask_does_not_hide_what_differs_beside_it(fill: float) -> None:
    a = torch.tensor([1.0, fill, fill])
    assert compare(a, torch.tensor([1.5, fill, fill])).relative_error == 0.5


def test_large_numbers_that_differ_are_no_mask() -> None:
    assert compare(torch.tensor([1e6, 1.0]), torch.tensor([1e6 + 1, 1.0])).holds


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-4), (torch.complex128, 1e-10)])
def test_imaginary_parts_count(dtype: torch.dtype, tolerance: float) -> None:
    proof = compare(torch.tensor([4 + 0j], dtype=dtype), torch.tensor([4 + 1j], dtype=dtype))
    assert (proof.relative_error, proof.tolerance) == (0.25, tolerance)


def test_outputs_of_whole_numbers_and_of_truth_values_are_compared() -> None:
    both = torch.tensor([1, 2000]), torch.tensor([True, False])
    assert compare(both, both).relative_error == 0
    assert not compare(both, both).uneven
    assert compare(both[1], ~both[1]).relative_error == 1
    assert compare(torch.tensor([0.1, 5000.0]), torch.tensor([0.1, 5000.0])).uneven


PRECISIONS: dict[str, Callable[[], None]] = {
    "the old interface": lambda: torch.set_float32_matmul_precision("medium"),
    "an old flag": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "the new interface": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "the new interface for all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}
PRECISION = """\
import sys, torch
from tests.test_verify import PRECISIONS, precisions
from hyperprune.verify import full_precision
PRECISIONS[sys.argv[1]]()
before = precisions()
with full_precision():
    assert precisions()["matmul"] == precisions()["conv"] == "ieee", precisions()
    torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))
assert precisions() == before, (before, precisions())
"""


def precisions() -> dict[str, Any]:
    """Return torch's settings in both interfaces; one it does not tell as an exception."""
    backends: Any = torch.backends
    found: dict[str, Any] = {"matmul": backends.cuda.matmul.fp32_precision, "conv": backends.cudnn.conv.fp32_precision}
    found["products"] = backends.mkldnn.matmul.fp32_precision
    for name, read in (
        ("level", torch.get_float32_matmul_precision),
        ("matmul flag", lambda: backends.cuda.matmul.allow_tf32),
        ("conv flag", lambda: backends.cudnn.allow_tf32),
    ):
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = RuntimeError
    return found


@pytest.mark.parametrize("how", PRECISIONS)
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has one interface only")
def test_full_precision_is_an_interlude_whatever_interface_set_the_other(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRECISION, how], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_run_gives_back_the_states_of_all_random_generators() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() * np.random.rand() * torch.rand(())

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_eval(Drawing(), ExampleInputs.of(torch.ones(1)))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
