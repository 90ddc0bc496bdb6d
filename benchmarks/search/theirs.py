"""Torch-Pruning's methods, each brought to the same MACs, global and uniform.

Its documentation and its own benchmark on CIFAR-10 say how each is used: gradients of ten batches for GroupTaylor,
squared gradients of single images for GroupHessian, sparse training before the cut for GroupNorm and BNScale. Batches
for gradients are those of the first steps, looked at once more; no step is counted for that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.search.ours import Maker
from benchmarks.search.training import Feed, Run, loss_of, optimizer_of, train_step
from examples.common.stepping import brought_to

GRADIENT_BATCHES = 10
SINGLE_IMAGES = 256
REGULARISATION = (5e-4, 1e-2)  # of its own CIFAR benchmark, with 100 epochs of sparse training; and stronger, for fewer
RATIOS = {"global": True, "uniform": False}

Gradients = Callable[[nn.Module, Run, Feed], None]


def _no_gradients(model: nn.Module, run: Run, feed: Feed) -> None:
    """Leave the model without gradients."""


def taylor_gradients(model: nn.Module, run: Run, feed: Feed) -> None:
    """Add up the gradients of a few batches."""
    for images, labels in feed.first(GRADIENT_BATCHES):
        loss_of(model, images, labels).backward()


def squared_gradients(model: nn.Module, run: Run, feed: Feed) -> None:
    """Leave the mean squared gradient of single images where GroupHessianImportance looks for it.

    Its own ``accumulate_grad`` (version 1.6) keeps the last image's only.
    """
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for images, labels in _single_images(feed):
        model.zero_grad()
        loss_of(model, images, labels).backward()
        for square, parameter in zip(squares, model.parameters(), strict=True):
            square += parameter.grad.square() / SINGLE_IMAGES
    for square, parameter in zip(squares, model.parameters(), strict=True):
        parameter.grad = square


def _single_images(feed: Feed) -> list[tuple[Tensor, Tensor]]:
    drawn = feed.first(-(-SINGLE_IMAGES // feed.batch_size))
    images, labels = (torch.cat(parts)[:SINGLE_IMAGES] for parts in zip(*drawn, strict=True))
    return list(zip(images.split(1), labels.split(1), strict=True))


def cut(importance: Callable[[], Any], gradients: Gradients = _no_gradients) -> dict[str, Maker]:
    """Return the variants of a cut before any training."""
    return {name: partial(_cut, importance, gradients, wide) for name, wide in RATIOS.items()}


def _cut(importance: Callable[[], Any], gradients: Gradients, global_pruning: bool, run: Run, feed: Feed) -> nn.Module:
    model = copy.deepcopy(run.dense).eval()
    gradients(model, run, feed)
    make = partial(tp.pruner.BasePruner, importance=importance(), global_pruning=global_pruning)
    return brought_to(make, model, run.example, run.macs)


def sparse(pruner: Callable[..., Any], importance: Callable[[], Any]) -> dict[str, Maker]:
    """Return the variants of a cut after sparse training."""
    return {
        f"{name}, reg {reg:g}": partial(_sparse, partial(pruner, importance=importance(), global_pruning=wide, reg=reg))
        for name, wide in RATIOS.items()
        for reg in REGULARISATION
    }


def _sparse(make: Callable[..., Any], run: Run, feed: Feed) -> nn.Module:
    model = copy.deepcopy(run.dense)
    optimizer = optimizer_of(model.parameters())
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = make(model, run.example, ignored_layers=last)
    model.train()
    for batch in islice(feed, run.course.search_steps):
        train_step(model, optimizer, batch, run.lesson, partial(pruner.regularize, model))
    model.zero_grad()
    return brought_to(make, model, run.example, run.macs)
