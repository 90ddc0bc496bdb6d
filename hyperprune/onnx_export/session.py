"""An ONNX file in ONNX Runtime: opened quietly, fed with tensors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperprune.errors import MissingLibraryError, OnnxError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


class OnnxSession:
    """One open file.

    Args:
        path: an ``.onnx`` file.
        threads: threads within one operation; all cores by default.
        device: ``"cpu"``, or ``"cuda"`` with the package onnxruntime-gpu.

    Attributes:
        inputs: names of what the graph takes, in order.
        provider: ONNX Runtime's name of what runs the graph.

    Raises:
        MissingLibraryError: ONNX Runtime is not installed, or has no provider for the device.
        OnnxError: ONNX Runtime refuses the file.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, device: str = "cpu") -> None:
        runtime = onnx_library("onnxruntime")
        self.provider = _provider(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Sessions that take turns would otherwise take each other's cores: idle threads spin by default.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[self.provider])
        except Exception as error:  # its errors share no base
            raise OnnxError(f"ONNX Runtime refuses {path}: {error}") from error
        self.inputs = tuple(item.name for item in self._session.get_inputs())

    def feed(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """Return numpy arrays under the names of the graph's inputs.

        Raises:
            OnnxError: more or fewer tensors than inputs.
        """
        if len(tensors) != len(self.inputs):
            raise OnnxError(
                f"the model gets {len(tensors)} tensors, its graph takes {len(self.inputs)}: {', '.join(self.inputs)}. "
                "Pass every tensor once, and only tensors that forward() reads."
            )
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(self.inputs, tensors, strict=True)}

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """Run the graph and return numpy arrays, one for each output."""
        return self._session.run(None, feed)

    def outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the graph on tensors and return tensors.

        Raises:
            OnnxError: ONNX Runtime fails on them.
        """
        feed = self.feed(tensors)
        try:
            return [torch.from_numpy(array) for array in self.run(feed)]
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise OnnxError(f"ONNX Runtime fails on inputs of shapes {shapes}: {error}") from error


def onnx_library(name: str) -> Any:
    """Import onnx, onnxruntime or onnxscript.

    Raises:
        MissingLibraryError: it is not installed; the message says what to install.

    Example:
        >>> onnx_library("onnx").__name__
        'onnx'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingLibraryError(f"{name} is not installed: pip install 'hyperprune[onnx]'") from error


def _provider(runtime: Any, device: str) -> str:
    if device not in PROVIDERS:
        raise OnnxError(f"device must be one of {', '.join(map(repr, PROVIDERS))}, not {device!r}.")
    provider = PROVIDERS[device]
    if provider not in runtime.get_available_providers():
        raise MissingLibraryError(f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu")
    return provider
