"""The lean generator: a weight times the latents of the channels it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperprune.coupling import Site
from hyperprune.generators.again import note
from hyperprune.generators.base import Generated
from hyperprune.generators.gate import gated
from hyperprune.latents import LatentBank, select


class LeanWeight(Generated):
    """weight = A * z, with z along the axis on which the weight reads channels.

    At z = 1 the product is A bit for bit, and dL/dz_i is the inner product of A's i-th slice with dL/dweight.
    """

    def __init__(self, bank: LatentBank, site: Site, ndim: int) -> None:
        super().__init__()
        self.selection = select(bank, site.units)
        self.by_columns = site.axis == 1
        self.view = tuple(-1 if axis == site.axis else 1 for axis in range(ndim))

    def generate(self, *originals: Tensor) -> Tensor:
        (weight,) = originals
        gates = self.selection().to(weight.dtype).view(self.view)
        return note(gated(weight, gates), torch.mul, weight, gates)

    def columns(self) -> Tensor:
        """Return the gates."""
        return self.selection()


@dataclass(frozen=True)
class Lean:
    """Gate the consumers: one multiplication per layer, no further parameters.

    A latent of zero makes every input slice of its channel exactly zero, so the channel can be removed
    exactly; and because its producer is not gated, its gradient stays alive there and it can grow back.

    Example:
        >>> from hyperprune import hyperize
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hyper = hyperize(model, torch.randn(1, 4), generator=Lean())
        >>> hyper.bank.latents.detach()
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """

    def start_(self, bank: LatentBank, rng: torch.Generator) -> None:
        """Start with every latent at 1: the pretrained network itself."""
        nn.init.ones_(bank.latents)

    def weight(
        self,
        bank: LatentBank,
        module: nn.Module,
        weight: Tensor,
        sites: Mapping[str, Site],
        rng: torch.Generator,
    ) -> Generated | None:
        """Gate the axis that reads channels; a weight that reads none (depthwise) stays as it is."""
        return LeanWeight(bank, sites["reads"], weight.ndim) if "reads" in sites else None
