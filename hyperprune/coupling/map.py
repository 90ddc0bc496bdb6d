"""The coupling map: which channels live or die together, as frozen data."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from hyperprune.coupling.show import coupling_table, explanation
from hyperprune.errors import UnknownNameError
from hyperprune.labels import NormKind
from hyperprune.plan import Closing, Rescale, Resize, Slice, Spared, WidthPlan, layer_of

STAYS = -1
Slots = tuple[tuple[int, ...], ...]


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
        """Path of the layer that the tensor belongs to."""
        return layer_of(self.tensor)

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
        because: why channels go together that forward() wants equally many of, each reason with its calls.
        least: units that stay whatever the budget: more than 1 where a layer cannot work with a single channel.
    """

    name: str
    start: int
    size: int
    width: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    ties: tuple[str, ...]
    least: int = 1
    because: tuple[tuple[str, str], ...] = ()

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
    """A parameter that the analysis met: its shape, and at how many positions a call applies all of it as a weight.

    MACs of the network are the sum of ``positions x elements`` over all weights, and those of its ``uses``.
    """

    name: str
    shape: tuple[int, ...]
    positions: int


@dataclass(frozen=True)
class Use:
    """A call of a layer whose MACs follow other widths than those of a whole weight.

    It takes some rows of a weight (query, key and value in one), mixes the positions within each channel (the tokens of
    an MLP-Mixer), its weight is computed by ``forward``, or has an axis for each expert.

    Attributes:
        tensor: name of the weight; empty for the last two.
        macs: multiply-adds in the dense network.
        lines: the units along the axes to whose lengths the MACs are proportional, ``STAYS`` where a channel stays.
    """

    tensor: str
    macs: int
    lines: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Size:
    """A size written into a module's ``forward``.

    Attributes:
        node: the call that holds it; empty if none does: the module compares it with what it is given.
        module: path of the module that makes the call.
        slots: for each position the units that lie there (``STAYS`` for a channel that stays); the size is the
            number of positions where any of them lives.
        source: line of the user's source that makes the call.
        parts: if the call cuts the positions into consecutive parts, their sizes.
    """

    node: str
    module: str
    slots: tuple[tuple[int, ...], ...]
    source: str = ""
    parts: tuple[int, ...] = ()

    @property
    def can_change(self) -> bool:
        """Whether the size follows the channels: not if the same units lie at every position."""
        return len(set(self.slots)) > 1

    def after(self, alive: np.ndarray) -> int:
        """Return the size when only units with ``alive`` true live."""
        return sum(self._lives(alive))

    def parts_after(self, alive: np.ndarray) -> tuple[int, ...]:
        """Return the sizes of the parts when only units with ``alive`` true live."""
        lives = self._lives(alive)
        return tuple(sum(lives[place]) for place in self._places())

    def slots_of_parts(self) -> tuple[Slots, ...]:
        """Return what lies in each part, whatever its order: parts with the same slots change alike."""
        return tuple(tuple(sorted(self.slots[place])) for place in self._places())

    def _places(self) -> list[slice]:
        ends = list(accumulate(self.parts))
        return [slice(end - part, end) for end, part in zip(ends, self.parts, strict=True)]

    def _lives(self, alive: np.ndarray) -> list[bool]:
        return [any(unit == STAYS or bool(alive[unit]) for unit in slot) for slot in self.slots]


