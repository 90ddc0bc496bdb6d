"""The ledger: every label handed out, every tie between labels, and every label that must stay.

A label is an integer that stands for one channel. Rules only write facts down here; nothing is solved
until all of the graph has been read (``hyperprune.coupling`` does that, once).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hyperprune.labels.reasons import TOO_LARGE
from hyperprune.trace import Origin

LARGEST_TENSOR = 2**24
"""Elements of a directly used tensor up to which each gets a label of its own."""

Attention = Literal["heads", "width"]
"""What attention loses: whole heads, or the same channels inside every head."""

NormKind = Literal["layer", "rms", "unit", "response"]
"""Mean and variance of all channels, or of groups; the mean square; the length; the mean of the norms over space."""

ELASTIC = 0
"""Label of a constant stretched along an axis: it follows whatever it meets there, and ties nothing."""


@dataclass(frozen=True)
class TensorRef:
    """A parameter or buffer of the model, by name."""

    name: str
    shape: tuple[int, ...]
    is_parameter: bool


@dataclass(frozen=True)
class Standardised(TensorRef):
    """A weight that forward() standardises row by row before use: output channel by output channel."""


@dataclass(frozen=True)
class Rows(TensorRef):
    """Consecutive rows that forward() takes out of a weight or bias, on their way to a layer.

    Attributes:
        start: the first of them.
        whole: shape of the tensor that they are taken from.
    """

    start: int
    whole: tuple[int, ...]

    @classmethod
    def taken(cls, tensor: TensorRef, start: int, count: int) -> Rows:
        """Return so many rows of a tensor, from ``start`` on."""
        return cls(tensor.name, (count, *tensor.shape[1:]), tensor.is_parameter, start, tensor.shape)

    @property
    def source(self) -> TensorRef:
        """The tensor that they are taken from."""
        return TensorRef(self.name, self.whole, self.is_parameter)

    def of(self, labels: Tensor) -> Tensor:
        """Return what belongs to these rows of something that has an entry for each row."""
        return labels[self.start : self.start + self.shape[0]]


@dataclass(frozen=True)
class Turned(TensorRef):
    """A matrix that forward() turns on its way to a product: it lies inputs first there. ``shape`` is as it lies."""

    @property
    def source(self) -> TensorRef:
        """The tensor itself."""
        return TensorRef(self.name, self.shape[::-1], self.is_parameter)


@dataclass(frozen=True)
class Tie:
    """Two equally long vectors of labels that live or die together, position by position.

    Attributes:
        reason: why they do, for the report should nothing else be left in their group.
    """

    left: Tensor
    right: Tensor
    origin: Origin
    reason: str = ""


@dataclass(frozen=True)
class Freeze:
    """Labels that must stay, and why."""

    labels: Tensor
    reason: str
    origin: Origin


@dataclass(frozen=True)
class SizedCall:
    """A call whose arguments hold sizes that depend on channels.

    Attributes:
        node: name of the call in the graph.
        origin: where the call comes from.
        extents: one grid of labels per size, ``[size, k]``; a row counts while any label in it stays.
        parts: if the call cuts the first extent into parts, their sizes; they may stand in one list.
    """

    node: str
    origin: Origin
    extents: tuple[Tensor, ...]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class NormCall:
    """A norm that reads all channels together, in a layer of its own.

    Attributes:
        weight: name of the layer's scale, one number per channel; the layer's own with a dot behind it if it has none.
        labels: the channels it reads, shape ``[channels]``.
        axis: where they lie in the layer's input; -1 for the last axis, whatever the rank.
        groups: in how many groups the norm takes its statistics.
        kind: what it computes of the channels it reads.
        spatial: whether its statistics run over the axes behind the channels too.
        offset: number that the layer adds to its scale.
        correction: by how much its variance divides by less than the number of channels.
        node: the call, if it may be read in two ways: divided by a length, times a number or the root of the width.
    """

    weight: str
    labels: Tensor
    axis: int
    groups: int = 1
    kind: NormKind = "layer"
    spatial: bool = False
    offset: float = 0.0
    correction: int = 0
    node: str = ""


@dataclass(frozen=True)
class ProductCall:
    """A product between activations over channels (query times key): exact only if one factor is gated.

    Attributes:
        node: name of the call in the graph.
        weight: the weight whose rows make that factor; its bias too, where it has one.
        rows: which of its rows do.
        channels: the channels summed over, shape ``[channels]``.
        rooted: whether the product is divided by the root of their number, as fused attention does.
    """

    node: str
    weight: TensorRef
    bias: TensorRef | None
    rows: Tensor
    channels: Tensor
    rooted: bool


@dataclass(frozen=True)
class UseCall:
    """A call whose MACs are those of the dense network times the share of channels that live along some axes.

    Attributes:
        tensor: the weight; empty if ``forward`` computes it, or if it has axes for more than what is read and made.
        macs: multiply-adds in the dense network.
        lines: labels along none, one or two axes.
    """

    tensor: str
    macs: int
    lines: tuple[Tensor, ...] = ()


@dataclass
class Ledger:
    """What the rules have written down so far.

    Attributes:
        axes: labels of one axis of a tensor of the model, keyed by (tensor, axis).
        elements: labels of the single elements of a tensor that is used directly, keyed by tensor.
        unlabelled: tensors used directly that are too large to label, with the one label they have.
        reads: the axes along which a weight reads channels, where a gate of zero removes them exactly.
        standardised: weights whose rows are to be standardised over the living inputs while searching.
        normed: weights of which weight norm makes those that layers use.
        inhabited: values that may not lose their last channel, because an operation refuses to run without any.
        paired: channels of which two must stay, because an operation takes a single one for none.
        constants: pinned labels of values that depend on nothing.
        inputs: pinned labels of the model's inputs.
        positions: how many output positions each weight is applied to, all of it (MACs = positions x elements).
        uses: calls whose MACs follow other widths than those of a whole weight.
    """

    size: int = 1
    constants: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    ties: list[Tie] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    sized: list[SizedCall] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    products: list[ProductCall] = field(default_factory=list)
    inhabited: list[Tensor] = field(default_factory=list)
    paired: list[Tensor] = field(default_factory=list)
    tensors: dict[str, TensorRef] = field(default_factory=dict)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    unlabelled: dict[str, Tensor] = field(default_factory=dict)
    reads: set[tuple[str, int]] = field(default_factory=set)
    writes: set[tuple[str, int]] = field(default_factory=set)
    standardised: set[str] = field(default_factory=set)
    normed: set[str] = field(default_factory=set)
    positions: dict[str, int] = field(default_factory=dict)
    uses: list[UseCall] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """Hand out ``count`` labels nobody has yet, shape ``[count]``."""
        start, self.size = self.size, self.size + count
        return torch.arange(start, self.size)

    def pinned(self, reason: str, origin: Origin) -> Tensor:
        """Hand out one label that must stay; whatever is tied to it stays too. Shape ``[]``."""
        label = self.fresh(1)
        self.freezes.append(Freeze(label, reason, origin))
        return label[0]

    def axis(self, tensor: TensorRef, axis: int) -> Tensor:
        """Return the labels along one axis of a tensor of the model, the same ones at every call."""
        if isinstance(tensor, Rows):
            labels = self.axis(tensor.source, axis)
            return tensor.of(labels) if axis == 0 else labels
        self.tensors[tensor.name] = tensor
        key = (tensor.name, axis)
        if key not in self.axes:
            self.axes[key] = self.fresh(tensor.shape[axis])
        return self.axes[key]

    def element(self, tensor: TensorRef) -> Tensor:
        """Return labels for a tensor used directly (a scale, an embedding): one per element.

        A tensor with one axis longer than 1 shares its labels with that axis.
        """
        if isinstance(tensor, Rows):
            return tensor.of(self.element(tensor.source))
        long = [axis for axis, size in enumerate(tensor.shape) if size > 1] or list(range(len(tensor.shape)))[:1]
        if len(long) == 1:
            view = [-1 if axis == long[0] else 1 for axis in range(len(tensor.shape))]
            return self.axis(tensor, long[0]).reshape(view)
        if torch.Size(tensor.shape).numel() > LARGEST_TENSOR:
            return self._unlabelled(tensor).expand(tensor.shape)
        if tensor.name not in self.elements:
            self.tensors[tensor.name] = tensor
            self.elements[tensor.name] = self.fresh(torch.Size(tensor.shape).numel()).reshape(tensor.shape)
        return self.elements[tensor.name]

    def is_element(self, labels: Tensor) -> Tensor:
        """Say of each label whether it belongs to a single element of a directly used tensor; bool, same shape."""
        found = torch.zeros_like(labels, dtype=torch.bool)
        for own in self.elements.values():
            found |= (labels >= own.flatten()[0]) & (labels <= own.flatten()[-1])
        return found

    def _unlabelled(self, tensor: TensorRef) -> Tensor:
        """Return the one label of a tensor with too many elements to name them all: it stays whole."""
        if tensor.name not in self.unlabelled:
            self.unlabelled[tensor.name] = self.pinned(TOO_LARGE, Origin("parameter", tensor.name, ""))
        return self.unlabelled[tensor.name]
