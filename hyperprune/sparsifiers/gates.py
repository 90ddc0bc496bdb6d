"""Gates that reach exact zeros and ones: ``BinaryGates`` in the manner of DiffPrune, ``HardConcrete`` as reference.

A gate is a function of a real number phi, its position, which the rule learns. The rule keeps phi to itself and
writes the gates' values into the bank after every step, so generators, export, compilation and DDP see what they
always see: a vector of latents. The chain rule from gates to phi is applied once a step, on one small vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor

from hyperprune.errors import SearchError
from hyperprune.latents import LatentBank
from hyperprune.sparsifiers.base import Press, Sparsifier
from hyperprune.sparsifiers.scores import Saliency

STRETCH, OVERHANG = 1.2, 0.1  # g = clamp(1.2 p - 0.1, 0, 1)
CLIPPED = math.log(11)  # |logit p| from which on g is exactly zero or one: p = 1/12 or 11/12
TEMPERATURE = 2 / 3  # beta of the hard-concrete distribution
LEAK = 0.05  # least slope of a gate in the backward pass: about half of what it is where the clamp sets in
SMOOTHING = 0.95  # of the gradient's size
FARTHEST = 3.0  # sizes of the gradient that one unit's gradient may have
HALVINGS = 50


class _Gate(torch.autograd.Function):
    """clamp(1.2 sigmoid(x) - 0.1, 0, 1), with a backward straight through the clamp and never flatter than LEAK."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (STRETCH * logits.sigmoid() - OVERHANG).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        p = logits.sigmoid()
        return gradients[0] * (STRETCH * p * (1 - p)).clamp_min(LEAK)


def gate(logits: Tensor) -> Tensor:
    """Return clamp(1.2 sigmoid(x) - 0.1, 0, 1): exactly 0 for x <= -ln 11, exactly 1 for x >= ln 11.

    Its gradient goes straight through the clamp and is nowhere less than 0.05, so a closed gate can open again.

    Example:
        >>> gate(torch.tensor([-2.4, 0.0, 2.4])).tolist()
        [0.0, 0.5, 1.0]
    """
    return cast(Tensor, _Gate.apply(logits))


def standardised(phi: Tensor) -> Tensor:
    """Return (phi - mean) / (std + 1e-6)."""
    return (phi - phi.mean()) / (phi.std(correction=0) + 1e-6)


