"""What an ONNX file says about itself, in ``metadata_props``: strings under names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from hyperprune.cost import count_with_fvcore
from hyperprune.errors import OnnxError
from hyperprune.plan import WidthPlan, plans_of
from hyperprune.trace import ExampleInputs

PREFIX = "hyperprune."
WIDTHS = ("out_channels", "out_features", "embedding_dim")  # where layers of torch's say how many channels they make


def notes_on(network: nn.Module, inputs: ExampleInputs, users: Mapping[Any, Any]) -> dict[str, str]:
    """Return the user's notes and ours: version, MACs and parameters; of a slim network also widths and plans' digest.

    Raises:
        OnnxError: a note of the user's is no string, or has a name of ours.
    """
    if not isinstance(users, Mapping):
        raise OnnxError(f"metadata must be strings under strings, not {type(users).__name__}.")
    for name, text in users.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise OnnxError(f"metadata must be strings under strings, not {name!r}: {text!r}. Write str(...) or JSON.")
        if name.startswith(PREFIX):
            raise OnnxError(f"metadata {name!r}: names that begin with {PREFIX!r} are hyperprune's own.")
    ours = {"version": version("hyperprune"), "params": str(sum(p.numel() for p in network.parameters()))}
    ours |= _macs(network, inputs) | _plans(network, plans_of(network))
    return dict(users) | {PREFIX + name: text for name, text in ours.items()}


def _macs(network: nn.Module, inputs: ExampleInputs) -> dict[str, str]:
    """Count multiply-adds of one forward pass, where fvcore can follow the network at all."""
    if inputs.kwargs:
        return {}  # fvcore takes positional arguments only
    try:
        return {"macs": str(count_with_fvcore(network, inputs.args).macs)}
    except Exception:  # a note is no reason to refuse an export
        return {}


def _plans(network: nn.Module, plans: tuple[WidthPlan, ...]) -> dict[str, str]:
    if not plans:
        return {}
    text = json.dumps([plan.to_json() for plan in plans], sort_keys=True)
    return {"widths": json.dumps(_widths(network, plans)), "plans.sha256": hashlib.sha256(text.encode()).hexdigest()}


def _widths(network: nn.Module, plans: tuple[WidthPlan, ...]) -> dict[str, int]:
    """Return how many output channels each slimmed layer of torch's has now."""
    layers = dict(network.named_modules())
    found: dict[str, int] = {}
    for cut in (cut for plan in plans for cut in plan.slices if cut.tensor.endswith(".weight")):
        path = cut.tensor.removesuffix(".weight")
        layer = layers.get(path)
        if layer is not None and cut.axis == int(isinstance(layer, (nn.Embedding, _ConvTransposeNd))):
            found.update((path, vars(layer)[name]) for name in WIDTHS if name in vars(layer))
    return found
