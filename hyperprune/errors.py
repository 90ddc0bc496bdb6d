"""Every error hyperprune raises, in one small tree.

Each message says what is wrong, where (layer, operation, source line when there is one), and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable


def listed(items: Iterable[object]) -> str:
    """Return things in words, sorted, for a message.

    Example:
        >>> listed({"cuda:0", "cpu"})
        'cpu, cuda:0'
    """
    return ", ".join(sorted(map(str, items)))


class HyperpruneError(Exception):
    """Base of every error raised on purpose by hyperprune.

    Example:
        >>> issubclass(BudgetError, HyperpruneError)
        True
    """


class ModelError(HyperpruneError, ValueError):
    """The model, or what was passed as a model, cannot be hyperized (wrapped, parametrized, not a module)."""


class InputsError(HyperpruneError, ValueError):
    """The example inputs do not fit: wrong type, wrong device, or the model fails on them."""


class TraceError(HyperpruneError, RuntimeError):
    """The model runs, but ``torch.export`` cannot turn the run into a graph."""


class NothingPrunableError(HyperpruneError, ValueError):
    """The analysis found no channel that may go. The message lists what held the channels back."""


class BudgetError(HyperpruneError, ValueError):
    """The budget is malformed, above the dense cost, or below what the floors allow."""


class UnknownNameError(HyperpruneError, KeyError):
    """A layer, a group or a row was asked for that is not there."""

    def __str__(self) -> str:
        """Return the message as it is; ``KeyError`` would put it into quotes."""
        return str(self.args[0])


class SearchError(HyperpruneError, RuntimeError):
    """The search was set up or driven wrongly, or met latents that are not finite."""


class ProofError(HyperpruneError, RuntimeError):
    """The slim model does not equal the searched one within the tolerance."""


class SlimmingError(HyperpruneError, RuntimeError):
    """The plan does not fit the model it is applied to."""


class FileError(HyperpruneError, OSError):
    """A file cannot be read or written; what stood there before is intact."""


class SavingError(HyperpruneError, TypeError):
    """Something is pickled that is to be saved by its state."""


class CheckpointError(HyperpruneError, ValueError):
    """A checkpoint is missing, damaged, foreign, or of another network than the one it is loaded into."""


class RecoveryError(HyperpruneError, ValueError):
    """Distillation or recalibration was set up wrongly: no tensor, other shapes or devices, no batch."""


class MissingLibraryError(HyperpruneError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


class DataError(HyperpruneError, ValueError):
    """The images to train on are missing, unreadable, or do not fit the model."""


class TrainingError(HyperpruneError, RuntimeError):
    """A run of ``hyperprune prune`` cannot start, go on, or has diverged."""


class OnnxError(HyperpruneError, RuntimeError):
    """The network cannot be written as ONNX, or ONNX Runtime computes something else; nothing was written."""


class LatencyError(HyperpruneError, RuntimeError):
    """No runtime could run the networks that were to be timed."""