class Gates(ABC):
    """Score and action in one: learns the gates' positions, and moves one threshold so that the cost meets the budget.

    The surrogate of the cost is S = sum price q, q the smooth stand-in for "the gate is open". The threshold t solves
    S(phi, t) = what the schedule leaves, by bisection at every decision; so t is a function of phi, and the gradient
    of the loss along S = const is dL/dphi + lambda dS/dphi with lambda = -(dL/dt) / (dS/dt). That is Lagrange's
    multiplier: the loss that one unit of cost is worth at present. It is computed, not set.

    Until the first decision all gates are exactly one, and the squared gradients of the latents are averaged. Positions
    start in their order per price. A step then moves a unit whose gradient is of mean size by ``rate / patience``.

    Args:
        rate: standard deviations of the starting positions that such a unit travels between two decisions.
        slope: of the gates, at the search's start and at its end.
        seed: of the noise; the same on all ranks of a distributed run.

    Attributes:
        pressure: lambda.
        phi: positions, shape ``[units]``; None before the first decision.
        threshold: t.

    Raises:
        SearchError: ``rate`` is negative, or a slope is not positive.
    """

    made_with: tuple[str, ...] = ("rate", "slopes", "seed")
    margin: float  # q = sigmoid(logit + margin)
    spread: float  # standard deviation of the starting positions

    def __init__(self, rate: float, slope: tuple[float, float], seed: int) -> None:
        if not (rate >= 0 and all(each > 0 for each in slope)):
            raise SearchError(f"rate must be at least 0 and slopes positive, not {rate} and {slope}.")
        self.rate, self.slopes, self.seed = rate, slope, seed
        self.pressure: float | Tensor = 0.0
        self.phi: Tensor | None = None
        self.threshold: Tensor | None = None
        self.slope = slope[0]
        self._step = 0
        self._start = Saliency()
        self._base: Tensor | None = None  # the latents at gate 1
        self._prices: Tensor | None = None
        self._noise: Tensor | None = None
        self._pull: Tensor | None = None  # gradient of phi, and its mean square
        self._power: Tensor | None = None

    @abstractmethod
    def position(self, phi: Tensor) -> Tensor:
        """Return where phi lies beside the threshold, shape ``[units]``."""

    @abstractmethod
    def draw(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Return one step's noise, shape ``[units]``, or None where gates are deterministic."""

    @abstractmethod
    def noisy_logits(self, phi: Tensor, threshold: Tensor, noise: Tensor) -> Tensor:
        """Return the logits of one step's sampled gates."""

    def logits(self, phi: Tensor, threshold: Tensor) -> Tensor:
        """Return slope (position - t), the logits of the gates without noise."""
        return self.slope * (self.position(phi) - threshold)

    def opens(self, phi: Tensor, threshold: Tensor) -> Tensor:
        """Return q, the surrogate of L0 of each unit, in (0, 1)."""
        return (self.logits(phi, threshold) + self.margin).sigmoid()

    def observe(self, bank: LatentBank, gradient: Tensor) -> None:
        """Carry a gradient from the gates over to the positions."""
        if self._base is None:
            self._base = bank.latents.detach().clone()
        if self.phi is None or self.threshold is None or self._prices is None:
            self._start.observe(bank, gradient)
            return
        felt = torch.where(torch.isfinite(gradient), gradient, 0.0) * self._base
        self._pull, self.pressure = self.along_budget(felt, self.phi, self.threshold, self._prices)

    def along_budget(self, felt: Tensor, phi: Tensor, threshold: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of phi along constant cost, and the multiplier."""
        at = (phi.clone().requires_grad_(), threshold.clone().requires_grad_())
        with torch.enable_grad():
            logits = self.logits(*at) if self._noise is None else self.noisy_logits(*at, self._noise)
            loss = (felt * gate(logits)).sum()
            cost = (prices * self.opens(*at)).sum()
        (along, across), (dearer, sparser) = torch.autograd.grad(loss, at), torch.autograd.grad(cost, at)
        multiplier = -across / sparser.clamp_max(-1e-12)
        return along + multiplier * dearer, multiplier

    @torch.no_grad()
    def press_(self, press: Press) -> None:
        """Move positions and threshold, and write the gates into the bank."""
        self._step += 1
        if self._base is None:
            return
        prices = press.prices * press.bank.alive
        if self._step % press.patience == 0:
            self._prices = prices
        if self.phi is None and self._step >= press.patience:
            self.phi = self.spread * self._ranked(press.bank, prices)
        if self.phi is None:
            press.bank.latents.copy_(self._base)
            return
        self.phi = self._moved(self.phi, press.patience)
        if self._step % press.patience == 0 or self.threshold is None:
            self.slope = self.slopes[0] + (self.slopes[1] - self.slopes[0]) * press.share
            self.threshold = self.steered(self.phi, prices, (prices * ~press.doomed).sum())
        self._write_(press.bank, self._base, self.phi, self.threshold)

    def _ranked(self, bank: LatentBank, prices: Tensor) -> Tensor:
        """Return the normal scores of saliency per price: its order only, so outliers do no harm."""
        merit = self._start.scores(bank) / prices.clamp_min(1e-12)
        order = merit.argsort(stable=True).argsort()
        return torch.special.ndtri((order + 0.5) / len(order)).to(prices)

    def _moved(self, phi: Tensor, patience: int) -> Tensor:
        if self._pull is None:
            return phi
        square = self._pull.square().mean()
        self._power = square if self._power is None else torch.lerp(square, self._power, SMOOTHING)
        move = self._pull / self._power.sqrt().clamp_min(1e-30)
        self._pull = None
        return phi - self.rate * self.spread / patience * move.clamp(-FARTHEST, FARTHEST)

    def steered(self, phi: Tensor, prices: Tensor, target: Tensor) -> Tensor:
        """Return the threshold at which the surrogate costs ``target``."""
        reach = self.position(phi).abs().max() + 40 / self.slope
        low, high = -reach, reach
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            dear = (prices * self.opens(phi, middle)).sum() > target
            low, high = torch.where(dear, middle, low), torch.where(dear, high, middle)
        return low

    def _write_(self, bank: LatentBank, base: Tensor, phi: Tensor, threshold: Tensor) -> None:
        settled = base * gate(self.logits(phi, threshold))
        bank.latents.copy_(settled)
        rng = torch.Generator().manual_seed((self.seed * 1_000_003 + self._step) % 2**63)
        noise = self.draw(len(phi), rng)
        self._noise = None if noise is None else noise.to(phi)
        if self._noise is not None:
            bank.shake_(base * gate(self.noisy_logits(phi, threshold, self._noise)) - settled)

    def scores(self, bank: LatentBank) -> Tensor:
        """Return price times e^position, so that the solver, which divides by price, goes by position."""
        if self.phi is None or self._prices is None:
            return self._start.scores(bank)
        return self._prices * self.position(self.phi).exp()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        kept = {name: None if value is None else value.detach().clone() for name, value in tensors.items()}
        return {**kept, "step": self._step, "slope": self.slope, "start": self._start.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name in _TENSORS:
            setattr(self, name, None if state[name] is None else state[name].clone())
        self._step, self.slope = state["step"], state["slope"]
        self._start.load_state_dict(state["start"])


_TENSORS = ("phi", "threshold", "_base", "_prices", "_noise", "_pull", "_power")


class StandardisedGates(Gates):
    """u = (X - mean X) / std X with X = phi + sigma eps; gates clamp(1.2 sigmoid(b (u - t)) - 0.1, 0, 1)."""

    made_with = ("noise", "rate", "slopes", "seed")
    margin, spread = CLIPPED, 1.0

    def __init__(self, noise: float, rate: float, slope: tuple[float, float], seed: int) -> None:
        super().__init__(rate, slope, seed)
        if not noise >= 0:
            raise SearchError(f"noise must be at least 0, not {noise}.")
        self.noise = noise

    def position(self, phi: Tensor) -> Tensor:
        """Return u."""
        return standardised(phi)

    def draw(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Return sigma eps, eps from N(0, 1); None for sigma = 0."""
        return self.noise * torch.randn(count, generator=rng) if self.noise else None

    def noisy_logits(self, phi: Tensor, threshold: Tensor, noise: Tensor) -> Tensor:
        """Return b (u - t) with the noise inside u."""
        return self.logits(phi + noise, threshold)


class HardConcreteGates(Gates):
    """log alpha = phi - t; gates clamp(1.2 s - 0.1, 0, 1) with s = sigmoid((logit u + log alpha) / beta)."""

    margin, spread = TEMPERATURE * CLIPPED, 3.0

    def position(self, phi: Tensor) -> Tensor:
        """Return phi itself."""
        return phi

    def draw(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Return logit u, u uniform."""
        return torch.rand(count, generator=rng).clamp(1e-6, 1 - 1e-6).logit()

    def noisy_logits(self, phi: Tensor, threshold: Tensor, noise: Tensor) -> Tensor:
        """Return (logit u + log alpha) / beta."""
        return (self.logits(phi, threshold) + noise) / TEMPERATURE


def BinaryGates(
    noise: float = 0.0, rate: float = 0.03, slope: tuple[float, float] = (1.0, 4.0), seed: int = 0
) -> Sparsifier:
    """Approximate binary gates with exact zeros and ones, in the manner of DiffPrune.

    Gates are a deterministic, differentiable function of one real vector over all units of the network (after Shulman,
    arXiv 2012.03653; form and constants are ours, see ``docs/sparsifiers.md``). They are trained by the gradient of the
    loss and of a surrogate of L0 in which each unit counts with its price.

    Args:
        noise: sigma; 0 gives deterministic gates. Otherwise gates are sampled anew at each training step, the same on
            every rank, and are without noise in eval mode.
        rate: how fast gates move: standard deviations between two decisions, for a gradient of mean size.
        slope: b, at the search's start and at its end.
        seed: of the noise.

    Example:
        >>> rule = BinaryGates(slope=(1.0, 8.0))
        >>> rule.pressure
        0.0
    """
    gates = StandardisedGates(noise, rate, slope, seed)
    return Sparsifier(gates, gates)


def HardConcrete(rate: float = 0.03, seed: int = 0) -> Sparsifier:
    """Hard-concrete gates (Louizos et al., "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018).

    The stochastic reference: P(g > 0) = sigmoid(log alpha + 1.5986) is the surrogate; in eval mode a gate is
    clamp(1.2 sigmoid(log alpha) - 0.1, 0, 1). Start, steps and the steered threshold are those of ``BinaryGates``.

    Args:
        rate: as for ``BinaryGates``.
        seed: of the noise.

    Example:
        >>> HardConcrete(seed=1).score.seed
        1
    """
    gates = HardConcreteGates(rate, (1.0, 1.0), seed)
    return Sparsifier(gates, gates)
