"""Bring one of Torch-Pruning's pruners to a share of the MACs: it works to a ratio of channels, which is another thing.

The ratio is bisected. Where one more step of it leaps over the target (every layer of a uniform pruner loses a channel
at the same ratio), the channel groups go on one by one, and those that would leap too far stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperprune import HyperpruneError
from hyperprune.cost import count_with_fvcore

SHORT = 0.01  # share of the wanted MACs that may be left unused
HALVINGS = 9  # a ratio to 1 / 512
STEPS = 10  # in which a ratio is approached: importances are worked out again in between
FINE, FURTHER = 1 / 256, 64  # steps beyond the bisected ratio, in which the groups that leap stay as they are
MAX_RATIO = 0.95  # of a layer's channels

Pruner = Any  # torch_pruning has no types
MakePruner = Callable[..., Pruner]  # called as BasePruner is, without the importance


def brought_to(make: MakePruner, model: nn.Module, example: Tensor, macs: float) -> nn.Module:
    """Return a slim copy of ``model`` with at most ``macs`` of its MACs, and at least 99 % of that where there is one.

    The layer that makes the output stays whole, as Torch-Pruning's documentation asks. Gradients that lie on the model
    are there when its importance asks for them.

    Args:
        make: makes a pruner of a model and an example, with the keyword arguments of ``BasePruner``.
        macs: share of the model's MACs, as fvcore counts them.

    Raises:
        HyperpruneError: it fails on this network, or does not reach the MACs.
    """
    try:
        slim = _Stepping(make, model, example, macs).best()
    except (IndexError, RuntimeError, ValueError) as error:  # what it raises on networks it cannot follow
        raise HyperpruneError(f"Torch-Pruning fails on this network: {type(error).__name__}: {error}") from error
    for parameter in slim.parameters():
        parameter.grad = None
    return slim.train(model.training).requires_grad_(True)


class _Stepping:
    def __init__(self, make: MakePruner, model: nn.Module, example: Tensor, macs: float) -> None:
        self._make, self._model, self._example = make, model, example
        self._target = macs * count_with_fvcore(copy.deepcopy(model).eval(), example).macs

    def best(self) -> nn.Module:
        low, slim = self._bisected()
        if self._share(slim) < 1 - SHORT:
            slim = self._one_by_one(low) or slim
        return slim

    def _bisected(self) -> tuple[float, nn.Module]:
        """Return a ratio that leaves too much, and the network of the next one, which does not."""
        low, high = 0.0, 1.0
        slim = None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = self._pruned(_ramp(middle))
            share = self._share(tried)
            if share > 1:
                low = middle
            else:
                high, slim = middle, tried
                if share >= 1 - SHORT:
                    break
        if slim is None:
            raise ValueError("no ratio of channels that it can remove is enough")
        return low, slim

    def _one_by_one(self, low: float) -> nn.Module | None:
        """Go on from a ratio that leaves too much; None if no choice of groups that stay hits the target."""
        stay: set[str] = set()
        while True:
            slim, leapt = self._onwards(low, stay)
            if leapt is None:
                return slim if 1 - SHORT <= self._share(slim) <= 1 else None
            stay.add(leapt)

    def _onwards(self, low: float, stay: set[str]) -> tuple[nn.Module, str | None]:
        """Raise the ratio a little at a time, group by group; also say which group was too much, if one was."""
        slim = self._copy()
        further = [min(low + FINE * step, 1.0) for step in range(1, FURTHER + 1)]
        names = {module: name for name, module in slim.named_modules()}
        pruner = self._pruner(slim, [*_ramp(low), *further])
        for _ in range(STEPS):
            pruner.step()
        for group in (group for _ in further for group in pruner.step(interactive=True)):
            name = names[group[0].dep.target.module]  # the layer whose channels it is about
            if name in stay:
                continue
            group.prune()
            share = self._share(slim)
            if share <= 1:
                return slim, name if share < 1 - SHORT else None
        return slim, None

    def _pruned(self, ratios: Sequence[float]) -> nn.Module:
        slim = self._copy()
        pruner = self._pruner(slim, ratios)
        for _ in ratios:
            pruner.step()
        return slim

    def _pruner(self, slim: nn.Module, ratios: Sequence[float]) -> Pruner:
        weighted = [m for m in slim.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        return self._make(
            slim,
            self._example,
            pruning_ratio=ratios[-1],
            max_pruning_ratio=MAX_RATIO,
            iterative_steps=len(ratios),
            iterative_pruning_ratio_scheduler=lambda ratio, steps: [0.0, *ratios],
            ignored_layers=weighted[-1:],
        )

    def _copy(self) -> nn.Module:
        slim = copy.deepcopy(self._model).eval()
        for new, old in zip(slim.parameters(), self._model.parameters(), strict=True):
            new.grad = None if old.grad is None else old.grad.clone()  # a copied parameter comes without
        return slim

    def _share(self, slim: nn.Module) -> float:
        with torch.no_grad():
            return count_with_fvcore(slim, self._example).macs / self._target


def _ramp(ratio: float) -> list[float]:
    return [ratio * step / STEPS for step in range(1, STEPS + 1)]
