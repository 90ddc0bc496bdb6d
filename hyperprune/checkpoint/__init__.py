"""Checkpoints of slim networks: weights and width plans in one safetensors file, without pickle."""

from hyperprune.checkpoint.document import Document
from hyperprune.checkpoint.load import load_pruned
from hyperprune.checkpoint.save import save_pruned
from hyperprune.checkpoint.storage import read_document

__all__ = ["Document", "load_pruned", "read_document", "save_pruned"]
