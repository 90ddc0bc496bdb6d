"""One run of the model as a graph, with names and origins; the model is left as found."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperprune.errors import InputsError, TraceError
from hyperprune.trace import ExampleInputs, Trace, origin, owner, trace
from tests.models import Net, assert_same, residual, snapshot


def traced(model: nn.Module, *inputs: Tensor) -> tuple[Trace, ...]:
    return trace(model, ExampleInputs.of(inputs))


def calls(found: Trace, operator: str) -> list[Any]:
    return [n for n in found.graph.nodes if n.op == "call_function" and str(n.target).startswith(f"aten.{operator}.")]


class Auxiliary(nn.Module):
    """A head that runs in train mode only, behind a batch norm that wants more than one value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.auxiliary, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.head, self.unused = nn.Linear(4, 2), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x)).mean((2, 3))
        return (self.head(y), self.norm(self.auxiliary(y))) if self.training else self.head(y)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 0:  # the branch
            return y
        return -y


def test_every_parameter_and_buffer_is_mapped_by_its_name() -> None:
    model = residual()
    (found,) = traced(model, torch.randn(1, 3, 8, 8))
    assert set(found.parameters.values()) == {name for name, _ in model.named_parameters()}
    assert set(found.buffers.values()) == {name for name, _ in model.named_buffers()}
    counters = {name for name, buffer in model.named_buffers() if not buffer.ndim}
    assert found.used() == model.state_dict().keys() - counters


def test_layers_stay_one_call_each() -> None:
    (found,) = traced(residual(), torch.randn(1, 3, 8, 8))
    assert [len(calls(found, name)) for name in ("conv2d", "batch_norm", "linear")] == [5, 5, 1]


def test_a_call_knows_the_module_that_made_it_and_its_line() -> None:
    (found,) = traced(Auxiliary().eval(), torch.randn(2, 3, 4, 4))[:1]
    lines, first = inspect.getsourcelines(Auxiliary)
    line = first + next(at for at, text in enumerate(lines) if "mean((2, 3))" in text)
    (mean,), (convolution,) = calls(found, "mean"), calls(found, "conv2d")
    assert (owner(mean), origin(mean).source) == ("", f"test_trace.py:{line}")
    assert (owner(convolution), origin(convolution).source) == ("conv", f"test_trace.py:{line}")
    assert str(origin(convolution)) == f"aten.conv2d.default in 'conv' (test_trace.py:{line})"


def test_a_module_used_twice_bears_one_path() -> None:
    model = Net({"a": nn.Conv2d(3, 3, 1)}, lambda net, x: net.a(net.a(x)))
    (found,) = traced(model, torch.randn(1, 3, 4, 4))
    assert [owner(node) for node in calls(found, "conv2d")] == ["a", "a"]


def test_train_mode_is_traced_only_where_eval_mode_misses_parameters() -> None:
    assert [found.training for found in traced(residual().train(), torch.randn(2, 3, 8, 8))] == [False]
    assert [found.training for found in traced(Auxiliary(), torch.randn(2, 3, 4, 4))] == [False, True]


def test_a_train_trace_that_reaches_nothing_new_is_dropped() -> None:
    model = Net({"a": nn.Conv2d(3, 3, 1), "idle": nn.Linear(2, 2)}, lambda net, x: net.a(x))
    assert len(traced(model, torch.randn(1, 3, 4, 4))) == 1


def test_a_train_trace_doubles_a_batch_of_one_where_batch_norm_insists() -> None:
    _, training = traced(Auxiliary(), torch.randn(1, 3, 4, 4))
    assert "auxiliary.weight" in training.used()


@pytest.mark.parametrize("training", [True, False])
def test_mode_tensors_grads_and_random_state_are_left_as_found(training: bool) -> None:
    model = Auxiliary().train(training)
    model.bn.eval()
    model(torch.randn(2, 3, 4, 4))[0].sum().backward()
    x = torch.randn(1, 3, 4, 4)
    before, state = snapshot(model), torch.random.get_rng_state()
    traced(model, x)  # in train mode a batch of one fails first, after some layers have run
    assert_same(before, snapshot(model))
    assert torch.equal(state, torch.random.get_rng_state())


def test_dropout_does_not_move_the_random_state() -> None:
    model, x = residual(dropout=0.5).train(), torch.randn(1, 3, 8, 8)
    state = torch.random.get_rng_state()
    traced(model, x)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_that_fails_is_an_error_of_the_inputs_that_quotes_it() -> None:
    with pytest.raises(InputsError, match=r"ResNet fails on the example inputs \['\(1, 4, 8, 8\) torch.float32"):
        traced(residual(), torch.randn(1, 4, 8, 8))


def test_control_flow_on_values_is_a_trace_error_with_its_line() -> None:
    lines, first = inspect.getsourcelines(Branching)
    line = first + next(at for at, text in enumerate(lines) if "the branch" in text)
    model = Branching().train()
    with pytest.raises(TraceError, match=rf"cannot trace Branching at test_trace\.py:{line}"):
        traced(model, torch.randn(1, 3, 4, 4))
    assert model.training


def test_inputs_may_be_a_tensor_a_tuple_or_keywords() -> None:
    x = torch.ones(1, 3)
    for given, args, kwargs in [(x, (x,), {}), ((x, 2), (x, 2), {}), ([x], (x,), {}), ({"x": x}, (), {"x": x})]:
        read = ExampleInputs.of(given)
        assert (len(read.args), dict(read.kwargs).keys()) == (len(args), kwargs.keys())
        assert read.tensors()[0] is x
        assert ExampleInputs.of(read) is read


def test_keyword_arguments_are_traced_too() -> None:
    model = Net({"a": nn.Linear(3, 4)}, lambda net, x, scale: net.a(x) * scale)
    (found,) = trace(model, ExampleInputs.of({"x": torch.ones(1, 3), "scale": torch.ones(1)}))
    assert found.used() == {"a.weight", "a.bias"}


@pytest.mark.parametrize("bad", [None, 3, "image", (), (1, 2), {}, {1: torch.ones(1)}], ids=repr)
def test_inputs_of_any_other_kind_are_refused(bad: object) -> None:
    with pytest.raises(InputsError, match="example inputs"):
        ExampleInputs.of(bad)


def hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, inputs, output: None)
    return model


@pytest.mark.parametrize(
    ("model", "runs"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), False),
        (hooked(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))), True),
        (Net({"a": nn.Linear(4, 2)}, lambda net, x: net.a(x)), True),
    ],
    ids=["torch's own", "with a hook", "own class"],
)
def test_only_code_that_may_keep_tensors_runs_before_it_is_followed(model: nn.Module, runs: bool) -> None:
    real: list[bool] = []
    watch = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: real.append(isinstance(module, nn.Linear) and type(output) is Tensor)
    )
    try:
        traced(model, torch.ones(1, 4))
    finally:
        watch.remove()
    assert any(real) == runs


def test_inputs_that_layers_of_libraries_do_not_take_are_refused_as_inputs() -> None:
    with pytest.raises(InputsError, match=r"Sequential fails on the example inputs \['\(1, 5\)"):
        traced(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(1, 5))


class Guarded(nn.Module):
    """Asks how many values are above zero: torch prints the whole graph before it gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[y > 0] if y[y > 0].numel() % 7 == 3 else y


def test_a_trace_that_fails_says_so_in_its_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match="data-dependent"):
        trace(Guarded(), ExampleInputs.of(torch.randn(2, 4)))
    assert capfd.readouterr() == ("", "")
