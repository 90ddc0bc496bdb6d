"""Tables that modules hold as plain attributes (positions in sines and cosines, say) become buffers."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from types import CodeType

from torch import Tensor, nn

from hyperprune.codes import codes_of

INIT = re.compile("^__init__$")


def tables_to_buffers_(model: nn.Module) -> nn.Module:
    """Make buffers of the tensors that modules hold as plain attributes, in place, and return the model.

    A stream that meets such a table can lose channels then. The buffers are no part of ``state_dict``, as the
    attributes were none. What code outside of ``__init__`` may set is no table but a cache, and stays as it is.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> model.scale = torch.ones(2)
        >>> dict(tables_to_buffers_(model).named_buffers())
        {'scale': tensor([1., 1.])}
    """
    found = [(module, name) for module in model.modules() for name, value in vars(module).items() if _is_table(value)]
    caches = {name for code in codes_of(model, INIT) for name in _set_by(code)} if found else set()
    for module, name in found:
        if name not in caches:
            module.register_buffer(name, vars(module).pop(name), persistent=False)
    return model


def _is_table(value: object) -> bool:
    return type(value) is Tensor and value.is_floating_point() and value.ndim > 0 and not value.requires_grad


def _set_by(code: CodeType) -> Iterator[str]:
    """Yield the names of the attributes that some code sets, of any object; names in quotes may be set by setattr."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")
    if "setattr" in code.co_names:
        yield from (value for value in code.co_consts if isinstance(value, str))
