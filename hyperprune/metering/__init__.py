"""Metering: resources that only a running network tells, activation memory and latency, as meters for the solver."""

from hyperprune.metering.activations import Activations, measure_activations
from hyperprune.metering.latency import fit_latency
from hyperprune.metering.priced import priced, settled
from hyperprune.metering.recorder import Storage, record

__all__ = ["Activations", "Storage", "fit_latency", "measure_activations", "priced", "record", "settled"]
