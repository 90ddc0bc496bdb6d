"""Autocast and no_grad regions join the graph they lie in."""

from __future__ import annotations

import torch
from torch import nn

from hyperprune import hyperize
from hyperprune.export import export_with_proof
from hyperprune.trace.regions import join_regions_


class Regions(nn.Module):
    """Two regions, one inside the other, with a parameter used in each and two values handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        x = self.first(x)
        with torch.autocast("cpu", enabled=False):
            y = x * self.scale
            with torch.no_grad():
                z = y.abs() + self.shift
        return self.last(y + z)


def test_no_call_of_a_region_is_left_and_the_graph_is_sound():
    graph = torch.export.export(Regions(), (torch.ones(2, 4),), strict=False).graph
    before = {str(node.target) for node in graph.nodes}
    assert any("wrap_with" in name for name in before)
    graph = join_regions_(graph)
    graph.lint()
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "wrap_with" in name or "getitem" in name]
    assert names.count("aten.abs.default") == 1
    assert {"aten.mul.Tensor", "aten.add.Tensor"} <= set(names)


def test_channels_that_pass_through_regions_can_go():
    hyper = hyperize(Regions(), torch.randn(2, 4))
    assert hyper.coupling.group("first").size == 8
    hyper.bank.remove_(torch.arange(8) < 3)
    slim, proof = export_with_proof(hyper)
    assert (len(slim.scale), len(slim.shift)) == (5, 5)
    assert proof.relative_error < 1e-6
