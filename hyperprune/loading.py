"""Models by name: ``timm/resnet50``, ``torchvision/resnet50,num_classes=5``, ``package.module:factory``."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        spec: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``; arguments of the builder follow after
            commas, as in ``timm/resnet50,num_classes=5`` or ``timm/vit_tiny_patch16_224,img_size=(64,64)``.
        pretrained: load the library's default weights (timm and torchvision download them).

    Raises:
        ModelError: the name is not understood, the library is not installed, it knows no such model, the model takes
            no such argument, or building it fails.

    Example:
        >>> load_model("torchvision/resnet18,num_classes=5").model.fc.out_features
        5
    """
    plain, *words = _parts(spec)
    arguments = arguments_of(spec)
    library, _, name = plain.partition("/")
    try:
        if library == "timm" and name:
            return _from_timm(name, pretrained, arguments)
        if library == "torchvision" and name:
            return _from_torchvision(name, pretrained, arguments)
        module, _, factory = plain.partition(":")
        if module and factory:
            return _from_factory(module, factory, pretrained, arguments)
    except TypeError as error:
        given = f" with {', '.join(words)}" if words else f" without arguments; write them as in {plain},num_classes=5"
        raise ModelError(f"{plain} cannot be built{given}: {error}") from error
    raise ModelError(
        f"{spec!r} names no model. Write timm/resnet50, torchvision/resnet50, or package.module:factory for your own."
    )


def arguments_of(spec: str) -> dict[str, Any]:
    """Return the builder's arguments in a name.

    Raises:
        ModelError: one is not written as ``name=value``.

    Example:
        >>> arguments_of("timm/vit_tiny_patch16_224,img_size=(64,64),global_pool=avg")
        {'img_size': (64, 64), 'global_pool': 'avg'}
    """
    return dict(_argument(word, spec) for word in _parts(spec)[1:])


def _parts(spec: str) -> list[str]:
    """Split at the commas that stand outside brackets.

    Example:
        >>> _parts("timm/vit_tiny_patch16_224,img_size=(64,64),depth=2")
        ['timm/vit_tiny_patch16_224', 'img_size=(64,64)', 'depth=2']
    """
    parts, depth = [""], 0
    for letter in spec:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _argument(word: str, spec: str) -> tuple[str, Any]:
    """Read ``num_classes=5``; a value that is no Python literal is a string."""
    name, equals, value = word.strip().partition("=")
    if not (name.isidentifier() and equals and value):
        raise ModelError(f"{word!r} in {spec!r} is no argument. Write them as in timm/resnet50,num_classes=5.")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _from_timm(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> LoadedModel:
    timm = _library("timm")
    stem = name.split(".")[0]
    if stem not in timm.list_models():
        raise ModelError(f"timm has no model {name!r}.{_nearest(stem, timm.list_models())}")
    model = _built(f"timm/{name}", lambda: timm.create_model(name, pretrained=pretrained, **arguments))
    return LoadedModel(model, _input_size((model.default_cfg or {}).get("input_size", DEFAULT_SIZE), arguments))


def _input_size(usual: Sequence[int], arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the size of an input, where arguments of timm's builders may say another one than usual."""
    size = arguments.get("img_size", tuple(usual[1:]))
    return (arguments.get("in_chans", usual[0]), *(size if isinstance(size, (tuple, list)) else (size, size)))


def _from_torchvision(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> LoadedModel:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}.{_nearest(name, models.list_models())}")
    parts: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if models.get_model_builder(name).__module__.startswith(
        ("torchvision.models.segmentation", "torchvision.models.detection")
    ):
        parts["weights_backbone"] = None
    size = 299 if name == "inception_v3" else 224
    model = _built(f"torchvision/{name}", lambda: models.get_model(name, **(parts | dict(arguments))))
    return LoadedModel(model, (3, size, size))


def _from_factory(module: str, factory: str, pretrained: bool, arguments: Mapping[str, Any]) -> LoadedModel:
    if pretrained:
        raise ModelError(f"{module}:{factory} brings what weights it has: pretrained is for timm's and torchvision's.")
    try:
        build = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{module}:{factory} cannot be imported: {error}") from error
    model = _built(f"{module}:{factory}", lambda: build(**arguments))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{module}:{factory} returned {type(model).__name__}, not a torch.nn.Module.")
    return LoadedModel(model, DEFAULT_SIZE)


def _built(name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except TypeError:
        raise  # the caller knows the words
    except Exception as error:  # whatever a constructor raises, or a download
        raise ModelError(f"{name} fails: {type(error).__name__}: {error}") from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name.split('.')[0]} is not installed: pip install 'hyperprune[timm]'") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(near)}?" if near else ""
