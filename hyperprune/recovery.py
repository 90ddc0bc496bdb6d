"""Recovery after pruning: learn from the dense network, and re-estimate batch norm's statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hyperprune.arguments import is_positive
from hyperprune.errors import RecoveryError, listed
from hyperprune.hyper import HyperModel
from hyperprune.trace import ExampleInputs, modes_kept
from hyperprune.verify import eval_mode

Model = TypeVar("Model", bound=nn.Module)


class Distillation:
    """Mixes a teacher's answers into the loss, one line in your loop.

    The loss becomes ``(1 - weight) * loss + weight * T^2 * KL(teacher || student)``, both softened by the
    temperature T; the factor T^2 keeps the gradients' size (Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015).

    The teacher runs in eval mode without gradients and is not changed: its mode comes back, its statistics stay. It
    is no submodule of anything, so no optimiser and no ``state_dict`` meets it.

    Args:
        teacher: the dense network you already have; ``hyperize`` left it as it was.
        temperature: T, above 0.
        weight: share of the teacher, 0 to 1.

    Raises:
        RecoveryError: no module, or a number out of range.

    Example:
        >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distill = Distillation(teacher)
        >>> x, labels = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
        >>> logits = student(x)
        >>> loss = distill(x, logits, F.cross_entropy(logits, labels))
        >>> loss.backward()
        >>> teacher.weight.grad is None
        True
    """

    def __init__(self, teacher: nn.Module, temperature: float = 4.0, weight: float = 0.4) -> None:
        if not isinstance(teacher, nn.Module):
            raise RecoveryError(f"the teacher must be a torch.nn.Module, not {type(teacher).__name__}.")
        if not is_positive(temperature):
            raise RecoveryError(f"the temperature must be a number above 0, not {temperature!r}.")
        if weight != 0 and not (is_positive(weight) and weight <= 1):
            raise RecoveryError(f"the teacher's weight must be a number between 0 and 1, not {weight!r}.")
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight

    def __repr__(self) -> str:
        teacher = type(self.teacher).__name__
        return f"Distillation({teacher}, temperature={self.temperature}, weight={self.weight})"

    def __call__(self, inputs: Any, logits: Tensor, loss: Tensor) -> Tensor:
        """Return the mixed loss, a scalar.

        Args:
            inputs: what the student was called with: a tensor, a tuple of positional or a dict of keyword arguments.
            logits: the student's answer, shape ``[N, classes, ...]`` as in torch's ``cross_entropy``.
            loss: the task's own loss, a scalar.

        Raises:
            RecoveryError: an answer is no tensor, the shapes differ, or the teacher is on another device.
        """
        arguments = ExampleInputs.of(inputs)
        self._check_student(logits)
        self._check_loss(loss)
        self._check_device(arguments)
        with torch.no_grad(), eval_mode(self.teacher):
            answer = arguments.call(self.teacher)
        self._check_answer(answer, logits)
        return torch.lerp(loss, self._divergence(logits, answer).to(loss.dtype), self.weight)

    def _divergence(self, logits: Tensor, answer: Tensor) -> Tensor:
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        teacher = F.log_softmax(answer.float() / self.temperature, dim=1)
        each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return each.mean() * self.temperature**2

    def _check_student(self, logits: object) -> None:
        if not isinstance(logits, Tensor) or logits.ndim < 2:
            kind = f"a tensor of shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise RecoveryError(
                f"distillation needs the student's logits as a tensor [N, classes, ...], not {kind}. "
                "Pass the logits themselves, for instance output.logits."
            )

    def _check_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"one of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise RecoveryError(f"the task's loss must be a tensor with one number, not {kind}: reduce it first.")

    def _check_device(self, arguments: ExampleInputs) -> None:
        homes = {tensor.device for tensor in chain(self.teacher.parameters(), self.teacher.buffers())}
        strangers = {tensor.device for tensor in arguments.tensors()} - homes
        if homes and strangers:
            raise RecoveryError(
                f"the inputs are on {listed(strangers)}, the teacher on {listed(homes)}. The teacher is not moved "
                "for you: call teacher.to(device) once, before the loop."
            )

    def _check_answer(self, answer: object, logits: Tensor) -> None:
        if not isinstance(answer, Tensor):
            raise RecoveryError(
                f"the teacher answers with {type(answer).__name__}, not with a tensor of logits. Wrap it in a small "
                "module whose forward returns the logits."
            )
        if answer.shape != logits.shape:
            raise RecoveryError(
                f"the teacher's logits have shape {list(answer.shape)}, the student's {list(logits.shape)}. "
                "Both need the same classes and the same inputs."
            )


def recalibrate_(model: Model, batches: Iterable[Any]) -> Model:
    """Re-estimate batch norm's running statistics over some batches, in place, and return the model.

    Each layer gets the plain average over the batches (as with ``momentum=None``) instead of what is left of the
    statistics of other weights, and counts these batches alone. Only batch norm runs in train mode, so dropout is
    off; no gradients, no other change; modes and momenta come back. Without batch norm, nothing happens. A layer that
    no batch reaches keeps its statistics. If anything fails, all old ones stay.

    Args:
        model: a slim, hyperized or plain model.
        batches: what a data loader yields: tensors, or tuples and lists whose first item is the input (as in
            ``torch.optim.swa_utils.update_bn``), or dicts of keyword arguments. They are moved to the model's
            device. All batches count alike: leave out a short last one.

    Raises:
        RecoveryError: no model or no batches are given, there is no batch, or the new statistics are not finite.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> recalibrate_(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])[0].running_mean
        tensor([4.])
    """
    if not isinstance(model, nn.Module):
        raise RecoveryError(f"recalibrate_ takes a model, then batches; the first is {type(model).__name__}.")
    if not isinstance(batches, Iterable):
        raise RecoveryError(f"recalibrate_ takes batches, as a data loader yields them, not {type(batches).__name__}.")
    if isinstance(batches, torch.Tensor):
        raise RecoveryError("recalibrate_ takes batches, as a data loader yields them; for a single one write [batch].")
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return model
    before = [(layer.momentum, {name: value.clone() for name, value in layer.named_buffers()}) for layer in layers]
    try:
        with torch.no_grad(), modes_kept(model):
            _average_(model, layers, batches)
        _check_finite(layers)
    except BaseException:
        for layer, (_, buffers) in zip(layers, before, strict=True):
            _put_back_(layer, buffers)
        raise
    finally:
        for layer, (momentum, _) in zip(layers, before, strict=True):
            layer.momentum = momentum
    for layer, (_, buffers) in zip(layers, before, strict=True):
        if not layer.num_batches_tracked:
            _put_back_(layer, buffers)
    return model


def _put_back_(layer: _BatchNorm, buffers: Mapping[str, Tensor]) -> None:
    for name, value in buffers.items():
        layer.get_buffer(name).copy_(value)


def _average_(model: nn.Module, layers: list[_BatchNorm], batches: Iterable[Any]) -> None:
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    seen = False
    plain = model.model if isinstance(model, HyperModel) else model  # whose dtype counts: latents are float32 always
    for batch in batches:
        _inputs_of(batch).suiting(plain).call(model)
        seen = True
    if not seen:
        raise RecoveryError("there is no batch to take statistics from. A generator that has run out yields none.")


def _inputs_of(batch: Any) -> ExampleInputs:
    return ExampleInputs.of(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _check_finite(layers: list[_BatchNorm]) -> None:
    if not all(bool(value.isfinite().all()) for layer in layers for value in layer.buffers()):
        raise RecoveryError("the statistics of these batches are not finite; the old ones stay. Look at the inputs.")
