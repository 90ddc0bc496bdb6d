"""The coupling map: which channels live or die together, as frozen data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hyperprune.coupling.show import coupling_table, explanation
from hyperprune.plan import Resize, Slice, WidthPlan

STAYS = -1


@dataclass(frozen=True)
class Site:
    """One axis of a parameter or buffer along which channels lie.

    Attributes:
        tensor: name in the model.
        axis: axis of the tensor.
        role: ``"reads"`` (a weight's input channels: gated), ``"writes"`` (its output channels) or
            ``"along"`` (bias, batch norm, scales: sliced with them).
        units: for each position the unit that lies there, ``STAYS`` (-1) where the channel stays.
    """

    tensor: str
    axis: int
    role: str
    units: tuple[int, ...]

    @property
    def module(self) -> str:
        """Path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    def kept(self, alive: np.ndarray) -> tuple[int, ...]:
        """Return the positions that stay when only units with ``alive`` true live."""
        units = np.asarray(self.units)
        return tuple(np.flatnonzero((units == STAYS) | alive[units]).tolist())


@dataclass(frozen=True)
class Group:
    """Units that live at exactly the same sites: they share one latent vector.

    Attributes:
        name: the layer that makes the channels.
        start: index of the first unit.
        size: number of units; unit ``start + i`` is the i-th.
        width: channels that one unit takes at its widest site (more than 1 for grouped convolutions).
        makers: layers that make these channels.
        readers: layers that read them, where the gates act.
        ties: calls that tie the channels of different layers to each other.
    """

    name: str
    start: int
    size: int
    width: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    ties: tuple[str, ...]

    @property
    def units(self) -> slice:
        """The group's place in every per-unit vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Frozen:
    """Channels of one layer that stay, and why."""

    layer: str
    channels: int
    reason: str
    where: str


@dataclass(frozen=True)
class Tensor:
    """A parameter that the analysis met: its shape, and at how many positions a call applies it as a weight.

    MACs of the network are the sum of ``positions x elements`` over all weights.
    """

    name: str
    shape: tuple[int, ...]
    positions: int


@dataclass(frozen=True)
class Size:
    """A size written into a module's ``forward``.

    Attributes:
        node: the call that holds it.
        module: path of the module that makes the call.
        slots: for each position the units that lie there (``STAYS`` for a channel that stays); the size is the
            number of positions where any of them lives.
        source: line of the user's source that makes the call.
    """

    node: str
    module: str
    slots: tuple[tuple[int, ...], ...]
    source: str = ""

    def after(self, alive: np.ndarray) -> int:
        """Return the size when only units with ``alive`` true live."""
        return sum(any(unit == STAYS or alive[unit] for unit in slot) for slot in self.slots)


@dataclass(frozen=True)
class Norm:
    """A norm that reads all of these channels together; its statistics run over the living ones.

    Attributes:
        module: path of the norm layer.
        units: for each channel its unit, ``STAYS`` (-1) where it stays.
        axis: where the channels lie in the layer's input.
        groups: in how many groups the norm takes its statistics.
        centred: whether it subtracts a mean.
        spatial: whether its statistics run over the axes behind the channels too.
    """

    module: str
    units: tuple[int, ...]
    axis: int
    groups: int
    centred: bool
    spatial: bool


@dataclass(frozen=True)
class CouplingMap:
    """All groups of a network, every site they live at, and what had to stay.

    ``print`` shows it as a table; ``to_json`` and ``from_json`` keep it.
    """

    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    frozen: tuple[Frozen, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[Size, ...] = ()
    norms: tuple[Norm, ...] = ()
    unreached: tuple[str, ...] = ()

    @cached_property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(group.size for group in self.groups)

    def group(self, name: str) -> Group:
        """Return the group of this name, or the one whose channels the named layer makes.

        Raises:
            KeyError: no such group; the message lists those that exist.
        """
        for group in self.groups:
            if group.name == name or name in group.makers:
                return group
        raise KeyError(f"no group {name!r}; there are: {', '.join(group.name for group in self.groups)}")

    def of_unit(self) -> np.ndarray:
        """Return for every unit the index of its group, shape ``[units]``."""
        return np.repeat(np.arange(len(self.groups)), [group.size for group in self.groups])

    def plan(self, alive: np.ndarray) -> WidthPlan:
        """Turn a mask over units, bool of shape ``[units]``, into kept positions of tensors."""
        alive = np.asarray(alive, dtype=bool)
        slices = [Slice(s.tensor, s.axis, len(s.units), s.kept(alive)) for s in self.sites]
        return WidthPlan(tuple(cut for cut in slices if len(cut.kept) < cut.size), tuple(self._resizes(alive)))

    def _resizes(self, alive: np.ndarray) -> list[Resize]:
        found = set()
        for size in self.sizes:
            found.add(Resize(size.module, len(size.slots), size.after(alive)))
        return sorted(found, key=lambda resize: (resize.module, resize.old, resize.new))

    def explain(self, layer: str) -> str:
        """Say in words what the channels of one layer are tied to, through which calls, and what stays.

        Raises:
            KeyError: the analysis met no such layer.
        """
        return explanation(self, layer)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and ints."""
        keys = ("groups", "sites", "frozen", "tensors", "sizes", "norms")
        return {key: [vars(item).copy() for item in getattr(self, key)] for key in keys} | {
            "unreached": list(self.unreached)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CouplingMap:
        """Build a map from what ``to_json`` returned (also after a trip through ``json``)."""
        kinds: dict[str, Any] = {
            "groups": Group,
            "sites": Site,
            "frozen": Frozen,
            "tensors": Tensor,
            "sizes": Size,
            "norms": Norm,
        }
        fields = {key: tuple(kind(**_frozen(item)) for item in data[key]) for key, kind in kinds.items()}
        return cls(**fields, unreached=tuple(data["unreached"]))

    def dumps(self) -> str:
        """Return the map as JSON text."""
        return json.dumps(self.to_json())

    def __deepcopy__(self, memo: dict[int, Any]) -> CouplingMap:
        """Nothing in a map can change, so a copy of a model shares it."""
        return self

    def __str__(self) -> str:
        return coupling_table(self)


def _frozen(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuples(value) for key, value in item.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
