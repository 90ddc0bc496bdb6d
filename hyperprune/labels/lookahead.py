"""Where a value goes: questions to the graph that help to read an ambiguous call."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import cast

import torch
import torch.fx

from hyperprune.labels.arrays import named_axes, spread, varying_axes
from hyperprune.trace import owner, plain_name

ATTENTION = ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm", "einsum")
PASSED = {
    *("getitem", "permute", "transpose", "t", "mT", "unbind", "select", "slice", "chunk", "split", "split_with_sizes"),
    *("contiguous", "clone", "reshape", "view", "flatten", "unsqueeze", "squeeze", "expand", "cat", "alias", "detach"),
    *("repeat_interleave", "repeat", "pad", "view_as_complex", "view_as_real", "type_as"),
    *("mul", "div", "add", "sub", "relu", "elu", "softmax", "sigmoid", "layer_norm", "rms_norm", "to", "_to_copy"),
}
FARTHEST = 39
EACH_BY_ITSELF = ("batch_norm", "relu", "relu6", "silu", "gelu", "hardswish", "hardtanh", "dropout", "leaky_relu")
TURNED = ("permute", "transpose", "movedim", "swapaxes", "swapdims")
VIEWS = ("view", "reshape", "unflatten")
CASTS = ("to", "_to_copy", "type_as", "float", "half", "bfloat16", "double")
RESIZED = ("group_norm", "instance_norm", "tanh", "elu", "prelu", "mul", "upsample_nearest2d", "upsample_bilinear2d")
CONVOLUTIONS = tuple(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3))
PRODUCTS = ("matmul", "mm", "addmm")
WEIGHTED = ("linear", *CONVOLUTIONS)
STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")
JOINS = ("cat", "concat", "concatenate")
ARITHMETIC = ("add", "sub", "mul")
AS_IT_IS = "still that weight"
WHOLE_GROUPS, INNER_CHANNELS = "whole groups", "inner channels"


def _reached(node: torch.fx.Node, passed: Container[str]) -> Iterator[torch.fx.Node]:
    """Yield the calls that use a value, and those that use what calls of these names make of it, the nearest first."""
    queue = list(node.users)
    for user in queue:
        yield user
        if plain_name(user) in passed:
            queue += [other for other in user.users if other not in queue]


def leads_to_attention(node: torch.fx.Node) -> bool:
    """Say whether a value reaches a product between activations by data movement and scaling alone."""
    return any(plain_name(user) in ATTENTION for user in islice(_reached(node, PASSED), FARTHEST))


def leads_to_resizing(node: torch.fx.Node) -> bool:
    """Say whether a value is next turned into an image that is resized, as tables of positions are."""
    passed = (*TURNED, *CASTS, "contiguous", "clone", "unsqueeze")
    return any("upsample" in plain_name(user) for user in _reached(node, passed))


def image_axis(node: torch.fx.Node) -> tuple[int, ...]:
    """Return the axis of a value along which a convolution will read channels; empty if none does directly."""
    rank = node.meta["val"].ndim
    for user in _reached(node, (*EACH_BY_ITSELF, *RESIZED)):
        if (name := plain_name(user)) in CONVOLUTIONS:
            return (rank - 1 - int(name[-2]),) if user.meta["val"].ndim == rank else ()
    return ()


def is_taken_apart(node: torch.fx.Node, axis: int) -> bool:
    """Say whether the positions along an axis are next used one by one, as the two parts of complex numbers are."""
    return any(_takes_apart(user, node, axis) for user in node.users)


def _takes_apart(user: torch.fx.Node, node: torch.fx.Node, axis: int) -> bool:
    name, before = plain_name(user), node.meta["val"]
    rank = before.ndim
    if name in ("select", "unbind"):
        return (user.args[1] if len(user.args) > 1 else 0) % rank == axis
    if name == "view_as_complex":
        return axis == rank - 1
    if name in TURNED:
        marked = spread(torch.arange(before.shape[axis]), before.shape, axis)
        moved = varying_axes(user.target(marked, *user.args[1:], **user.kwargs))  # type: ignore[operator]
        return any(is_taken_apart(user, at) for at in moved)
    if name in VIEWS:
        marked = spread(torch.arange(before.shape[axis]), before.shape, axis).reshape(user.meta["val"].shape)
        kept = varying_axes(marked)
        return len(kept) == 1 and marked.shape[kept[0]] == before.shape[axis] and is_taken_apart(user, kept[0])
    return name in ("contiguous", "clone") and is_taken_apart(user, axis)


def is_averaged(node: torch.fx.Node, axis: int) -> bool:
    """Say whether statistics are next taken over an axis, as by a norm over groups of channels that is written out."""
    shape = node.meta["val"].shape
    users = (user for user in _reached(node, (*CASTS, "square", "mul", "sub", "pow")) if plain_name(user) in STATISTICS)
    given = ((user, cast(torch.fx.Node, user.args[0]).meta["val"].shape) for user in users if len(user.args) > 1)
    return any(found == shape and axis in named_axes(user.args[1], len(shape)) for user, found in given)


def splits_channels(node: torch.fx.Node) -> bool:
    """Say whether an image's channels are next laid out in rows, space as it was: split attention, a shuffle."""
    views = (user for user in _reached(node, EACH_BY_ITSELF) if plain_name(user) in VIEWS)
    return any(_is_in_rows(node, view) and not leads_to_attention(view) for view in views)


