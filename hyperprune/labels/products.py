"""Products between activations that sum over channels: attention's query times key.

A channel drops out of such a sum exactly if one of the two factors is zero there. So the rows of the layer that makes
one factor are gated too. Fused attention divides by the root of the number of channels: a slim network divides by a
smaller root, which its rows make up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.fx
from torch import Tensor

from hyperprune.labels.arrays import thin, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import ProductCall, Rows, TensorRef
from hyperprune.trace import plain_name

MOVED = {
    *("getitem", "permute", "transpose", "t", "mT", "unbind", "select", "chunk", "split", "split_with_sizes"),
    *("contiguous", "clone", "reshape", "view", "flatten", "unsqueeze", "squeeze", "expand", "unflatten", "alias"),
}
LAYERS = ("linear", "conv1d", "conv2d")


def gate_product(call: Call, left: Tensor, right: Tensor, axes: tuple[int, int], *, rooted: bool) -> Tensor | None:
    """Tie two factors along the axis that a product sums over, note which rows to gate, and return the channels there.

    Whatever else varies (heads, each of which loses the same channels) is tied. Returns None if the product cannot be
    gated: if no layer makes one of the factors with nothing but data movement in between.

    Args:
        left: labels of the first factor; ``right`` those of the second.
        axes: the axis of each that is summed over.
        rooted: whether the product is divided by the root of the number of channels.
    """
    summed, other = line(call, left, axes[0]), line(call, right, axes[1])
    factors = call.node.args[1] if call.operator == "aten::einsum" else call.node.args
    for labels, node in zip((left, right), cast(Sequence[object], factors), strict=False):
        layer = layer_behind(node)
        weight, bias = (call.value(argument) for argument in (*layer.args, None)[1:3]) if layer else (None, None)
        made = bias if isinstance(bias, TensorRef) else None
        if not isinstance(weight, TensorRef) or (made is not None and _first(made) != _first(weight)):
            continue  # rows of a bias are counted as those of its weight
        if (rows := _rows(call, weight, labels)) is not None:
            call.tie(summed, other)
            call.summed(ProductCall(call.node.name, weight, made, rows, summed, rooted))
            return summed
    return None


def line(call: Call, labels: Tensor, axis: int) -> Tensor:
    """Tie whatever lies along other axes, and return the labels along this one."""
    axis %= labels.ndim
    others = [at for at in varying_axes(labels) if at != axis]
    return call.channels(call.together(labels, *others), axis)


def _rows(call: Call, weight: TensorRef, labels: Tensor) -> Tensor | None:
    """Return which rows of a weight made these labels; None unless all of them are its rows."""
    made = call.axis(weight, 0)
    rows = thin(labels).reshape(-1) - made[0]
    return _first(weight) + rows.unique() if bool(((rows >= 0) & (rows < len(made))).all()) else None


def _first(tensor: TensorRef) -> int:
    return tensor.start if isinstance(tensor, Rows) else 0


def layer_behind(node: object) -> torch.fx.Node | None:
    """Return the call of the layer that makes a value, if nothing but data movement and scaling lies in between."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        name = plain_name(node)
        if name in LAYERS:
            return node
        scaled = name in ("mul", "div") and not isinstance(node.args[1], torch.fx.Node)
        if name not in MOVED and not scaled:
            return None
        node = node.args[0]
    return None
