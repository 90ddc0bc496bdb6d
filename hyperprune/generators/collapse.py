"""The hypernetwork's product without its embedding: nothing but its own parameters is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def collapsed(embedding: Tensor, explicit: Tensor, pairs: Tensor) -> Tensor:
    """Return O[n, c, k] = pairs[n, c] sum_m explicit[n, c, k, m] embedding[n, c, m].

    The published order makes the embedding ``embedding * pairs`` first and keeps it; its gradients pass over the
    explicit layer once for each factor. Here the pair's number leaves the sum, and with H[n, c, m] = sum_k G explicit
    for a gradient G, dL/dembedding = pairs H and dL/dpairs = sum_m embedding H: one pass.

    Args:
        embedding: shape ``[n, c, m]``.
        explicit: shape ``[n, c, k, m]``.
        pairs: product of both latents, shape ``[n, c]``; either axis may have size 1.

    Example:
        >>> collapsed(torch.ones(1, 1, 2), torch.tensor([[[[1.0, 2.0]]]]), torch.full((1, 1), 0.5))
        tensor([[[1.5000]]])
    """
    collapse = _product if torch.compiler.is_compiling() else _Collapsed.apply
    return collapse(embedding, explicit, pairs)


class _Collapsed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(embedding: Tensor, explicit: Tensor, pairs: Tensor) -> Tensor:
        return _product(embedding, explicit, pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        embedding, explicit, pairs = ctx.saved_tensors
        of_embedding, of_explicit, of_pairs = ctx.needs_input_grad
        inner = torch.einsum("nck,nckm->ncm", gradient, explicit) if of_embedding or of_pairs else gradient
        scaled = gradient * pairs.unsqueeze(2)
        return (
            inner * pairs.unsqueeze(2) if of_embedding else None,
            scaled.unsqueeze(3) * embedding.unsqueeze(2) if of_explicit else None,
            (inner * embedding).sum(2).sum_to_size(pairs.shape) if of_pairs else None,
        )


def _product(embedding: Tensor, explicit: Tensor, pairs: Tensor) -> Tensor:
    return torch.einsum("nckm,ncm->nck", explicit, embedding) * pairs.unsqueeze(2)
