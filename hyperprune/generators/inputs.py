"""What layers with large weights do otherwise: gate the smaller factor, and keep no weight for the backward pass.

A layer computes the same from gated columns and from a gated input: (W * z) x = W (z * x). A deep layer has far fewer
inputs than weights unless the batch is large, so gating its input takes a fraction of the memory traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from hyperprune.generators.again import in_window, note
from hyperprune.generators.gate import gated

WORTH = 2**16  # elements of a weight from which time and memory saved are worth looking at its input
AS_LIGHT = 2  # an input was just written: twice the elements of a weight are read as fast, from the cache
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lighten_(module: nn.Module, weight: Tensor) -> None:
    """Let a parametrized layer with a large weight take the lighter way, in place; it goes with the parametrization."""
    if weight.numel() < WORTH:
        return
    kind = type(module)  # torch gives each parametrized layer a class of its own
    if "forward" not in vars(kind):
        setattr(kind, "forward", in_window(_on_smaller_factor(kind.forward)))  # noqa: B010


def _on_smaller_factor(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def chosen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gates = _gates_of_input(module, *args) if len(args) == 1 and not kwargs else None
        return forward(module, *args, **kwargs) if gates is None else _of_gated_input(module, args[0], gates)

    return chosen


def _gates_of_input(module: nn.Module, x: Any) -> Tensor | None:
    """Return the gates of a layer's columns, shape ``[channels]``, if gating the input is the same and takes less.

    Not in narrow types, where gates would lose digits that a weight in float32 keeps, and not for an input with gaps
    in memory, for which torch may choose other kernels than for its product.
    """
    if torch.compiler.is_compiling() or parametrize.type_before_parametrizations(module) not in LAYERS:
        return None
    made = _made(module)
    if made is None or len(made) != 1 or getattr(module, "groups", 1) != 1 or type(x) is not Tensor:
        return None
    if not made[0].by_columns:
        return None
    weight = made.original
    if x.numel() >= AS_LIGHT * weight.numel() or x.dtype != weight.dtype:
        return None
    return cast(Tensor, made[0].columns()) if _is_wide(x) and _is_dense(x) else None


def _made(module: nn.Module) -> Any:
    """Return the list of what makes the layer's weight; None if nothing does."""
    return getattr(module.parametrizations, "weight", None)


def _is_wide(x: Tensor) -> bool:
    kind = x.device.type
    narrowed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.dtype in (torch.float32, torch.float64) and not narrowed


def _is_dense(x: Tensor) -> bool:
    """Say whether a product with the gates has the strides of ``x``, axes of length 1 included: kernels go by them."""
    return _in_order(x) or (x.ndim > 2 and _in_order(x.movedim(1, -1)))


def _in_order(x: Tensor) -> bool:
    sizes = [max(size, 1) for size in x.shape]
    return list(x.stride()) == [prod(sizes[axis + 1 :]) for axis in range(x.ndim)]


def _of_gated_input(module: nn.Module, x: Tensor, gates: Tensor) -> Tensor:
    weight = _made(module).original
    behind = weight.ndim - 2  # axes behind the channels
    across = gates.to(x.dtype).view(*[1] * (x.ndim - behind - 1), -1, *[1] * behind)
    shown = note(gated(x, across), torch.mul, x, across)
    bias = cast("Tensor | None", module.bias)
    if isinstance(module, nn.Linear):
        return functional.linear(shown, weight, bias)
    return cast(Any, module)._conv_forward(shown, weight, bias)
