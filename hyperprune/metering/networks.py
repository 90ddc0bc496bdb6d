"""Slim networks of chosen widths, to be run and thrown away."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hyperprune.copies import copied
from hyperprune.coupling import CouplingMap
from hyperprune.hyper import HyperModel, plain_copy
from hyperprune.slim import carve_
from hyperprune.trace import ExampleInputs


class Tailor:
    """Makes slim networks from a copy of a hyperized one; their values mean nothing, their sizes do."""

    def __init__(self, hyper: HyperModel) -> None:
        self.dense: nn.Module = plain_copy(hyper).eval()
        self.coupling: CouplingMap = hyper.coupling
        self.inputs: ExampleInputs = hyper.inputs.suiting(hyper.model).copied()
        self.device = next(hyper.model.parameters()).device

    def slim(self, alive: np.ndarray) -> nn.Module:
        """Return the network in which these units live, bool of shape ``[units]``."""
        return carve_(copied(self.dense), self.coupling.plan(alive)).eval()

    def of_counts(self, counts: np.ndarray) -> nn.Module:
        """Return the network in which the first units of each group live, so many of each."""
        alive = np.zeros(self.coupling.units, dtype=bool)
        for group, count in zip(self.coupling.groups, counts, strict=True):
            alive[group.start : group.start + count] = True
        return self.slim(alive)

    @torch.no_grad()
    def run(self, network: nn.Module) -> object:
        """Run a network once on the example inputs."""
        return self.inputs.call(network)
