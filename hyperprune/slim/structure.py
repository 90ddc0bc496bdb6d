"""The sizes that torch's own layers keep as attributes, read back from their sliced tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def adjust_(module: nn.Module) -> None:
    """Bring the size attributes of a standard layer (or a subclass of one) into line with its tensors."""
    for kind, adjust in _TABLE.items():
        if isinstance(module, kind):
            adjust(module)


def is_standard(module: nn.Module) -> bool:
    """Say whether ``adjust_`` takes care of this module's sizes."""
    return isinstance(module, tuple(_TABLE))


def _convolution(layer: Any) -> None:
    """Whole groups go, so the number of channels in one group is what it was."""
    first = layer.weight.shape[0]
    if layer.transposed:
        if layer.groups > 1:
            layer.groups = first // (layer.in_channels // layer.groups)
        layer.in_channels, layer.out_channels = first, layer.weight.shape[1] * layer.groups
    else:
        if layer.groups > 1:
            layer.groups = first // (layer.out_channels // layer.groups)
        layer.out_channels, layer.in_channels = first, layer.weight.shape[1] * layer.groups


def _linear(layer: Any) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def _norm(layer: Any) -> None:
    vectors = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    layer.num_features = next((len(v) for v in vectors if v is not None), layer.num_features)


def _prelu(layer: Any) -> None:
    layer.num_parameters = len(layer.weight)


def _layer_norm(layer: Any) -> None:
    if layer.weight is not None and layer.weight.ndim == 1:
        layer.normalized_shape = type(layer.normalized_shape)(layer.weight.shape)


def _group_norm(layer: Any) -> None:
    if layer.weight is not None:
        layer.num_channels = len(layer.weight)


_TABLE: dict[type[nn.Module], Callable[[Any], None]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _NormBase: _norm,
    nn.PReLU: _prelu,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
