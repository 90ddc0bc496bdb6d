"""What an export found: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperprune.verify import Proof

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxRun:
    """One run of the file in ONNX Runtime beside PyTorch.

    Attributes:
        shapes: of the input tensors.
        proof: how far the outputs differ.
    """

    shapes: tuple[tuple[int, ...], ...]
    proof: Proof


@dataclass(frozen=True)
class OnnxProof:
    """What was written, and how it was checked; ``print`` it.

    Attributes:
        path: the file.
        size: its bytes.
        opset: version of ONNX's operators it is written in.
        inputs: shape of every input by name; a free axis is a name, such as ``"batch"``.
        outputs: the same of every output.
        runs: what ONNX Runtime computed, at every size tried.
        metadata: what the file says about itself.

    Example:
        >>> run = OnnxRun(((1, 3, 8, 8),), Proof(2e-7, 1e-4, 1))
        >>> file = Path("slim.onnx")
        >>> print(OnnxProof(file, 1_200_000, 18, {"x": ("batch", 3, 8, 8)}, {"y": ("batch", 2)}, (run,), {}))
        slim.onnx: one file of 1.2 MB, opset 18, accepted by onnx.checker
          ONNX Runtime on 1 x 3 x 8 x 8: relative error 2.0e-07 <= 1e-04 over 1 outputs
    """

    path: Path
    size: int
    opset: int
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    runs: tuple[OnnxRun, ...]
    metadata: Mapping[str, str]

    @property
    def relative_error(self) -> float:
        """The largest relative error of all runs."""
        return max(run.proof.relative_error for run in self.runs)

    def __str__(self) -> str:
        lines = [f"{self.path}: one file of {self.size / 1e6:.1f} MB, opset {self.opset}, accepted by onnx.checker"]
        lines += [f"  ONNX Runtime on {written(run.shapes)}: {run.proof}" for run in self.runs]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "opset": self.opset,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "relative_error": self.relative_error,
            "runs": [
                {
                    "shapes": [list(shape) for shape in run.shapes],
                    "relative_error": run.proof.relative_error,
                    "tolerance": run.proof.tolerance,
                }
                for run in self.runs
            ],
            "metadata": dict(self.metadata),
        }


def written(shapes: tuple[Shape, ...]) -> str:
    """Write shapes as people do.

    Example:
        >>> written((("batch", 3, 224, 224), (1,)))
        'batch x 3 x 224 x 224, 1'
    """
    return ", ".join(" x ".join(map(str, shape)) if shape else "scalar" for shape in shapes)
