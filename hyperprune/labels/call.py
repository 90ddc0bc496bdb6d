"""One call in the graph, as a rule sees it: its arguments as labels, and the ledger to write to."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeGuard

import torch
import torch.fx
from torch import Tensor

from hyperprune.labels.arrays import compact, extent, spread, thin, varies, varying_axes
from hyperprune.labels.ledger import (
    ELASTIC,
    Attention,
    Freeze,
    Ledger,
    NormCall,
    ProductCall,
    Rows,
    SizedCall,
    TensorRef,
    Tie,
    UseCall,
)
from hyperprune.labels.lookahead import is_a_layers_own, is_within
from hyperprune.labels.reasons import CONSTANT, FIXED, SEVERAL_AXES
from hyperprune.trace import Origin, origin, owner


class Call:
    """What a rule may look at and write down.

    Attributes:
        node: the call in the graph.
        operator: its name, for instance ``"aten::conv2d"``.
        arguments: argument name -> value. Activations arrive as label tensors, parameters and buffers as
            ``TensorRef``, everything else as it was.
        by_width: whether attention is to lose channels inside every head, rather than whole heads.
    """

    def __init__(
        self,
        node: torch.fx.Node,
        operator: str,
        arguments: Mapping[str, Any],
        ledger: Ledger,
        choice: int = 0,
        values: Mapping[torch.fx.Node, Any] | None = None,
        attention: Attention = "heads",
    ) -> None:
        self.node = node
        self.operator = operator
        self.arguments = arguments
        self.origin: Origin = origin(node)
        self._ledger = ledger
        self._choice = choice
        self._values = {} if values is None else values
        self.by_width = attention == "width"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) output."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, (tuple, list)) else value).shape)

    def arg(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema."""
        value = self.arguments.get(name)
        return default if value is None else value

    def labels(self, value: Any) -> Tensor:
        """Return the label tensor of an argument; parameters and buffers get one label per element."""
        return compact(self._ledger.element(value)) if isinstance(value, TensorRef) else value

    def tensors(self) -> list[Any]:
        """Return every tensor argument, those inside lists too."""
        leaves = torch.utils._pytree.tree_leaves(list(self.arguments.values()))
        return [leaf for leaf in leaves if isinstance(leaf, (Tensor, TensorRef))]

    def channels(self, value: Any, axis: int, reason: str = SEVERAL_AXES) -> Tensor:
        """Return the labels along one axis, shape ``[size]``; what lies at one position there goes together."""
        labels = self.labels(value)
        labels = self.pinned(CONSTANT, tuple(labels.shape)) if self.is_elastic(labels) else self.settled(labels, axis)
        axis %= labels.ndim
        others = [at for at in range(labels.ndim) if at != axis]
        return self.together(labels, *others, reason=reason).reshape(-1)

    def settled(self, labels: Tensor, axis: int) -> Tensor:
        """Return labels that vary along one axis alone, where nothing but the elements of tables varies along others.

        Each element of a table of tokens (queries, positions) has a label of its own until a call says where its
        channels lie; then those of all tokens go together, and with the one channel that they meet there.
        """
        axis %= labels.ndim
        if not set(varying_axes(labels)) - {axis}:
            return labels
        grid = extent(labels, axis)
        firm = torch.where(self._ledger.is_element(grid), -1, grid)
        lead = firm.amax(dim=1, keepdim=True)
        if ((firm != lead) & (firm >= 0)).any():
            return labels
        lead = torch.where(lead < 0, grid[:, :1], lead)
        self.tie(lead.expand(grid.shape), grid)
        return spread(lead[:, 0], labels.shape, axis)

    def is_table(self, labels: Tensor) -> bool:
        """Say whether all labels belong to elements of directly used tensors."""
        return bool(self._ledger.is_element(thin(labels)).all())

    def together(self, labels: Tensor, *axes: int, reason: str = "") -> Tensor:
        """Let all that lies along some axes go together; return the labels with these axes cut down to length 1."""
        for axis in axes:
            if varies(labels, axis):
                self.tie(labels.narrow(axis, 0, 1).expand(labels.shape), labels, reason)
            labels = labels.narrow(axis, 0, 1)
        return labels

    def axis(self, tensor: TensorRef, axis: int) -> Tensor:
        """Return the labels along one axis of a parameter or buffer."""
        return self._ledger.axis(tensor, axis)

    def rows(self, value: Any, axis: int) -> TensorRef | None:
        """Return the weight or bias that this call takes rows out of, if all that it makes goes into layers."""
        if type(value) is not TensorRef or not value.is_parameter or axis:
            return None
        single = isinstance(self.node.meta["val"], Tensor)
        parts = [self.node] if single else list(self.node.users)
        return value if all(is_a_layers_own(part) for part in parts) else None

    def reads(self, tensor: TensorRef, axis: int) -> Tensor:
        """Return an axis along which a weight reads channels: the place where a gate acts; a buffer has none."""
        if tensor.is_parameter:
            self._ledger.reads.add((tensor.name, axis))
        else:
            self._ledger.freezes.append(Freeze(self.axis(tensor, axis), FIXED, self.origin))
        return self.axis(tensor, axis)

    def writes(self, tensor: TensorRef, axis: int) -> Tensor:
        """Return an axis along which a weight makes channels."""
        self._ledger.writes.add((tensor.name, axis))
        return self.axis(tensor, axis)

    def applied(self, tensor: TensorRef, positions: int) -> None:
        """Note that a weight is applied at so many positions: each costs one MAC per element."""
        if isinstance(tensor, Rows):
            lines = tuple(self.axis(tensor, axis) for axis in range(min(2, len(tensor.shape))))
            self._ledger.uses.append(UseCall(tensor.name, positions * prod(tensor.shape), lines))
        else:
            self._ledger.positions[tensor.name] = self._ledger.positions.get(tensor.name, 0) + positions

    def applied_to_each(self, tensor: TensorRef, positions: int, channels: Tensor) -> None:
        """Note that a weight that stays is applied at so many positions in all, as many within each channel."""
        self._ledger.uses.append(UseCall(tensor.name, positions * prod(tensor.shape), (thin(channels).reshape(-1),)))

    def costs(self, macs: int, *lines: Tensor) -> None:
        """Note what a product costs whose weight ``forward`` computes, or of which only what lies along lines goes."""
        self._ledger.uses.append(UseCall("", macs, lines))

    def tie(self, left: Tensor, right: Tensor, reason: str = "") -> None:
        """Let two tensors of labels live or die together, position by position."""
        if left is not right:
            if left.shape == right.shape:
                left, right = torch.broadcast_tensors(thin(left), thin(right))
            self._ledger.ties.append(Tie(left.reshape(-1), right.reshape(-1), self.origin, reason))

    def freeze(self, value: Any, reason: str) -> None:
        """Make channels stay; of a parameter or buffer, every axis."""
        whole = isinstance(value, TensorRef)
        vectors = [self.axis(value, axis) for axis in range(len(value.shape))] if whole else [thin(value).reshape(-1)]
        self._ledger.freezes += [Freeze(vector, reason, self.origin) for vector in vectors]

    def fresh(self, count: int) -> Tensor:
        """Return labels of channels that nothing has met yet, shape ``[count]``."""
        return self._ledger.fresh(count)

    def constant(self) -> Tensor:
        """Return labels for a value that depends on nothing."""
        label = self._ledger.pinned(CONSTANT, self.origin)
        self._ledger.constants.add(int(label))
        return label.expand(self.shape)

    def is_constant(self, labels: Tensor) -> bool:
        """Say whether a value depends on nothing."""
        small = thin(labels)
        return small.numel() == 1 and (int(small) == ELASTIC or int(small) in self._ledger.constants)

    def is_input(self, labels: Tensor) -> bool:
        """Say whether a value depends on one input of the model and on nothing else: a mask."""
        small = thin(labels)
        return small.numel() == 1 and int(small) in self._ledger.inputs

    def is_elastic(self, labels: Tensor) -> bool:
        """Say whether a value is a constant stretched along its axes."""
        small = thin(labels)
        return small.numel() == 1 and int(small) == ELASTIC

    def pinned(self, reason: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return labels that must stay, for a value whose channels cannot be named."""
        return self._ledger.pinned(reason, self.origin).expand(self.shape if shape is None else shape)

    def sized(self, *extents: Tensor, parts: tuple[int, ...] = ()) -> None:
        """Note sizes that this call's arguments hold and that follow the channels.

        Args:
            extents: label tensors whose first axis has that size; a position counts while any label at it stays.
            parts: sizes of the consecutive parts into which the call cuts the first extent.
        """
        grids = tuple(extent.reshape(len(extent), -1) for extent in extents)
        self._ledger.sized.append(SizedCall(self.node.name, self.origin, grids, parts))

    def entering(self) -> Tensor | None:
        """Return the labels of the tensor that enters the layer this call belongs to.

        None unless that tensor takes one way, by data movement alone, from the layer's input to this call.
        """
        layer, node = owner(self.node), self.node.args[0]
        while isinstance(node, torch.fx.Node) and owner(node) == layer and node.op == "call_function":
            if len(node.all_input_nodes) != 1 or len(node.users) != 1:
                return None
            node = node.all_input_nodes[0]
        if not isinstance(node, torch.fx.Node) or not layer or is_within(owner(node), layer):
            return None
        value = self._values.get(node) if sum(owner(user) == layer for user in node.users) == 1 else None
        return self.labels(value) if isinstance(value, (Tensor, TensorRef)) else None

    def arriving(self) -> list[Tensor]:
        """Return the labels of the tensors that enter the module whose ``forward`` makes this call."""
        layer, found = owner(self.node), dict[torch.fx.Node, None]()
        for node in self._values:
            if is_within(owner(node), layer):
                found.update((source, None) for source in node.all_input_nodes if not is_within(owner(source), layer))
        values = [self._values.get(node) for node in found]
        return [value for value in values if isinstance(value, Tensor)]

    def inhabited(self, labels: Tensor) -> None:
        """Note that this operation refuses to run without any channel: some of these stay."""
        self._ledger.inhabited.append(thin(labels).reshape(-1))

    def paired(self, labels: Tensor) -> None:
        """Note that this operation takes a single channel for none: two of these stay."""
        self._ledger.paired.append(labels)

    def owns(self, value: Any) -> TypeGuard[TensorRef]:
        """Say whether a value is a parameter or buffer of the very layer whose ``forward`` makes this call."""
        return isinstance(value, TensorRef) and value.name.rpartition(".")[0] == self.origin.module

    def name_of_norm(self, weight: TensorRef | None) -> str:
        """Return the name of a norm's scale; of one without, its layer's with a dot behind it."""
        return f"{self.origin.module}." if weight is None else weight.name

    def living_norm(self, norm: NormCall) -> None:
        """Note that this layer's statistics are to run over the living channels while searching."""
        self._ledger.norms.append(norm)

    def normed(self, weight: TensorRef) -> None:
        """Note that weight norm makes of this what a layer uses."""
        self._ledger.normed.add(weight.name)

    def living_rows(self, weight: TensorRef) -> None:
        """Note that the rows of this weight are to be standardised over the living inputs while searching."""
        self._ledger.standardised.add(weight.name)

    def summed(self, product: ProductCall) -> None:
        """Note a product between activations that sums over channels."""
        self._ledger.products.append(product)

    def value(self, node: object) -> Any:
        """Return what is known of another call's output: labels, or the parameter or buffer it is."""
        return self._values.get(node) if isinstance(node, torch.fx.Node) else None

    def choose(self, *options: str) -> str:
        """Pick one of several readings of this call, the likeliest first.

        A later reading is taken once the rehearsal has shown an earlier one to fail; the last resort,
        beyond all options, is ``"freeze"``.
        """
        return options[self._choice] if self._choice < len(options) else "freeze"

    def cut_alike(self, parts: tuple[int, ...]) -> list[Tensor]:
        """Return the labels, shape ``[size]``, of what this module has cut into parts of such sizes before."""
        return [call.extents[0][:, 0] for call in self._sized_here() if call.parts == parts]

    def tie_alike(self, channels: Tensor) -> None:
        """Tie channels to all that earlier calls of this module hold the same size of."""
        for call in self._sized_here():
            for grid in call.extents:
                if grid.shape == (len(channels), 1):
                    self.tie(grid[:, 0], channels)

    def _sized_here(self) -> list[SizedCall]:
        return [call for call in self._ledger.sized if call.origin.module == self.origin.module]

    def along(self, channels: Tensor, axis: int) -> Tensor:
        """Lay a vector of labels along ``axis`` of the output's shape."""
        return spread(channels, self.shape, axis)

    def give_up(self, reason: str) -> Any:
        """Freeze everything this call touches and return labels that must stay."""
        for value in self.tensors():
            self.freeze(value, reason)
        value = self.node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return [self.pinned(reason, tuple(v.shape)) if isinstance(v, Tensor) else None for v in value]
        return self.pinned(reason, tuple(value.shape)) if isinstance(value, Tensor) else None
