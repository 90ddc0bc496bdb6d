"""Operations that treat every element by itself: activations, and arithmetic between tensors."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.fx
from torch import Tensor

from hyperprune.labels.arrays import compact, extent, thin, varies, varying_axes
from hyperprune.labels.call import Call
from hyperprune.labels.ledger import ELASTIC, TensorRef
from hyperprune.labels.lookahead import AS_IT_IS, CASTS, is_a_layers_own, masks_weights, state_axis
from hyperprune.labels.reasons import BROADCAST, RANDOM, SIZE_IN_FORWARD
from hyperprune.labels.registry import rule
from hyperprune.trace import plain_name

UNARY = [
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "rrelu",
    "elu",
    "selu",
    "celu",
    "silu",
    "gelu",
    "mish",
    "softplus",
    "softsign",
    "sigmoid",
    "hardsigmoid",
    "hardswish",
    "log_sigmoid",
    "tanh",
    "hardshrink",
    "softshrink",
    "threshold",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "sqrt",
    "rsqrt",
    "square",
    "abs",
    "absolute",
    "neg",
    "negative",
    "positive",
    "sign",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "sinc",
    "erf",
    "erfc",
    "exp2",
    "reciprocal",
    "floor",
    "ceil",
    "round",
    "trunc",
    "fix",
    "frac",
    "logit",
    "nan_to_num",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "native_dropout",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "detach_",
    "lift_fresh_copy",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "fill",
    "zero",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "bitwise_not",
    "real",
    "imag",
    "angle",
    "sgn",
    "_conj",
    "conj_physical",
    "resolve_conj",
    "resolve_neg",
]

BINARY = [
    "add",
    "sub",
    "subtract",
    "mul",
    "multiply",
    "div",
    "divide",
    "true_divide",
    "floor_divide",
    "remainder",
    "fmod",
    "pow",
    "float_power",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "xlogy",
    "logaddexp",
    "heaviside",
    "where",
    "addcmul",
    "addcdiv",
    "lerp",
    "rsub",
    "atan2",
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "masked_fill",
    "copysign",
    "hypot",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "complex",
    "polar",
]

SCALING = ("aten::mul", "aten::multiply", "aten::div", "aten::divide")

FILLED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")

MAKES = [
    "new_empty",
    "empty",
    "arange",
    "rand",
    "randn",
    "scalar_tensor",
    "linspace",
    "eye",
]


@rule(*UNARY)
def unary(call: Call) -> Any:
    """Every element stays where it is: labels pass through."""
    tensors = call.tensors()
    return call.labels(tensors[0]) if tensors else call.constant()


@rule("rand_like", "randn_like", "bernoulli")
def drawn(call: Call) -> Any:
    """Random numbers in the shape of channels: with some of these gone, the others would meet other numbers."""
    x = call.labels(call.tensors()[0])
    if varying_axes(x):
        call.freeze(x, RANDOM)
    return x


@rule(*CASTS)
def cast(call: Call) -> Any:
    """A parameter in another type is still that parameter, a mask of weights that mask; labels pass through."""
    value = call.tensors()[0]
    same = isinstance(value, TensorRef) and (value.is_parameter or masks_weights(call.node))
    return value if same else call.labels(value)


@rule(*BINARY)
def between(call: Call) -> Any:
    """Tie the operands position by position.

    An operand broadcast along an axis on which another varies meets all of that axis's channels at once: its own
    channels must stay, while the others are untouched. But what a reduction left of the other (the root of a mean over
    each head) goes with what it was made of.
    """
    if (weight := _scaled_weight(call)) is not None:
        return weight
    operands = [call.labels(value) for value in call.tensors()]
    operands = _placed(call, _stretched(call, _unrepeated(call, operands)))
    shape = call.shape
    busy = [any(_varies_in(o, axis, len(shape)) for o in operands) for axis in range(len(shape))]
    carriers = [o for o in operands if not _is_broadcast(o, shape, busy)]
    for other in (o for o in operands if _is_broadcast(o, shape, busy)):
        if any(_is_left_of(other, carrier) for carrier in carriers):
            carriers.append(other)
        else:
            call.freeze(other, BROADCAST)
    if not carriers:
        return call.pinned(BROADCAST)
    return tie_all(call, [carrier.expand(shape) for carrier in carriers])


def _unrepeated(call: Call, operands: list[Tensor]) -> list[Tensor]:
    """Read a channel that is repeated for all channels that it meets (``x * gate.expand_as(x)``) as if broadcast."""
    repeated = [node for node in call.node.all_input_nodes if _repeats(node)]
    sources = [_before(call, o, repeated) for o in operands]
    single = {at - o.ndim for o in sources for at, size in enumerate(o.shape) if size == 1 < call.shape[at - o.ndim]}
    meeting = [extent(o, at) for o in sources for at in varying_axes(o) if at - o.ndim in single]
    if not repeated or not meeting or call.choose("as if broadcast") == "freeze":
        return operands
    call.sized(*meeting)
    return sources


def _before(call: Call, labels: Tensor, repeated: list[torch.fx.Node]) -> Tensor:
    """Return the labels of what was repeated, if one of these calls made the labels; a constant follows anyway."""
    made = [] if call.is_elastic(labels) else [node for node in repeated if call.value(node) is labels]
    sources = [call.value(node.args[0]) for node in made]
    return next((source for source in sources if isinstance(source, Tensor)), labels)


def _repeats(node: torch.fx.Node) -> bool:
    """Say whether a call repeats a value along axes of length 1 alone."""
    if plain_name(node) not in ("expand", "expand_as", "repeat", "tile"):
        return False
    before, after = (made.meta["val"].shape for made in (node.all_input_nodes[0], node))
    return len(before) == len(after) and all(size in (1, new) for size, new in zip(before, after, strict=True))


def _stretched(call: Call, operands: list[Tensor]) -> list[Tensor]:
    """Zeros to which something smaller is added serve to repeat it: ``token + torch.zeros(batch, 1, width)``."""
    made = [call.value(node) for node in call.node.all_input_nodes if plain_name(node) in ("zeros", "new_zeros")]
    zeros = [operand for operand in operands if any(operand is value for value in made)]
    rest = [operand for operand in operands if all(operand is not value for value in zeros)]
    if not zeros or not rest or any(operand.numel() == prod(call.shape) for operand in rest):
        return operands
    return [torch.tensor(ELASTIC).expand(o.shape) if any(o is zero for zero in zeros) else o for o in operands]


def _placed(call: Call, operands: list[Tensor]) -> list[Tensor]:
    """Say where the channels of tables lie: where those of an activation do that they meet, or those of each other.

    Those of an activation lie along the last axis, or along the second one of an image (a constant image times a
    style). Elsewhere it has a number for each token.
    """
    rank = len(call.shape)
    tables = [o for o in operands if len(varying_axes(o)) > 1 and call.is_table(o)]
    others = [o for o in operands if varying_axes(o) and not call.is_table(o)]
    along = [{axis - o.ndim for axis in varying_axes(o)} for o in others or tables]
    alike = not others and along[1:] == along[:-1]
    found = set.union(*along) if others else set() if alike else set.intersection(*along)
    if len(found) != 1 or not found <= ({-1, 1 - rank} if rank > 3 else {-1}):
        return operands
    (axis,) = found
    settled = {id(o): call.settled(o, axis) for o in tables if _varies_in(o, rank + axis, rank)}
    return [settled.get(id(o), o) for o in operands]


def _scaled_weight(call: Call) -> TensorRef | None:
    """Return the weight that something multiplies on its way to its layer (equalised rates, masks): still that weight.

    A number may follow from the weight's shape. A scale of each channel, or a mask, is sliced along with the weight.
    What does not export exactly is read as any product.
    """
    if call.operator not in SCALING or not is_a_layers_own(call.node):
        return None
    factors = call.tensors()
    weight = next((value for value in factors[: 1 if "div" in call.operator else 2] if _is_whole(value, call)), None)
    others = [value for value in factors if value is not weight]
    if weight is None or any(isinstance(other, Tensor) and len(varying_axes(other)) > 1 for other in others):
        return None
    if call.choose(AS_IT_IS) == "freeze":
        return None
    for other in others:
        _sliced_along(call, other, weight)
    call.sized(call.axis(weight, 0), call.axis(weight, 1))
    return weight


def _is_whole(value: Any, call: Call) -> bool:
    return type(value) is TensorRef and value.is_parameter and value.shape == call.shape and len(value.shape) > 1


def _sliced_along(call: Call, other: Any, weight: TensorRef) -> None:
    """Tie what multiplies a weight to the channels that this makes and reads; they align at the last axis."""
    ahead = len(weight.shape) - len(other.shape)
    for axis in range(2):
        if (own := axis - ahead) >= 0 and other.shape[own] > 1:
            lines = call.axis(other, own) if isinstance(other, TensorRef) else call.channels(other, own)
            call.tie(lines, call.axis(weight, axis))


def tie_all(call: Call, operands: list[Tensor]) -> Tensor:
    """Tie equally shaped label tensors to each other and return labels that stand for all of them."""
    operands = [o for o in operands if not call.is_elastic(o)] or operands[:1]
    first = operands[0]
    for other in operands[1:]:
        call.tie(first, other)
        if len(varying_axes(other)) < len(varying_axes(first)):
            first = other
    return compact(first)


def _varies_in(labels: Tensor, axis: int, ndim: int) -> bool:
    """Say whether an operand varies along an axis of the output (operands align at the last axis)."""
    own = axis - (ndim - labels.ndim)
    return own >= 0 and varies(labels, own)


def _is_broadcast(labels: Tensor, shape: tuple[int, ...], busy: list[bool]) -> bool:
    for axis, varied in enumerate(busy):
        own = axis - (len(shape) - labels.ndim)
        if varied and shape[axis] > 1 and (own < 0 or labels.shape[own] == 1):
            return True
    return False


def _is_left_of(labels: Tensor, carrier: Tensor) -> bool:
    """Say whether labels are those that a reduction left of a carrier: its own, at the first place of some axes."""
    if labels.ndim != carrier.ndim or not varying_axes(labels):
        return False
    first = carrier
    for axis, size in enumerate(labels.shape):
        if size == 1:
            first = first.narrow(axis, 0, 1)
    return first.shape == labels.shape and torch.equal(thin(first), thin(labels))


@rule(*FILLED)
def filled(call: Call) -> Any:
    """A state made in forward() (of a recurrent cell, before its first step) has channels: those that it meets."""
    axis = state_axis(call.node)
    if axis is None or call.shape[axis] == 1:
        return call.constant()
    if call.choose("channels of a state") == "freeze":
        return call.pinned(SIZE_IN_FORWARD)
    channels = call.fresh(call.shape[axis])
    call.sized(channels)
    return call.along(channels, axis)


@rule(*MAKES)
def makes(call: Call) -> Any:
    """A tensor made here belongs to no channel."""
    return call.constant()
