"""Norms whose arithmetic a layer writes out in its forward(): x * rsqrt(mean(x * x) + eps) * weight."""

from __future__ import annotations

import torch.fx

from hyperprune.labels.lookahead import plain_name
from hyperprune.trace import owner

VIEWS = ("view", "reshape")


def written_rms_norm(mean: torch.fx.Node) -> torch.fx.Node | None:
    """Return what enters an RMS norm, given its mean of squares; None unless the layer is nothing but that norm.

    The layer's own ``weight`` must scale the result, and what enters the layer must be used for the norm alone.
    """
    squares = mean.args[0]
    if not isinstance(squares, torch.fx.Node) or plain_name(mean) != "mean" or not _are_squares(squares):
        return None
    x, layer = squares.args[0], owner(mean)
    scaled = _only_user(_only_user(_only_user(mean, "add"), "rsqrt"), "mul")
    weighted = _only_user(scaled, "mul")
    if not isinstance(x, torch.fx.Node) or weighted is None or owner(x) == layer or scaled is None:
        return None
    inside = {user for user in x.users if owner(user) == layer}
    whole = inside == {squares, scaled} and x in scaled.args
    return x if whole and any(_is_weight(arg, layer) for arg in weighted.args) else None


def _are_squares(node: torch.fx.Node) -> bool:
    if plain_name(node) == "pow":
        return bool(node.args[1] == 2)
    return plain_name(node) == "square" or (plain_name(node) == "mul" and node.args[0] is node.args[1])


def _only_user(node: torch.fx.Node | None, name: str) -> torch.fx.Node | None:
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 and plain_name(users[0]) == name else None


def _is_weight(value: object, layer: str) -> bool:
    """Say whether a value is the layer's parameter ``weight``, laid along the channels perhaps."""
    if isinstance(value, torch.fx.Node) and plain_name(value) in VIEWS:
        value = value.args[0]
    return isinstance(value, torch.fx.Node) and value.name == f"p_{layer}.weight".replace(".", "_").lower()
