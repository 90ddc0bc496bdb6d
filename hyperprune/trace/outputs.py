"""Outputs that torch.export takes: dicts in place of dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let a model hand out dicts where it hands out dataclasses, which torch.export does not know."""
    handle = model.register_forward_hook(lambda module, args, output: without_dataclasses(output))
    try:
        yield
    finally:
        handle.remove()


def without_dataclasses(output: Any) -> Any:
    """Return a model's output with dicts in place of dataclasses."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: without_dataclasses(getattr(output, field.name)) for field in dataclasses.fields(output)}
    if type(output) in (list, tuple):
        return type(output)(without_dataclasses(item) for item in output)
    if type(output) is dict:
        return {key: without_dataclasses(value) for key, value in output.items()}
    return output
