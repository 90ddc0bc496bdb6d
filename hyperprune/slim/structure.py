"""The sizes that torch's own layers keep as attributes, read back from their sliced tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hyperprune.plan import Slice

MADE_OF = ("weight_orig", "weight_v")  # hooks make the weight of these: torch.nn.utils.prune, old weight norm


def adjust_(module: nn.Module, rows: Slice | None = None) -> None:
    """Bring the size attributes of a standard layer (or a subclass of one) into line with its tensors.

    Args:
        rows: what stays along the first axis of its weight; it tells which groups of a convolution or a group norm
            still live. Of multi-head attention, what stays along its inner width; it tells which heads still live.
    """
    if isinstance(module, _ConvNd):
        _convolution(module, rows)
    if isinstance(module, nn.GroupNorm):
        _group_norm(module, rows)
    if isinstance(module, nn.MultiheadAttention):
        _multihead(module, rows)
    for kind, adjust in _TABLE.items():
        if isinstance(module, kind):
            adjust(module)


def is_standard(module: nn.Module) -> bool:
    """Say whether ``adjust_`` takes care of this module's sizes."""
    return isinstance(module, (_ConvNd, nn.GroupNorm, nn.MultiheadAttention, *_TABLE))


def is_bare(module: nn.Module) -> bool:
    """Say whether a norm has no tensors from which ``adjust_`` could read its size."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)) and not [
        *module.parameters(),
        *module.buffers(),
    ]


def _shape(layer: Any) -> torch.Size:
    """Return the shape of a weight, or of the parameter of which a hook makes it at each call."""
    made_of = (layer._parameters.get(name) for name in MADE_OF)
    return next((parameter.shape for parameter in made_of if parameter is not None), layer.weight.shape)


def _convolution(layer: Any, rows: Slice | None) -> None:
    first, second = _shape(layer)[:2]
    layer.groups = _living_groups(layer.groups, rows)
    if layer.transposed:
        layer.in_channels, layer.out_channels = first, second * layer.groups
    else:
        layer.out_channels, layer.in_channels = first, second * layer.groups


def _linear(layer: Any) -> None:
    layer.out_features, layer.in_features = _shape(layer)


def _norm(layer: Any) -> None:
    vectors = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    layer.num_features = next((len(v) for v in vectors if v is not None), layer.num_features)


def _prelu(layer: Any) -> None:
    layer.num_parameters = len(layer.weight)


def _layer_norm(layer: Any) -> None:
    if layer.weight is not None:
        layer.normalized_shape = type(layer.normalized_shape)(layer.weight.shape)


def _group_norm(layer: Any, rows: Slice | None) -> None:
    layer.num_groups = _living_groups(layer.num_groups, rows)
    if layer.weight is not None:
        layer.num_channels = len(layer.weight)


def _living_groups(groups: int, rows: Slice | None) -> int:
    """A group lives as long as one of its rows does: whole groups go, or every group loses the same rows."""
    return groups if groups == 1 or rows is None else len({at * groups // rows.size for at in rows.kept})


def _multihead(layer: Any, rows: Slice | None) -> None:
    """A head lives as long as one of its channels does: whole heads go, or every head gets thinner."""
    layer.embed_dim = layer.out_proj.weight.shape[0]
    if rows is not None:
        layer.num_heads = len({at // layer.head_dim for at in rows.kept})
        layer.head_dim = layer.embed_dim // layer.num_heads
    if layer._qkv_same_embed_dim:
        layer.kdim = layer.vdim = layer.embed_dim
    else:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]


def adjust_transformers_(model: nn.Module) -> None:
    """Bring what torch's transformers note of their layers into line: ``d_model``, and whether sequences are packed.

    Encoders pack padded sequences for even numbers of heads only; a slim one with an odd number works on them as they
    are. Without gradients, packing leaves zeros where the padding is; otherwise there are numbers that nobody reads.
    """
    for module in model.modules():
        heads = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
        if isinstance(module, nn.Transformer) and heads:
            module.d_model = heads[0].embed_dim
        if isinstance(module, nn.TransformerEncoder) and any(part.num_heads % 2 for part in heads):
            module.use_nested_tensor = False


def _recurrent(layer: Any) -> None:
    layer.input_size = layer.weight_ih_l0.shape[1]
    layer._init_flat_weights()


def _recurrent_cell(layer: Any) -> None:
    layer.input_size = layer.weight_ih.shape[1]


_TABLE: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Linear: _linear,
    _NormBase: _norm,
    nn.PReLU: _prelu,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