def _is_in_rows(image: torch.fx.Node, view: torch.fx.Node) -> bool:
    """Say whether a view parts an image's channels, but for a norm over groups of them."""
    before, after = image.meta["val"].shape, view.meta["val"].shape
    return len(after) == len(before) + 1 and after[-2:] == before[-2:] and not is_averaged(view, len(after) - 3)


def is_a_layers_own(node: torch.fx.Node) -> bool:
    """Say whether a value is used as the weight or the bias of convolutions and linear layers, and nowhere else."""
    users = list(node.users)
    return bool(users) and all(plain_name(user) in WEIGHTED and node in user.args[1:3] for user in users)


def is_read_by_columns(node: torch.fx.Node) -> bool:
    """Say whether a value is the weight of layers alone that read channels along its second axis."""
    return is_a_layers_own(node) and not any("transpose" in plain_name(user) for user in node.users)


def masks_weights(node: torch.fx.Node) -> bool:
    """Say whether a value is of use for products with weights alone, each as large as what a layer then reads."""
    users = list(_reached(node, CASTS))
    casts = {node, *(user for user in users if plain_name(user) in CASTS)}
    products = [user for user in users if user not in casts]
    return bool(products) and all(_is_scaled_weight(product, casts) for product in products)


def _is_scaled_weight(product: torch.fx.Node, scales: set[torch.fx.Node]) -> bool:
    weights = [source.meta["val"].shape for source in product.all_input_nodes if source not in scales]
    return plain_name(product) == "mul" and weights == [product.meta["val"].shape] and is_a_layers_own(product)


def is_within(path: str, module: str) -> bool:
    """Say whether a path is that of a module or of one inside it."""
    return path == module or path.startswith(f"{module}.")


def state_axis(node: torch.fx.Node) -> int | None:
    """Return the axis of a tensor made in forward() along which it is used as channels; None if it is anything else.

    Layers read it, or it is laid beside others, or added to or multiplied by tensors of its own shape; nothing else.
    """
    passed = (*CASTS, "clone", "contiguous", "detach")
    users = list(_reached(node, passed))
    same = {node, *(user for user in users if plain_name(user) in passed)}
    uses = [user for user in users if user not in same]
    if node.meta["val"].ndim < 2 or not all(_meets_channels(use, same) for use in uses):
        return None
    axes = {_channel_axis(use) for use in uses}
    return axes.pop() if len(axes) == 1 else None


