"""Norms whose arithmetic a layer writes out in its forward().

An RMS norm is ``x * rsqrt(mean(x * x) + eps) * weight``; a layer norm takes the mean off first, or divides by the root
of the variance alone (Restormer's without a bias), or by the standard deviation. A unit norm divides by the length, as
``F.normalize`` does; times the root of a width it is an RMS norm. A response norm is
``x * (g / (mean(g) + eps)) * weight + x``, with g the norm of each channel over space. Such a layer may be shown other
numbers at its input, as torch's own may, if it does nothing else with that input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx

from hyperprune.labels.ledger import NormKind
from hyperprune.labels.lookahead import CASTS, TURNED, is_all_of_its_layer, is_within
from hyperprune.trace import owner, plain_name

PASSING = (*CASTS, "alias")
SCALING = ("mul", "addcmul")
ROOTS = {"sqrt": 0.5, "rsqrt": -0.5}  # and the powers they stand for
LENGTHS = ("norm", "linalg_vector_norm")
SPREADS = ("var", "std")
BOUNDED = ("clamp_min", "clamp", "expand", "expand_as", "add")  # what becomes of a length before it divides
LAID_OUT = (*PASSING, "view", "reshape", "unsqueeze", "slice", "expand", "expand_as")


@dataclass(frozen=True)
class WrittenNorm:
    """A norm that a layer writes out.

    Attributes:
        weight: the placeholder of what scales the result; None if nothing does, and the result is the layer's own.
        kind: what it computes of the channels.
        offset: number that is added to the weight: Gemma's norms multiply by 1 + weight.
        correction: by how much the variance divides by less than the number of channels: Bessel's is 1.
    """

    weight: torch.fx.Node | None
    kind: NormKind
    offset: float = 0.0
    correction: int = 0

    @property
    def may_be_spatial(self) -> bool:
        """Whether it may run over the axes behind the channels too."""
        return self.kind != "response" and not self.correction


def written_norm(reduction: torch.fx.Node) -> WrittenNorm | None:
    """Return the norm that a mean, variance or length is part of; None unless its layer is nothing but that norm."""
    x = _uncast(reduction.args[0])
    if plain_name(reduction) in LENGTHS:
        return _unit_norm(x, reduction, reduction) if reduction.args[1:2] == (2,) else None
    if plain_name(reduction) == "sum":
        root = _only_user(_only_user(reduction, "add") or reduction, "sqrt")
        return _unit_norm(_uncast(x.args[0]), x, root) if _are_squares(x) and root is not None else None
    if plain_name(x) in LENGTHS:
        return _response_norm(_uncast(x.args[0]), x, reduction)
    if plain_name(reduction) in SPREADS or not _are_squares(x):
        mean, correction = _mean_of(x, owner(reduction)), _correction(reduction)
        if mean is not None or correction is None:
            return _layer_norm(x, mean)
        return _corrected(_rms_norm(x, reduction, reduction, "layer"), correction)
    base = _uncast(x.args[0])
    if plain_name(base) == "sub":
        return _layer_norm(_uncast(base.args[0]), base.args[1])
    return _rms_norm(base, x, reduction)


def _rms_norm(
    x: torch.fx.Node, squares: torch.fx.Node, mean: torch.fx.Node, kind: NormKind = "rms"
) -> WrittenNorm | None:
    """Match ``x / sqrt(mean + eps)``, the mean that of x's squares, or a variance in its place."""
    scaled, inverse = _divided_by_root(mean)
    if scaled is None or plain_name(scaled) != ("mul" if inverse else "div"):
        return None
    if not _is_all_that_happens(x, mean, {squares, scaled}) or (not inverse and _uncast(scaled.args[0]) is not x):
        return None
    if is_all_of_its_layer(mean, scaled):
        return WrittenNorm(None, kind)
    return _weighted(scaled, kind)


