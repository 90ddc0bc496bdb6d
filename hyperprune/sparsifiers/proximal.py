"""Proximal maps: each solves its little minimisation exactly."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(latents: Tensor, threshold: Tensor | float) -> Tensor:
    """Return argmin_x of 1/2 (x - z)^2 + threshold |x|, element by element: sign(z) max(|z| - threshold, 0).

    Example:
        >>> soft_threshold(torch.tensor([1.0, -0.3, 0.1]), 0.2)
        tensor([ 0.8000, -0.1000,  0.0000])
    """
    return latents.sign() * (latents.abs() - threshold).clamp_min(0)
