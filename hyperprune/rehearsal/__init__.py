"""Rehearsal: export once before anything is offered as prunable, and find what to blame when that fails."""

from hyperprune.rehearsal.choices import (
    Choices,
    Couple,
    after_fault,
    in_one_class,
    undecided,
    whatever_is_read,
    with_firm_attributes,
    with_first_readings,
    with_spared,
    with_widths_of_own_layers,
    without_guilty,
)
from hyperprune.rehearsal.first import first_readings, tied
from hyperprune.rehearsal.rehearse import Fault, excerpts_for, fault_at_other_sizes, rehearse

__all__ = [
    "Choices",
    "Couple",
    "Fault",
    "after_fault",
    "excerpts_for",
    "fault_at_other_sizes",
    "first_readings",
    "in_one_class",
    "rehearse",
    "tied",
    "undecided",
    "whatever_is_read",
    "with_firm_attributes",
    "with_first_readings",
    "with_spared",
    "with_widths_of_own_layers",
    "without_guilty",
]