def _layer_norm(x: torch.fx.Node, mean: object) -> WrittenNorm | None:
    """Match ``(x - mean) / sqrt(variance + eps)``, the variance by a call of its own or by the mean of squares."""
    if not isinstance(mean, torch.fx.Node) or plain_name(mean) != "mean" or _uncast(mean.args[0]) is not x:
        return None
    off = [user for user in mean.users if plain_name(user) == "sub" and _are(user.args[:2], x, mean)]
    onward = [user for node in off for user in _users(node)]
    squares = [node for node in onward if _are_squares(node)]
    taken = [node for node in _users(x) if _correction(node) is not None and owner(node) == owner(mean)]
    variances = _users(squares[0]) if squares else taken
    if len(off) != len(mean.users) or len(variances) != 1 or not _are_alike(mean, variances[0]):
        return None
    scaled, inverse = _divided_by_root(variances[0])
    if scaled is None or plain_name(scaled) != ("mul" if inverse else "div"):
        return None
    numerator = None if inverse else _uncast(scaled.args[0])
    early = numerator if numerator in onward and _is(numerator, ("mul",)) else None  # weight * (x - mean) / root
    if set(onward) != {*squares, early or scaled} or len(squares) > 1 or numerator not in (None, early, *off):
        return None
    inside = {mean, *off, *([] if squares else variances)}
    if not _is_all_that_happens(x, mean, inside):
        return None
    correction = _correction(variances[0]) or 0
    if early is not None:
        return _corrected(_scaled_by(early, "layer"), correction) if _only_user(early, "div") is scaled else None
    own = is_all_of_its_layer(mean, scaled)
    return _corrected(WrittenNorm(None, "layer") if own else _weighted(scaled, "layer"), correction)


def _corrected(norm: WrittenNorm | None, correction: int) -> WrittenNorm | None:
    return None if norm is None else replace(norm, correction=correction)


def _response_norm(x: torch.fx.Node, lengths: torch.fx.Node, mean: torch.fx.Node) -> WrittenNorm | None:
    """Match ``x * (g / (mean(g) + eps))``; the layer may use its input in any other way, channel by channel."""
    share = _only_user(_only_user(mean, "add"), "div")
    if share is None or set(_users(lengths)) != {mean, share} or _uncast(share.args[0]) is not lengths:
        return None
    scaled = _only_user(share, "mul")
    if scaled is None or not _enters(x, mean) or x not in [_uncast(arg) for arg in scaled.args]:
        return None
    same_axes = lengths.meta["val"].ndim == x.meta["val"].ndim
    return _weighted(scaled, "response") if same_axes else None


def _unit_norm(x: torch.fx.Node, start: torch.fx.Node, length: torch.fx.Node) -> WrittenNorm | None:
    """Match ``x / max(length, eps)``, the length by one call or from squares; a number may multiply it then.

    Args:
        start: the call that reads x on the way to its length.
    """
    scaled = _only_user(length, "div", *BOUNDED)
    while scaled is not None and plain_name(scaled) != "div":
        scaled = _only_user(scaled, "div", *BOUNDED)
    if scaled is None or _uncast(scaled.args[0]) is not x or not _is_all_that_happens(x, length, {start, scaled}):
        return None
    product = _only_user(scaled, "mul")
    if product is not None and not all(isinstance(arg, torch.fx.Node) for arg in product.args):
        scaled = product  # by a number
    return WrittenNorm(None, "unit") if is_all_of_its_layer(start, scaled) else _weighted(scaled, "unit")


def _divided_by_root(variance: torch.fx.Node) -> tuple[torch.fx.Node | None, bool]:
    """Return what is divided by the root of a variance, and whether by a product with its inverse."""
    if plain_name(variance) == "std":
        return _only_user(_only_user(variance, "add") or variance, "div"), False
    root = _only_user(_only_user(variance, "add"), *ROOTS, "pow")
    if root is None or (plain_name(root) == "pow" and root.args[1] not in ROOTS.values()):
        return None, False
    return _only_user(root, "mul", "div"), -0.5 in (ROOTS.get(plain_name(root)), root.args[-1])


def _weighted(scaled: torch.fx.Node, kind: NormKind) -> WrittenNorm | None:
    """Return the norm, if a parameter scales its result, turned perhaps, and does nothing but scale."""
    product = _only_user(_only_user(scaled, *TURNED) or scaled, *SCALING)
    return None if product is None else _scaled_by(product, kind)


def _scaled_by(product: torch.fx.Node, kind: NormKind) -> WrittenNorm | None:
    factors = product.args[-2:]  # addcmul adds its first argument
    sources = [_shifted(factor) for factor in factors]
    weights = [(source, offset) for source, offset in sources if source is not None and source.op == "placeholder"]
    if len(weights) != 1:
        return None
    weight, offset = weights[0]
    uses = _users(weight, LAID_OUT)
    if offset and any(plain_name(user) != "add" or _shifted(user) != weights[0] for user in uses):
        return None
    uses = [use for user in uses for use in _users(user, LAID_OUT)] if offset else uses
    return WrittenNorm(weight, kind, offset) if all(plain_name(user) in SCALING for user in uses) else None


