"""Writes into parts of a tensor: which become calls that make a new one, and that the graph computes the same then."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyperprune.trace.writes import settle_writes_

Function = Callable[[Tensor], Tensor]


def nested(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:, :-1] = x[:, :-1, 1:]
    return out


def two_writes(x: Tensor) -> Tensor:
    out = x * 2
    before = out + 1
    out[:, :2] = x[:, 2:4]
    between = out * 3
    out[:, 2:] += before[:, 2:]
    return out + between


def in_place(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, ::2] *= 5
    return out


def into_the_input(x: Tensor) -> Tensor:
    x[:, 1:] = x[:, :-1].clone()
    return x


def seen_by_a_view(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    view = out.flatten(1)
    out[:, 1:] = x[:, 1:]
    return view


def a_number(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 1:] = 7.0
    return out


class Calling(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def settled(function: Function) -> torch.fx.GraphModule:
    program = torch.export.export(Calling(function), (torch.randn(2, 5, 4),), strict=False)
    guarded = "check_guards" in inspect.signature(program.module).parameters  # from torch 2.9 on
    module = program.module(check_guards=False) if guarded else program.module()
    settle_writes_(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def writes(module: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.aten.copy_.default for node in module.graph.nodes)


@pytest.mark.parametrize("function", [nested, two_writes, in_place])
def test_a_write_becomes_a_call_that_computes_the_same(function: Function) -> None:
    module, x = settled(function), torch.randn(2, 5, 4)
    assert writes(module) == 0
    assert torch.equal(module(x.clone()), function(x.clone()))


@pytest.mark.parametrize("function", [into_the_input, seen_by_a_view])
def test_what_shares_its_memory_with_others_is_left_alone(function: Function) -> None:
    module, x = settled(function), torch.randn(2, 5, 4)
    assert writes(module) == 1
    assert torch.equal(module(x.clone()), function(x.clone()))


def test_numbers_are_written_as_they_were() -> None:
    module, x = settled(a_number), torch.randn(2, 5, 4)
    assert torch.equal(module(x), a_number(x))
