"""A network as one ONNX file: axes chosen, graph translated, file checked, run and compared."""

from hyperprune.onnx_export.export import export_onnx
from hyperprune.onnx_export.graph import OPSET
from hyperprune.onnx_export.proof import OnnxProof, OnnxRun
from hyperprune.onnx_export.session import OnnxSession, onnx_library

__all__ = ["OPSET", "OnnxProof", "OnnxRun", "OnnxSession", "export_onnx", "onnx_library"]
