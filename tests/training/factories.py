"""Networks that the tests name as ``tests.training.factories:NAME``."""

from __future__ import annotations

import torch
from torch import nn

from tests.models import Net, residual

CLASSES = 10


def digits() -> nn.Module:
    """Fits the digits; its dropout makes a run depend on the global random state."""
    return residual(classes=CLASSES, dropout=0.2)


def two_outputs() -> nn.Module:
    return residual(classes=2)


def headless() -> nn.Module:
    return Net({"conv": nn.Conv2d(3, 8, 3), "more": nn.Conv2d(8, 8, 3)}, lambda net, x: net.more(net.conv(x)))


def linear_without_head() -> nn.Module:
    """Answers with rows, but no layer has as many outputs."""
    return Net({"a": nn.Conv2d(3, 8, 1)}, lambda net, x: torch.relu(net.a(x)).mean((2, 3))[:, :5])


def frozen() -> nn.Module:
    """Nothing in it can be pruned."""
    return Net({"fc": nn.Linear(3, CLASSES)}, lambda net, x: net.fc(x.mean((2, 3))))


def two_answers() -> nn.Module:
    """Answers with a pair in train mode, as networks with auxiliary heads do."""

    def run(net: nn.Module, x: torch.Tensor) -> object:
        logits = net.inner(x)
        return (logits, logits) if net.training else logits

    return Net({"inner": digits()}, run)
