"""What is offered as prunable: what has been exported once, read differently until every export holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

from torch import nn

from hyperprune.coupling import CouplingMap
from hyperprune.errors import InputsError, NothingPrunableError, TraceError
from hyperprune.rehearsal.choices import (
    Choices,
    Couple,
    after_fault,
    in_one_class,
    undecided,
    whatever_is_read,
    with_firm_attributes,
    with_first_readings,
    with_widths_of_own_layers,
    without_guilty,
)
from hyperprune.rehearsal.first import tied
from hyperprune.rehearsal.refusal import require_something
from hyperprune.rehearsal.rehearse import Fault, excerpts_for, fault_at_other_sizes, rehearse
from hyperprune.trace import ExampleInputs
from hyperprune.verify import Proof


def least_tied(
    base: nn.Module, inputs: ExampleInputs, couple: Couple, readings: list[tuple[Choices, CouplingMap]]
) -> CouplingMap:
    """Return what may be offered from the first of some readings that ties nothing too much, else from the best.

    Raises:
        NothingPrunableError: no reading leaves anything.
    """
    found: list[CouplingMap] = []
    refusals: list[NothingPrunableError] = []
    for choices, coupling in readings:
        try:
            found.append(_offered(base, inputs, couple, choices, coupling))
        except NothingPrunableError as error:
            refusals.append(error)
        if found and not tied(found[-1]):
            return found[-1]
    if not found:
        raise refusals[0]
    return min(found, key=tied)


def _offered(
    base: nn.Module, inputs: ExampleInputs, couple: Couple, choices: Choices, coupling: CouplingMap
) -> CouplingMap:
    """Return the map of what may be offered: rehearse, and read the calls differently until every export holds."""
    ways = excerpts_for(base, inputs)
    seen = next(ways)
    while True:
        require_something(coupling, base)
        outcome = rehearse(base, coupling, seen)
        if isinstance(outcome, Fault) and seen is not inputs:
            seen = next(ways)  # what fails on a part is no fault yet
            continue
        if isinstance(outcome, Proof):
            tried = undecided(choices, base, coupling, seen, couple)
            if tried is None:
                return with_first_readings(choices, base, coupling, seen, couple)
        else:
            tried = (
                with_widths_of_own_layers(choices, base, seen, outcome, couple)
                or with_firm_attributes(choices, base, coupling, seen, outcome, couple)
                or whatever_is_read(choices, base, coupling, seen, outcome, couple)
                or in_one_class(choices, base, coupling, seen, outcome, couple)
                or after_fault(choices, coupling, base, outcome)
                or without_guilty(choices, base, coupling, seen, outcome)
            )
        choices, coupling = tried, couple(tried)


def for_other_sizes(
    base: nn.Module, inputs: ExampleInputs, coupling: CouplingMap, traced_too: Callable[[ExampleInputs], CouplingMap]
) -> CouplingMap:
    """Return a map that holds for inputs of another size too, if that costs no unit; else the map, with a warning.

    Code that only runs there (positions that are interpolated) may hold sizes: then that run is traced as well.
    """
    found = fault_at_other_sizes(base, coupling, inputs)
    if found is None:
        return coupling
    other, fault = found
    with suppress(TraceError, InputsError, NothingPrunableError):
        wider = traced_too(other)
        if wider.units >= coupling.units and fault_at_other_sizes(base, wider, inputs) is None:
            return wider
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in other.tensors())
    warnings.warn(
        f"slim copies of {type(base).__name__} will be exact for inputs of the example's sizes, but not for others: at "
        f"{shapes}, {fault.what}. What forward() computes there from a width does not follow the width. Take sizes "
        "from tensors (x.shape[-1]), pass an example of the sizes that you will use, or keep= the layers it is about.",
        stacklevel=5,
    )
    return coupling
