"""What torch.export leaves behind in the caches of the user's code: tensors without data.

A function that remembers its results (``functools.lru_cache``, a dict of tables) and is called for the first time
while torch.export follows the forward pass remembers a fake tensor, and hands it out ever after.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

DEPTH = 4  # how far inside a cache its values lie
MANY = 10_000  # entries from which a container is data, not a cache of tables

_Cache = type(functools.lru_cache(lambda: None))


def forget_fakes_(model: nn.Module) -> None:
    """Take fake tensors out of the caches that the classes of a model can see, in place.

    These are the functions with a ``functools`` cache and the dicts in the modules and classes where its layers are
    defined. Nothing else is forgotten.

    Example:
        >>> forget_fakes_(nn.Linear(2, 2))
    """
    for cache in _caches(model):
        if isinstance(cache, _Cache):
            if _holds_fakes(cache):
                cache.cache_clear()
        else:
            for key in [key for key, value in cache.items() if isinstance(value, FakeTensor) or _holds_fakes(value)]:
                del cache[key]


def _caches(model: nn.Module) -> Iterator[Any]:
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    homes = {kind.__module__ for kind in classes if not kind.__module__.startswith(("torch.", "builtins"))}
    spaces: list[Mapping[str, Any]] = [vars(sys.modules[home]) for home in homes if home in sys.modules]
    spaces += [vars(kind) for kind in classes if kind.__module__ in homes]
    for space in spaces:
        for name, value in list(space.items()):
            if isinstance(value, _Cache) or (type(value) is dict and not name.startswith("__")):
                yield value


def _holds_fakes(cache: Any) -> bool:
    """Look for fake tensors inside containers, a few levels deep."""
    level = [cache]
    for _ in range(DEPTH):
        level = [inner for item in level if _contains(item) for inner in gc.get_referents(item)]
        if any(isinstance(item, FakeTensor) for item in level):
            return True
    return False


def _contains(item: Any) -> bool:
    if isinstance(item, (dict, list, tuple)):
        return len(item) < MANY
    return isinstance(item, _Cache) or type(item).__name__ == "_lru_list_elem"
