"""The latent bank: one vector per group of channels, all in one flat parameter with named slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hyperprune.coupling import STAYS, Group
from hyperprune.errors import ModelError, UnknownNameError


class LatentBank(nn.Module):
    """Owns every latent of a network.

    A latent counts through its gate, ``latents * alive``. ``alive`` is 1 or 0: a unit that was removed has an exactly
    zero gate whatever the optimiser's momentum does to its latent, until ``keep_`` takes it back.

    ``half()`` and ``bfloat16()`` leave latents in float32: beside a latent of 1, a small step would be rounded away.

    Attributes:
        latents: the parameter, shape ``[units]``, float32 (float64 after ``double()``).
        alive: buffer of ones and zeros, shape ``[units]``.
        noise: what sampled gates differ by while training, shape ``[units]``; None where gates are not sampled.

    Example:
        >>> from hyperprune.coupling import Group
        >>> bank = LatentBank((Group("conv1", 0, 3, 1, ("conv1",), ("conv2",), ()),))
        >>> bank.remove_(torch.tensor([True, False, False]))
        >>> bank.gates().tolist()
        [0.0, 1.0, 1.0]
    """

    def __init__(self, groups: tuple[Group, ...]) -> None:
        super().__init__()
        self.groups = groups
        units = sum(group.size for group in groups)
        self.latents = nn.Parameter(torch.ones(units))
        self.register_buffer("alive", torch.ones(units))
        self.alive: Tensor
        self.noise: Tensor | None = None

    def gates(self) -> Tensor:
        """Return the value each unit is multiplied by, shape ``[units]``, without noise.

        Raises:
            ModelError: FSDP has cut the latents into shards.
        """
        self.require_whole()
        return self.latents * self.alive

    def require_whole(self) -> None:
        """Make sure that the latents are all here: every rank of a distributed search decides about all of them.

        Raises:
            ModelError: FSDP has cut them into shards.
        """
        if hasattr(self.latents, "placements"):  # a DTensor; importing the class would take a second
            raise ModelError(
                "FSDP has cut the latents into shards, but every rank decides about all of them. Shard the rest: "
                "fully_shard(hyper, ignored_params={hyper.bank.latents}), and average their gradient over the ranks "
                "as docs/scaling.md shows."
            )

    def sampled(self) -> Tensor:
        """Return the gates as the present forward pass uses them: in train mode with noise, if there is any."""
        if self.noise is None or not self.training:
            return self.gates()
        return (self.latents + self.noise) * self.alive

    def latent(self, name: str) -> Tensor:
        """Return the latent vector of one group, shape ``[group size]``, a view.

        Raises:
            UnknownNameError: no group has this name.
        """
        for group in self.groups:
            if group.name == name:
                return self.latents[group.units]
        raise UnknownNameError(f"no group {name!r}; there are: {', '.join(group.name for group in self.groups)}")

    def living(self) -> Tensor:
        """Return which units have a gate that is not exactly zero, bool, shape ``[units]``."""
        return self.gates().detach() != 0

    @torch.no_grad()
    def remove_(self, units: Tensor) -> None:
        """Set the gates of the units under a bool mask to exactly zero, until ``keep_`` takes some back.

        Raises:
            ModelError: ``units`` is no bool tensor with an entry for each unit.
        """
        self._require_mask(units)
        self.alive.masked_fill_(units.to(self.alive.device), 0.0)

    def _require_mask(self, units: object) -> None:
        if not isinstance(units, Tensor) or units.dtype != torch.bool or units.shape != self.alive.shape:
            found = (
                f"{units.dtype} of shape {tuple(units.shape)}" if isinstance(units, Tensor) else type(units).__name__
            )
            raise ModelError(f"a bool tensor of shape ({len(self.alive)},) is needed, one entry per unit, not {found}.")

    @torch.no_grad()
    def shake_(self, noise: Tensor) -> None:
        """Add noise, shape ``[units]``, to the gates in train mode until the next call, or until ``keep_``."""
        self.noise = noise.to(self.latents) if self.noise is None else self.noise.copy_(noise)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Leave out the noise for a while."""
        noise, self.noise = self.noise, None
        try:
            yield
        finally:
            self.noise = noise

    @torch.no_grad()
    def keep_(self, units: Tensor) -> None:
        """Let exactly the units under a bool mask live, without noise.

        A kept unit that had reached zero starts again at 1; a removed one that comes back resumes its latent.

        Raises:
            ModelError: ``units`` is no bool tensor with an entry for each unit.
        """
        self._require_mask(units)
        self.noise = None
        kept = units.to(self.alive.device)
        self.alive.copy_(kept)
        self.latents.masked_fill_(kept & (self.latents == 0), 1.0)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save noise where there is any. It comes and goes, so it is no buffer: averages over a network pair these."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.noise is not None:
            destination[f"{prefix}noise"] = self.noise if keep_vars else self.noise.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *options: Any) -> None:
        noise = state_dict.pop(f"{prefix}noise", None)
        self.noise = None if noise is None else noise.to(self.alive, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentBank:
        """Follow the model to another device or to double precision, but not to half."""

        def follow(tensor: Tensor) -> Tensor:
            return _not_halved(tensor, fn(tensor))

        super()._apply(follow, recurse)  # type: ignore[no-untyped-call]
        self.noise = None if self.noise is None else follow(self.noise)
        return self

    def extra_repr(self) -> str:
        return f"{len(self.groups)} groups, {self.latents.numel()} units"


def _not_halved(tensor: Tensor, moved: Tensor) -> Tensor:
    return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved


Target = TypeVar("Target", bound=nn.Module)


class Reference(Generic[Target]):
    """A reference that does not make its target a submodule; ``deepcopy`` follows it to the copied target."""

    __slots__ = ("target",)

    def __init__(self, target: Target) -> None:
        self.target = target


class Selection(nn.Module):
    """Reads the gates that lie along one axis of a weight, shape ``[positions]``; 1 where a channel stays."""

    def __init__(self, bank: LatentBank, units: tuple[int, ...]) -> None:
        super().__init__()
        self._handle = Reference(bank)
        index = torch.tensor(units)
        total = bank.latents.numel()
        self.register_buffer("index", torch.where(index == STAYS, total, index), persistent=False)
        self.register_buffer("one", torch.ones(1), persistent=False)
        self.index: Tensor
        self.one: Tensor

    def forward(self) -> Tensor:
        return torch.cat([self._handle.target.sampled(), self.one]).index_select(0, self.index)


class RunSelection(nn.Module):
    """As ``Selection``, for units that lie in one unbroken run: a view costs nothing."""

    def __init__(self, bank: LatentBank, units: tuple[int, ...]) -> None:
        super().__init__()
        self._handle = Reference(bank)
        self.start, self.length = units[0], len(units)

    def forward(self) -> Tensor:
        bank = self._handle.target
        if bank.noise is not None:
            return bank.sampled().narrow(0, self.start, self.length)
        return bank.latents.narrow(0, self.start, self.length) * bank.alive.narrow(0, self.start, self.length)


def select(bank: LatentBank, units: tuple[int, ...]) -> nn.Module:
    """Return the cheaper reader of the gates of these units (one per position of an axis)."""
    run = units[0] != STAYS and units == tuple(range(units[0], units[0] + len(units)))
    return RunSelection(bank, units) if run else Selection(bank, units)
