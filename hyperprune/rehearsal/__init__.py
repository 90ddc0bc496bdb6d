"""Rehearsal: export once before anything is offered as prunable, and find what to blame when that fails."""

from hyperprune.rehearsal.choices import Choices, with_spared
from hyperprune.rehearsal.first import first_readings
from hyperprune.rehearsal.offering import for_other_sizes, least_tied

__all__ = ["Choices", "first_readings", "for_other_sizes", "least_tied", "with_spared"]
