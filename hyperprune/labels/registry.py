"""One operation, one rule: the table from operator names to the functions that say what they do to labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyperprune.labels.call import Call

Rule = Callable[[Call], Any]

_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators named as torch names them: ``"aten::relu"``, ``"mylib::my_op"``.

    A name without a namespace means ``aten``. The function gets a ``Call`` and returns the label tensor of
    the output (a list of them where the operation returns several).

    Raises:
        ValueError: an operator already has a rule.

    Example:
        >>> @rule("mylib::swish_like")
        ... def _(call):
        ...     return call.labels(call.arg("x"))
        >>> "mylib::swish_like" in registered()
        True
        >>> _ = unregister("mylib::swish_like")
    """

    def register(function: Rule) -> Rule:
        for name in operators:
            qualified = name if "::" in name else f"aten::{name}"
            if qualified in _RULES:
                raise ValueError(f"{qualified} already has a rule: {_RULES[qualified].__name__}")
            _RULES[qualified] = function
        return function

    return register


def unregister(operator: str) -> Rule:
    """Take a rule out of the table and return it; its operation is unknown from now on."""
    return _RULES.pop(operator)


def find(operator: str) -> Rule | None:
    """Return the rule of an operator; an in-place operator (``relu_``) falls back on its plain twin."""
    found = _RULES.get(operator)
    if found is None and operator.endswith("_") and not operator.endswith("__"):
        return _RULES.get(operator[:-1])
    return found


def registered() -> tuple[str, ...]:
    """Return the names of all operators that have a rule, sorted."""
    return tuple(sorted(_RULES))
