"""The dense network of a run: built by name, with as many outputs as the data has classes, with weights if given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperprune.errors import ModelError
from hyperprune.loading import load_model
from hyperprune.training.data import DIGITS, DIGITS_SIZE, Preparation
from hyperprune.training.settings import TrainingSettings
from hyperprune.verify import eval_mode

OWN_FACTORY = "Pass a factory that builds it for as many classes: package.module:factory."
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DenseNetwork:
    """A network before pruning, and where its weights come from.

    Attributes:
        trained: every weight comes from a file or the library.
        story: the same in words, for the user.
        recipe: a line of Python that builds it.
    """

    model: nn.Module
    trained: bool
    story: str
    recipe: str


def load_network(settings: TrainingSettings) -> tuple[nn.Module, Preparation]:
    """Build the network that the settings name, as its library makes it, and say how it wants its images.

    Raises:
        ModelError: the network is unknown, or has no weights to load.
    """
    try:
        loaded = load_model(settings.model, settings.pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ModelError) or not settings.pretrained:
            raise
        raise ModelError(f"the weights of {settings.model} cannot be had ({error}). Pass --weights FILE.") from error
    taught: Mapping[str, Any] = getattr(loaded.model, "default_cfg", None) or {}
    usual = DIGITS_SIZE if settings.data == DIGITS else loaded.input_size
    preparation = Preparation(
        size=settings.input_size or usual,
        mean=tuple(taught.get("mean", IMAGENET_MEAN)),
        std=tuple(taught.get("std", IMAGENET_STD)),
        crop=float(taught.get("crop_pct") or 0.875),
        interpolation=str(taught.get("interpolation") or "bilinear"),
    )
    return loaded.model, preparation


def fit_to_data(model: nn.Module, settings: TrainingSettings, size: tuple[int, ...], classes: int) -> DenseNetwork:
    """Give the network one output per class, and the weights of ``settings.weights``; in place.

    Raises:
        ModelError: it does not run on inputs of this size, its head is not found, or the weights do not fit.
    """
    outputs = _outputs(model, size)
    new_head = outputs != classes
    recipe = f'"{settings.model}"'
    story = "with the library's weights" if settings.pretrained else "with random weights"
    head = ""
    if new_head:
        head = _replace_head_(model, outputs, classes)
        if _outputs(model, size) != classes:
            raise ModelError(f"{type(model).__name__}: a new {head} did not give it {classes} outputs. {OWN_FACTORY}")
        recipe = _with_classes(settings.model, classes)
        story += f"; its {outputs} outputs became {classes}, one per class, so {head} is new"
    if settings.weights is not None:
        fresh = load_weights_(model, settings.weights, head)
        story = f"with the weights of {settings.weights}" + (f"; {head} is new" if fresh else "")
        return DenseNetwork(model, not fresh, story, recipe)
    return DenseNetwork(model, settings.pretrained and not new_head, story, recipe)


def _with_classes(spec: str, classes: int) -> str:
    """Return what ``load_pruned`` needs for the same network with another number of classes."""
    name, *words = spec.split(",")
    if not name.startswith(("timm/", "torchvision/")):
        return f"your {spec} with {classes} classes"
    others = [word for word in words if word.partition("=")[0].strip() != "num_classes"]
    return f'"{",".join([name, *others, f"num_classes={classes}"])}"'


def load_weights_(model: nn.Module, path: str, head: str) -> bool:
    """Load a safetensors file in place; return whether the head stays new, for it has other classes there.

    Raises:
        ModelError: no such file, not safetensors, or weights of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if Path(path).suffix != ".safetensors":
        raise ModelError(f"{path}: weights are read from .safetensors files. Save yours with safetensors.torch.")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights in {path} cannot be read: {error}") from error
    own = model.state_dict()
    other = {name for name in own.keys() & found.keys() if own[name].shape != found[name].shape}
    fresh = bool(other) and bool(head) and all(name.startswith(f"{head}.") for name in other)
    strange = sorted((own.keys() ^ found.keys()) | (set() if fresh else other))
    if strange:
        names = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise ModelError(f"the weights in {path} are of another network: {names} do not fit {type(model).__name__}.")
    model.load_state_dict(own | {name: value for name, value in found.items() if name not in other})
    return fresh


@torch.no_grad()
def _outputs(model: nn.Module, size: tuple[int, ...]) -> int:
    shown = "x".join(map(str, size))
    try:
        with eval_mode(model):
            answer = model(torch.zeros(1, *size))
    except Exception as error:  # whatever the user's forward raises
        raise ModelError(
            f"{type(model).__name__} fails on an image of {shown}: {str(error).rstrip('.')}. "
            "Pass the size it wants with --input CxHxW."
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        raise ModelError(f"{type(model).__name__} does not classify: its answer to one image is no row of logits.")
    return answer.shape[1]


def _replace_head_(model: nn.Module, outputs: int, classes: int) -> str:
    """Make the last layer anew with one output per class, in place, and return its name."""
    candidates = {name: layer for name, layer in model.named_modules() if _width(layer) == outputs}
    if not candidates:
        raise ModelError(
            f"{type(model).__name__} has {outputs} outputs, the data {classes} classes, and no last layer was found "
            f"to replace. {OWN_FACTORY}"
        )
    name, layer = list(candidates.items())[-1]
    reset: Any = getattr(model, "reset_classifier", None)
    if reset is not None:  # timm's own way, which keeps its records right
        reset(classes)
        return name
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, _like(layer, classes))
    return name


def _like(layer: nn.Module, classes: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, classes, layer.bias is not None)
    assert isinstance(layer, nn.Conv2d)
    return nn.Conv2d(layer.in_channels, classes, 1, bias=layer.bias is not None)


def _width(layer: nn.Module) -> int:
    """Return the number of outputs of a layer that may be a head, else 0."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        return layer.out_channels
    return 0
