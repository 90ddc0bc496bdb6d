"""What an ONNX file says about itself, in ``metadata_props``: strings under names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from hyperprune.cost import count_with_fvcore
from hyperprune.errors import OnnxError
from hyperprune.plan import WidthPlan, plans_of
from hyperprune.trace import ExampleInputs

PREFIX = "hyperprune."


def notes_on(network: nn.Module, inputs: ExampleInputs, users: Mapping[Any, Any]) -> dict[str, str]:
    """Return the user's notes and ours: version, MACs and parameters; of a slim network also widths and plans' digest.

    Raises:
        OnnxError: a note of the user's is no string, or has a name of ours.
    """
    for name, text in users.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise OnnxError(f"metadata must be strings under strings, not {name!r}: {text!r}. Write str(...) or JSON.")
        if name.startswith(PREFIX):
            raise OnnxError(f"metadata {name!r}: names that begin with {PREFIX!r} are hyperprune's own.")
    ours = {"version": version("hyperprune"), "params": str(sum(p.numel() for p in network.parameters()))}
    ours |= _macs(network, inputs) | _plans(plans_of(network))
    return dict(users) | {PREFIX + name: text for name, text in ours.items()}


def _macs(network: nn.Module, inputs: ExampleInputs) -> dict[str, str]:
    """Count multiply-adds of one forward pass, where fvcore can follow the network at all."""
    if inputs.kwargs:
        return {}  # fvcore takes positional arguments only
    try:
        return {"macs": str(count_with_fvcore(network, inputs.args).macs)}
    except Exception:  # a note is no reason to refuse an export
        return {}


def _plans(plans: tuple[WidthPlan, ...]) -> dict[str, str]:
    if not plans:
        return {}
    text = json.dumps([plan.to_json() for plan in plans], sort_keys=True)
    return {"widths": json.dumps(_widths(plans)), "plans.sha256": hashlib.sha256(text.encode()).hexdigest()}


def _widths(plans: tuple[WidthPlan, ...]) -> dict[str, Any]:
    """Return how many output channels each slimmed layer has now."""
    cuts = [cut for plan in plans for cut in plan.slices if cut.axis == 0 and cut.tensor.endswith(".weight")]
    return {cut.tensor.removesuffix(".weight"): len(cut.kept) for cut in cuts}
