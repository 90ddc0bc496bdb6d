"""What pruning did to a network: numbers, tables, and one page with pictures.

``report`` compares a dense network with its slim one; ``comparison_table`` puts any number of networks side by side.
"""

from hyperprune.reporting.change import Change
from hyperprune.reporting.comparison import ModelReport, comparison_table, report_on
from hyperprune.reporting.data import Latency, LayerChange, PruningReport, StageChange
from hyperprune.reporting.latency import measure_latency
from hyperprune.reporting.measure import macs_by_module, report
from hyperprune.reporting.reading import latency_from_json, report_from_json

__all__ = [
    "Change",
    "Latency",
    "LayerChange",
    "ModelReport",
    "PruningReport",
    "StageChange",
    "comparison_table",
    "latency_from_json",
    "macs_by_module",
    "measure_latency",
    "report",
    "report_from_json",
    "report_on",
]