def _meets_channels(call: torch.fx.Node, made: set[torch.fx.Node]) -> bool:
    name, shape = plain_name(call), call.meta["val"].shape
    if name in WEIGHTED:
        return made.isdisjoint(arg for arg in call.args[1:3] if isinstance(arg, torch.fx.Node))
    alike = all(source.meta["val"].shape == shape for source in call.all_input_nodes)
    return name in JOINS or (name in ARITHMETIC and alike)


def _channel_axis(call: torch.fx.Node) -> int:
    """Return where channels lie in what a call is given: as a convolution says, else last, but in images second."""
    name, rank = plain_name(call), call.meta["val"].ndim
    if name in CONVOLUTIONS:
        return rank - 1 - int(name[-2])
    if name != "linear" and (image := image_axis(call)):
        return image[0]
    last = rank < 4 or name == "linear" or (name in JOINS and call.args[1:] in ((-1,), (rank - 1,)))
    return rank - 1 if last else 1


def is_right_factor(node: torch.fx.Node) -> bool:
    """Say whether a value is the right factor of products of matrices, and used nowhere else."""
    users = list(node.users)
    return bool(users) and all(
        plain_name(user) in PRODUCTS and user.args.index(node) == len(user.args) - 1 for user in users
    )


def has_twins(node: torch.fx.Node) -> bool:
    """Say whether the module that makes a call makes another one to the same function with the same numbers."""
    return any(other.args[1:] == node.args[1:] for other in _kin(node))


def shares_sizes(node: torch.fx.Node) -> bool:
    """Say whether the module that cuts a tensor into parts of given sizes cuts another one into parts as large."""
    sizes, *others = (cast(Sequence[int], call.args[1]) for call in (node, *_kin(node)))
    return any(not set(sizes).isdisjoint(other) for other in others)


def _kin(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return the other calls to the same function by the same module."""
    others = (other for other in node.graph.nodes if other is not node and other.target == node.target)
    return [other for other in others if owner(other) == owner(node)]


def is_all_of_its_layer(node: torch.fx.Node, made: torch.fx.Node) -> bool:
    """Say whether a layer is called once, is given one tensor, and hands out what this call leads to.

    Its input and its output may then be shown otherwise for this call's sake.
    """
    if not is_last_of_its_layer(made):
        return False
    layer = owner(node)
    inside = [other for other in node.graph.nodes if is_within(owner(other), layer)]
    given = {source for other in inside for source in other.all_input_nodes if source not in inside}
    return sum(other.target == node.target for other in inside) == len(given) == 1


def is_last_of_its_layer(node: torch.fx.Node) -> bool:
    """Say whether what a call makes is used outside the layer that makes it alone, but for casts: it is its output."""
    layer = owner(node)
    inside = [user for user in node.users if is_within(owner(user), layer)]
    return bool(layer) and all(plain_name(user) in CASTS and is_last_of_its_layer(user) for user in inside)


def norms_in_groups(graphs: Iterable[torch.fx.Graph]) -> tuple[str, ...]:
    """Return the calls that normalise several groups of channels: whole groups may go, or the same channels of each."""
    nodes = (node for graph in graphs for node in graph.nodes if plain_name(node) == "group_norm")
    return tuple(dict.fromkeys(node.name for node in nodes if node.args[1] > 1))


def convolutions_in_wide_groups(graphs: Iterable[torch.fx.Graph]) -> tuple[str, ...]:
    """Return the convolutions that lose whole groups at first, though these are fewer than they are wide."""
    nodes = (node for graph in graphs for node in graph.nodes if _has_wide_groups(node) and not splits_channels(node))
    return tuple(dict.fromkeys(node.name for node in nodes))


def _has_wide_groups(node: torch.fx.Node) -> bool:
    if plain_name(node) not in ("conv1d", "conv2d", "conv3d"):
        return False
    x, weight = (cast(torch.fx.Node, node.args[at]).meta["val"].shape for at in (0, 1))
    groups = x[1 - len(weight)] // weight[1]
    return 1 < groups < weight[1]
