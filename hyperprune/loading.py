"""Models by name: ``timm/resnet50``, ``torchvision/resnet50``, ``package.module:factory``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hyperprune.errors import ModelError

DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class LoadedModel:
    """A model and the size of one input, channels first, without the batch."""

    model: nn.Module
    input_size: tuple[int, ...]


def load_model(spec: str, pretrained: bool = False) -> LoadedModel:
    """Build a model from its name.

    Args:
        spec: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory`` (called without arguments).
        pretrained: load the library's default weights (timm and torchvision download them).

    Raises:
        ModelError: the name is not understood, the library is not installed, or it knows no such model.
    """
    library, _, name = spec.partition("/")
    if library == "timm" and name:
        return _from_timm(name, pretrained)
    if library == "torchvision" and name:
        return _from_torchvision(name, pretrained)
    if ":" in spec:
        return _from_factory(*spec.split(":", 1))
    raise ModelError(
        f"{spec!r} names no model. Write timm/resnet50, torchvision/resnet50, or package.module:factory for your own."
    )


def _from_timm(name: str, pretrained: bool) -> LoadedModel:
    timm = _library("timm")
    stem = name.split(".")[0]
    if stem not in timm.list_models():
        raise ModelError(f"timm has no model {name!r}.{_nearest(stem, timm.list_models())}")
    model = timm.create_model(name, pretrained=pretrained)
    return LoadedModel(model, tuple((model.default_cfg or {}).get("input_size", DEFAULT_SIZE)))


def _from_torchvision(name: str, pretrained: bool) -> LoadedModel:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}.{_nearest(name, models.list_models())}")
    parts = {"weights": "DEFAULT" if pretrained else None}
    if models.get_model_builder(name).__module__.startswith(
        ("torchvision.models.segmentation", "torchvision.models.detection")
    ):
        parts["weights_backbone"] = None
    size = 299 if name == "inception_v3" else 224
    return LoadedModel(models.get_model(name, **parts), (3, size, size))


def _from_factory(module: str, factory: str) -> LoadedModel:
    try:
        model: Any = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{module}:{factory} cannot be imported: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{module}:{factory} returned {type(model).__name__}, not a torch.nn.Module.")
    return LoadedModel(model, DEFAULT_SIZE)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name.split('.')[0]} is not installed: pip install 'hyperprune[timm]'") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(near)}?" if near else ""
