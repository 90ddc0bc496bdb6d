"""hyperprune: make trained networks slim.

The way of a model through the package: trace -> labels -> coupling -> latents and generated weights -> search ->
plan -> slim -> proof.
"""

from hyperprune.budget import Budget
from hyperprune.checkpoint import load_pruned, save_pruned
from hyperprune.coupling import CouplingMap
from hyperprune.errors import HyperpruneError
from hyperprune.export import export_pruned, prune
from hyperprune.generators import DHP, Lean
from hyperprune.hyper import HyperModel, hyperize
from hyperprune.metering import fit_latency
from hyperprune.onnx_export import OnnxProof, export_onnx
from hyperprune.plan import WidthPlan
from hyperprune.program import save_program
from hyperprune.recovery import Distillation, recalibrate_
from hyperprune.reporting import PruningReport, report
from hyperprune.search import Search, SearchProgress
from hyperprune.sparsifiers import (
    BinaryGates,
    Fisher,
    GroupProximal,
    HardConcrete,
    L1Proximal,
    Magnitude,
    PublishedL1,
    Random,
    Taylor,
    Uniform,
)
from hyperprune.transfer import transfer_optimizer

__version__ = "0.1.0"

__all__ = [
    "DHP",
    "BinaryGates",
    "Budget",
    "CouplingMap",
    "Distillation",
    "Fisher",
    "GroupProximal",
    "HardConcrete",
    "HyperModel",
    "HyperpruneError",
    "L1Proximal",
    "Lean",
    "Magnitude",
    "OnnxProof",
    "PruningReport",
    "PublishedL1",
    "Random",
    "Search",
    "SearchProgress",
    "Taylor",
    "Uniform",
    "WidthPlan",
    "export_onnx",
    "export_pruned",
    "fit_latency",
    "hyperize",
    "load_pruned",
    "prune",
    "recalibrate_",
    "report",
    "save_program",
    "save_pruned",
    "transfer_optimizer",
]
