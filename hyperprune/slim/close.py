"""Closed residual branches: their layers go, and what they add stays a constant.

The user's ``forward`` calls the layers as before, so something must stand where they stood. A branch starts with zeros
of the size of what it is given (something new: an activation in place must not reach what runs past the branch), hands
them on, and ends with the last layer's bias, or zeros.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hyperprune.errors import SlimmingError
from hyperprune.plan import Closing


class Start(nn.Module):
    """In place of the first layer of a closed branch: zeros.

    Example:
        >>> Start()(torch.ones(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the shape of ``x``."""
        return torch.zeros_like(x)


class End(nn.Module):
    """In place of the last layer of a closed branch: its bias at every position, or zeros.

    Args:
        channels: how many the layer makes.
        axis: where they lie.
        bias: of the layer, shape ``[channels]``.

    Example:
        >>> End(3, 1, None)(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, channels: int, axis: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.channels = channels
        self.axis = axis
        self.register_parameter("bias", bias)
        self.bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Return the constant, with the sizes of ``x`` but for the channels."""
        shape = list(x.shape)
        shape[self.axis] = self.channels
        if self.bias is None:
            return x.new_zeros(shape)
        view = [1] * x.ndim
        view[self.axis] = self.channels
        return self.bias.to(x.dtype).view(view).expand(shape).clone()

    def extra_repr(self) -> str:
        return f"{self.channels}, axis={self.axis}, bias={self.bias is not None}"


def close_(model: nn.Module, closings: Iterable[Closing]) -> None:
    """Replace the layers of closed branches, in place.

    Raises:
        SlimmingError: the model has no such layer; nothing has been changed.
    """
    closings = tuple(closings)
    for closing in closings:
        try:
            model.get_submodule(closing.module)
        except AttributeError:
            raise SlimmingError(
                f"the plan closes {closing.module!r}, which {type(model).__name__} does not have. "
                "The plan belongs to another architecture."
            ) from None
    for closing in closings:
        layer = model.get_submodule(closing.module)
        model.set_submodule(closing.module, _instead(layer, closing).train(layer.training))


def _instead(layer: nn.Module, closing: Closing) -> nn.Module:
    if closing.role == "ends":
        bias = getattr(layer, "bias", None)
        return End(closing.channels, closing.axis, bias if isinstance(bias, nn.Parameter) else None)
    return Start() if closing.role == "starts" else nn.Identity()