@dataclass(frozen=True)
class Norm:
    """A norm that reads all of these channels together; its statistics run over the living ones.

    Attributes:
        weight: name of the layer's scale, one number per channel; the layer's own with a dot behind it if it has none.
        units: for each channel its unit, ``STAYS`` (-1) where it stays.
        axis: where the channels lie in the layer's input; -1 for the last axis, whatever the rank.
        groups: in how many groups the norm takes its statistics.
        kind: ``"layer"`` takes off the mean and divides by the deviation, ``"rms"`` divides by the root of the mean
            square, ``"unit"`` by the length, ``"response"`` compares each channel's norm over space with their mean.
        spatial: whether its statistics run over the axes behind the channels too.
        offset: number that the layer adds to its scale.
        correction: by how much its variance divides by less than the number of channels.
        nodes: its calls that may be read in two ways, as a unit norm or as an RMS norm.
    """

    weight: str
    units: tuple[int, ...]
    axis: int
    groups: int
    kind: NormKind
    spatial: bool
    offset: float = 0.0
    correction: int = 0
    nodes: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Path of the norm layer."""
        return self.weight.rpartition(".")[0]


@dataclass(frozen=True)
class Product:
    """A product between activations that sums over channels (attention's query times key).

    Attributes:
        node: the call in the graph.
        tensors: the weight whose rows make one factor, and its bias: these rows are gated too.
        rows: which rows along their first axis.
        units: for each row of ``rows`` its unit, ``STAYS`` (-1) where it stays.
        slots: for each channel that is summed over its unit.
        rooted: whether the product is divided by the root of the number of channels.
    """

    node: str
    tensors: tuple[str, ...]
    rows: tuple[int, ...]
    units: tuple[int, ...]
    slots: tuple[int, ...]
    rooted: bool

    def factor(self, alive: np.ndarray) -> float:
        """Return what the rows are to be multiplied by when only units with ``alive`` true live."""
        living = sum(unit == STAYS or bool(alive[unit]) for unit in self.slots)
        return math.sqrt(living / len(self.slots)) if self.rooted else 1.0

    def along(self, size: int) -> tuple[int, ...]:
        """Return the unit at each of ``size`` positions of the first axis, ``STAYS`` where no row is gated."""
        units = np.full(size, STAYS)
        units[list(self.rows)] = self.units
        return tuple(units.tolist())


@dataclass(frozen=True)
class Branch:
    """A residual branch that can be closed: without its inner channels, its last layer makes a constant.

    Attributes:
        name: its last layer, whose output is added to what runs past the branch.
        groups: the groups that go together, as indices.
        first: the layers that read what the branch is given.
        within: all layers between them and the last that hold channels of the branch.
        axis: where the channels lie in the last layer's output.
    """

    name: str
    groups: tuple[int, ...]
    first: tuple[str, ...]
    within: tuple[str, ...]
    axis: int


@dataclass(frozen=True)
class CouplingMap:
    """All groups of a network, every site they live at, and what had to stay.

    ``print`` shows it as a table; ``to_json`` and ``from_json`` keep it. ``standardised`` names the weights that
    ``forward`` standardises row by row, over the living inputs while searching; ``branches`` are the residual branches
    that a budget with ``depth=True`` may close; ``spared`` are attributes that equal a width by chance; ``uses`` are
    calls whose MACs follow other widths than those of a whole weight.

    Example:
        >>> import torch
        >>> from hyperprune import hyperize
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> coupling = hyperize(model, torch.randn(1, 4)).coupling
        >>> [(group.name, group.size, group.makers) for group in coupling.groups]
        [('0', 8, ('0',))]
        >>> CouplingMap.from_json(coupling.to_json()) == coupling
        True
    """

    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    frozen: tuple[Frozen, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[Size, ...] = ()
    norms: tuple[Norm, ...] = ()
    products: tuple[Product, ...] = ()
    standardised: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()
    spared: tuple[Spared, ...] = ()
    uses: tuple[Use, ...] = ()

    @cached_property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(group.size for group in self.groups)

    def group(self, name: str) -> Group:
        """Return the group of this name, or the one whose channels the named layer makes.

        Raises:
            UnknownNameError: no such group; the message lists those that exist.
        """
        for group in self.groups:
            if group.name == name or name in group.makers:
                return group
        raise UnknownNameError(f"no group {name!r}; there are: {', '.join(group.name for group in self.groups)}")

    def line(self, tensor: str, axis: int) -> tuple[int, ...]:
        """Return the unit at each position along an axis of a tensor, ``STAYS`` where a channel stays.

        Raises:
            UnknownNameError: the analysis met no such tensor.
        """
        for site in self.sites:
            if (site.tensor, site.axis) == (tensor, axis):
                return site.units
        for known in self.tensors:
            if known.name == tensor:
                return (STAYS,) * known.shape[axis]
        raise UnknownNameError(f"the analysis met no tensor {tensor!r}")

    @cached_property
    def weights(self) -> frozenset[str]:
        """Names of the tensors that some call applies as a weight."""
        whole = frozenset(tensor.name for tensor in self.tensors if tensor.positions)
        return whole | {use.tensor for use in self.uses if use.tensor}

    @cached_property
    def costs(self) -> tuple[Use, ...]:
        """Every tensor at the positions of all its elements, in the order of ``tensors``, and then ``uses``."""
        lines: dict[str, list[tuple[int, ...]]] = {tensor.name: [] for tensor in self.tensors}
        for site in self.sites:
            if site.tensor in lines:
                lines[site.tensor].append(site.units)
        whole = [Use(t.name, t.positions * math.prod(t.shape), tuple(lines[t.name])) for t in self.tensors]
        return (*whole, *self.uses)

    def of_unit(self) -> np.ndarray:
        """Return for every unit the index of its group, shape ``[units]``."""
        return np.repeat(np.arange(len(self.groups)), [group.size for group in self.groups])

    def groups_at(self, site: Site) -> frozenset[int]:
        """Return the groups whose units lie at a site, as indices."""
        return self._groups_at[site.tensor, site.axis]

    @cached_property
    def _groups_at(self) -> dict[tuple[str, int], frozenset[int]]:
        groups = self.of_unit().tolist()
        known: dict[tuple[int, ...], frozenset[int]] = {}  # most sites lie along the same channels as others
        for site in self.sites:
            if site.units not in known:
                known[site.units] = frozenset(groups[unit] for unit in site.units if unit != STAYS)
        return {(site.tensor, site.axis): known[site.units] for site in self.sites}

    def plan(self, alive: np.ndarray) -> WidthPlan:
        """Turn a mask over units, bool of shape ``[units]``, into kept positions of tensors."""
        alive = np.asarray(alive, dtype=bool)
        slices = [Slice(s.tensor, s.axis, len(s.units), s.kept(alive)) for s in self.sites]
        closings = tuple(closing for branch in self.branches for closing in self._closings(branch, alive))
        sizes = [size for size in self._resizes(alive) if all(size.module != gone.module for gone in closings)]
        return WidthPlan(
            tuple(cut for cut in slices if len(cut.kept) < cut.size and not _is_gone(cut, closings)),
            tuple(sizes),
            tuple(self._rescales(alive)),
            closings,
            tuple(spared for spared in self.spared if any(size.module == spared.module for size in sizes)),
        )

    def _closings(self, branch: Branch, alive: np.ndarray) -> list[Closing]:
        """Return what becomes of a branch's layers if none of its channels lives."""
        if any(alive[self.groups[at].units].any() for at in branch.groups):
            return []
        weight = next(tensor for tensor in self.tensors if tensor.name == f"{branch.name}.weight")
        rows = [site for site in self.sites if site.tensor == weight.name and site.role == "writes"]
        channels = len(rows[0].kept(alive)) if rows else weight.shape[0]
        return [
            *(Closing(path, "starts") for path in branch.first),
            *(Closing(path, "passes") for path in branch.within),
            Closing(branch.name, "ends", channels, branch.axis),
        ]

    def _rescales(self, alive: np.ndarray) -> list[Rescale]:
        """Rows are rescaled once, however many products they make a factor of."""
        factors = [(product, product.factor(alive)) for product in self.products]
        found = [Rescale(t, p.rows, factor) for p, factor in factors if factor != 1 for t in p.tensors]
        return list(dict.fromkeys(found))

    def _resizes(self, alive: np.ndarray) -> list[Resize]:
        found = {Resize(size.module, len(size.slots), size.after(alive)) for size in self._clear_sizes}
        found |= {Resize(size.module, size.parts, size.parts_after(alive)) for size in self._clear_parts}
        return sorted(found, key=lambda resize: (resize.module, str(resize.old), str(resize.new)))

    @cached_property
    def _clear_sizes(self) -> tuple[Size, ...]:
        """The sizes whose number tells them: no other size of the module has it and may change differently."""
        kinds: dict[tuple[str, int], set[Slots]] = defaultdict(set)
        for size in self.sizes:
            if size.can_change:
                kinds[size.module, len(size.slots)].add(tuple(sorted(size.slots)))
        return tuple(s for s in self.sizes if s.can_change and len(kinds[s.module, len(s.slots)]) == 1)

    @cached_property
    def _clear_parts(self) -> tuple[Size, ...]:
        """The sizes cut into parts, where no other call of the module cuts alike but may change differently."""
        kinds: dict[tuple[str, tuple[int, ...]], set[tuple[Slots, ...]]] = defaultdict(set)
        cut = [size for size in self.sizes if size.parts]
        for size in cut:
            kinds[size.module, size.parts].add(size.slots_of_parts())
        return tuple(size for size in cut if len(kinds[size.module, size.parts]) == 1)

    def explain(self, layer: str) -> str:
        """Say in words what the channels of one layer are tied to, through which calls, and what stays.

        Raises:
            UnknownNameError: the analysis met no such layer.
        """
        return explanation(self, layer)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and ints."""
        keys = ("groups", "sites", "frozen", "tensors", "sizes", "norms", "products", "branches", "spared", "uses")
        return {key: [vars(item).copy() for item in getattr(self, key)] for key in keys} | {
            "standardised": list(self.standardised),
            "unreached": list(self.unreached),
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
            "products": Product,
            "branches": Branch,
            "spared": Spared,
            "uses": Use,
        }
        fields = {key: tuple(kind(**_frozen(item)) for item in data[key]) for key, kind in kinds.items()}
        names = {key: tuple(data[key]) for key in ("standardised", "unreached")}
        return cls(**fields, **names)

    def dumps(self) -> str:
        """Return the map as JSON text."""
        return json.dumps(self.to_json())

    def __deepcopy__(self, memo: dict[int, Any]) -> CouplingMap:
        """Nothing in a map can change, so a copy of a model shares it."""
        return self

    def __str__(self) -> str:
        return coupling_table(self)


def _is_gone(cut: Slice, closings: tuple[Closing, ...]) -> bool:
    """Say whether a tensor goes with its layer; the bias of a branch's last layer is all that stays of a branch."""
    path, name = layer_of(cut.tensor), cut.tensor.rpartition(".")[2]
    return any(closing.module == path and (closing.role != "ends" or name != "bias") for closing in closings)


def _frozen(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuples(value) for key, value in item.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
