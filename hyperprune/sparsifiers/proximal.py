"""Proximal maps of norms over blocks, and the action that uses one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hyperprune.coupling import Group
from hyperprune.sparsifiers.actions import Fading
from hyperprune.sparsifiers.base import Press


def euclidean_threshold(values: Tensor, threshold: Tensor | float, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Return argmin_x of 1/2 |x - v|^2 + threshold |x|, |.| the Euclidean norm: v max(1 - threshold / |v|, 0).

    The block shrinks as a whole, its direction stays, and it reaches exactly zero when its norm is at most the
    threshold. For a unit's weight slices, take all axes but the unit's.

    Args:
        values: any shape.
        threshold: at least 0; broadcasts against the norms, which keep ``dim`` with size 1.
        dim: axes of one block, over which the norm is taken.

    Example:
        >>> euclidean_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """
    return values * _factor(torch.linalg.vector_norm(values, dim=dim, keepdim=True), threshold)


def block_threshold(values: Tensor, blocks: Tensor, threshold: Tensor | float) -> Tensor:
    """Return argmin_x of 1/2 |x - v|^2 + sum over blocks of threshold |x_block|, blocks being arbitrary index sets.

    Args:
        values: shape ``[n]``.
        blocks: number of each value's block, from 0, int64 of shape ``[n]``; a value is in one block.
        threshold: at least 0, one or one per block.

    Example:
        >>> block_threshold(torch.tensor([3.0, 0.5, 4.0]), torch.tensor([0, 1, 0]), 1.0)
        tensor([2.4000, 0.0000, 3.2000])
    """
    member = one_hot(blocks).T.to(values)
    return values * _factor((member @ values.square()).sqrt(), threshold)[blocks]


def _factor(norms: Tensor, threshold: Tensor | float) -> Tensor:
    return (1 - threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)


class FadeTogether(Fading):
    """Shrink the named units of each group as one block, by the proximal map of the group lasso.

    The threshold of a block of m units is lambda lr sqrt(m) times their mean price, so named units of mean price and
    size 1 reach exactly zero in ``fade`` decisions; the larger ones of a block take the smaller along: they keep
    their proportions until the whole block is gone.
    """

    def shrunk(self, press: Press, prices: Tensor, patience: float) -> Tensor:
        latents, blocks = press.bank.latents, _blocks(press.bank.groups, press.doomed)
        member = one_hot(blocks).T.to(latents) * press.doomed  # a product, not scattered sums: same bits on every rank
        number = member.sum(1)
        price = member @ prices.to(latents) / number.clamp_min(1)
        factor = _factor((member @ latents.square()).sqrt(), number.sqrt() * price / patience)
        return latents * factor[blocks]


def _blocks(groups: tuple[Group, ...], like: Tensor) -> Tensor:
    sizes = torch.tensor([group.size for group in groups])
    return torch.arange(len(groups)).repeat_interleave(sizes).to(like.device)