def _is_all_that_happens(x: torch.fx.Node, call: torch.fx.Node, expected: set[torch.fx.Node]) -> bool:
    """Say whether ``x`` enters the layer that makes this call, which uses it in these ways alone."""
    return _enters(x, call) and {user for user in _users(x) if owner(user) == owner(call)} == expected


def _enters(x: torch.fx.Node, call: torch.fx.Node) -> bool:
    """Say whether ``x`` comes from outside the layer that makes this call, turned perhaps; the network is no layer."""
    layer = owner(call)
    while owner(x) == layer and _is(x, TURNED):
        turned, x = x, _uncast(x.args[0])
        if [user for user in _users(x) if owner(user) == layer] != [turned]:
            return False
    return bool(layer) and not is_within(owner(x), layer)


def _are(args: tuple[object, ...], x: torch.fx.Node, mean: torch.fx.Node) -> bool:
    return len(args) == 2 and isinstance(args[0], torch.fx.Node) and _uncast(args[0]) is x and args[1] is mean


def _are_alike(mean: torch.fx.Node, variance: torch.fx.Node) -> bool:
    """Say whether two reductions run over the same axes, which stay with length 1."""
    return plain_name(variance) in ("mean", *SPREADS) and mean.meta["val"].shape == variance.meta["val"].shape


def _correction(node: torch.fx.Node) -> int | None:
    """Return the correction of a variance or deviation over given axes, 1 or 0; None if it is no such call."""
    if plain_name(node) not in SPREADS or len(node.args) < 2:
        return None
    correction = node.args[2] if len(node.args) > 2 else node.kwargs.get("correction")
    return 1 if correction is None else int(correction) if correction in (0, 1) else None  # type: ignore[arg-type]


def _are_squares(node: torch.fx.Node) -> bool:
    if plain_name(node) == "pow":
        return bool(node.args[1] == 2)
    return plain_name(node) == "square" or (plain_name(node) == "mul" and node.args[0] is node.args[1])


def _mean_of(x: torch.fx.Node, layer: str) -> torch.fx.Node | None:
    means = [user for user in _users(x) if plain_name(user) == "mean" and owner(user) == layer]
    return means[0] if len(means) == 1 else None


def _users(node: torch.fx.Node, passing: tuple[str, ...] = PASSING) -> list[torch.fx.Node]:
    """Return the calls that use a value, whatever type it was cast to; those that take its shape alone are none."""
    users = [user for user in node.users if not (_is(user, ("expand_as",)) and user.args[0] is not node)]
    return [use for user in users for use in (_users(user, passing) if _is(user, passing) else [user])]


def _only_user(node: torch.fx.Node | None, *names: str) -> torch.fx.Node | None:
    users = [] if node is None else _users(node)
    return users[0] if len(users) == 1 and plain_name(users[0]) in names else None


def _is(node: torch.fx.Node, names: tuple[str, ...]) -> bool:
    return node.op == "call_function" and plain_name(node) in names


def _uncast(node: object) -> torch.fx.Node:
    assert isinstance(node, torch.fx.Node)
    return _uncast(node.args[0]) if _is(node, PASSING) else node


def _shifted(value: object) -> tuple[torch.fx.Node | None, float]:
    """Return where a factor comes from, and the number that was added to it."""
    source = _source(value)
    if source is None or plain_name(source) != "add":
        return source, 0.0
    if source.kwargs.get("alpha", 1) != 1:
        return source, 0.0
    numbers = [float(arg) for arg in source.args if isinstance(arg, (int, float))]
    others = [arg for arg in source.args if isinstance(arg, torch.fx.Node)]
    return (_source(others[0]), numbers[0]) if len(numbers) == len(others) == 1 else (source, 0.0)


def _source(value: object) -> torch.fx.Node | None:
    """Return where a value comes from, laid along the channels or cast on its way perhaps."""
    while isinstance(value, torch.fx.Node) and _is(value, LAID_OUT):
        value = value.args[0]
    return value if isinstance(value, torch.fx.Node) else None
