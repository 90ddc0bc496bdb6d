"""The hypernetwork of DHP (Li et al., "DHP: Differentiable Meta Pruning via HyperNetworks", ECCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperprune.coupling import Site
from hyperprune.errors import ModelError
from hyperprune.generators.base import Generated
from hyperprune.generators.collapse import collapsed
from hyperprune.generators.lean import Lean
from hyperprune.latents import LatentBank, select

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class DHPWeight(Generated):
    """O_ij = W2_ij (w1_ij z_i z_j) for each pair of a channel i that is read and a channel j that is made.

    The published layers have biases too; with them a latent of zero does not give a weight of zero, so they
    are left out (and A = W2 w1 spans the same weights without them).

    Args:
        reads: gates of the channels read, or None where the weight reads none that may go.
        writes: likewise for the channels made.
        embedding: m, the dimension of the embedding.
        start: the two factors from which to start, shapes ``[n, c, m]`` and ``[n, c, k, m]``, where
            n and c are the weight's first two axes and k the number of its remaining elements.
    """

    def __init__(
        self,
        bank: LatentBank,
        reads: Site | None,
        writes: Site | None,
        shape: torch.Size,
        start: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.shape = shape
        self.sides = nn.ModuleList(select(bank, site.units) for site in (reads, writes) if site)
        self.axes = tuple(site.axis for site in (reads, writes) if site)
        self._start = start

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Hand the starting factors to torch's parametrization, once."""
        start, self._start = self._start, None  # type: ignore[assignment]
        return start

    def generate(self, *originals: Tensor) -> Tensor:
        embedding, explicit = originals
        return collapsed(embedding, explicit, self._product_of_latents(embedding)).view(self.shape)

    def _product_of_latents(self, embedding: Tensor) -> Tensor:
        """Return z_i z_j, shape ``[n, c]``; an axis on which no channel may go has size 1."""
        product = embedding.new_ones(1, 1)
        for side, axis in zip(self.sides, self.axes, strict=True):
            product = product * side().to(embedding.dtype).view((-1, 1) if axis == 0 else (1, -1))
        return product


@dataclass(frozen=True)
class DHP:
    """The literal hypernetwork for every convolution; linear layers are gated as in ``Lean``.

    Both sides are gated, as published. The cost is the paper's: (1 + k^2) m parameters for k^2.

    Attributes:
        embedding: m, the dimension of the embedding (8 in the paper).
        scratch: start from the paper's random latents and weights instead of the model's own weights;
            the hyperized model then computes something new, and is trained from scratch.
        spread: half-width of the unused embedding dimensions' start, relative to the weight's own spread.

    Raises:
        ModelError: ``embedding`` is below 1.

    Example:
        >>> from hyperprune import hyperize
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> hyper = hyperize(model, x, generator=DHP(embedding=4))
        >>> torch.equal(hyper(x), model(x))
        True
    """

    embedding: int = 8
    scratch: bool = False
    spread: float = 0.1

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ModelError(f"embedding must be at least 1, not {self.embedding}: the m of the paper, 8 there.")

    def start_(self, bank: LatentBank, rng: torch.Generator) -> None:
        """Start at 1, or from N(0, 1) when training from scratch."""
        if self.scratch:
            with torch.no_grad():
                bank.latents.copy_(torch.randn(bank.latents.shape, generator=rng))
        else:
            nn.init.ones_(bank.latents)

    def weight(
        self,
        bank: LatentBank,
        module: nn.Module,
        weight: Tensor,
        sites: Mapping[str, Site],
        rng: torch.Generator,
    ) -> Generated | None:
        """Generate a convolution's own weight by the hypernetwork; gate any other where it reads.

        What a norm makes a convolution's weight of is such another: it may have no rows of zeros.
        """
        if not isinstance(module, CONVOLUTIONS) or module.weight is not weight:
            return Lean().weight(bank, module, weight, sites, rng)
        start = self._random(weight, rng) if self.scratch else self._exact(weight, rng)
        return DHPWeight(bank, sites.get("reads"), sites.get("writes"), weight.shape, start)

    def _exact(self, weight: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return factors whose product is the weight bit for bit: the first dimension carries it alone."""
        n, c, m = weight.shape[0], weight.shape[1], self.embedding
        w1 = weight.new_zeros(n, c, m)
        w1[..., 0] = 1
        flat = weight.detach().reshape(n, c, -1)
        w2 = _uniform((*flat.shape, m), self.spread * float(flat.float().std(correction=0)), rng).to(flat)
        w2[..., 0] = flat
        return w1, w2

    def _random(self, weight: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the paper's start: w1 ~ U(-sqrt 3, sqrt 3), W2 ~ U(-a, a), a = sqrt(3 / (m c k^2))."""
        n, c, m = weight.shape[0], weight.shape[1], self.embedding
        k = weight[0, 0].numel()
        w1 = _uniform((n, c, m), math.sqrt(3), rng).to(weight)
        return w1, _uniform((n, c, k, m), math.sqrt(3 / (m * c * k)), rng).to(weight)


def _uniform(shape: tuple[int, ...], half_width: float, rng: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=rng) * 2 - 1) * half_width
