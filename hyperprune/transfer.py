"""Carry an optimiser's state over to the slim network, so that training goes on instead of starting anew."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune.errors import ModelError
from hyperprune.generators import Generated
from hyperprune.hyper import HyperModel
from hyperprune.optimizers import unwrapped
from hyperprune.plan import WidthPlan, layer_of, plans_of

SCHEDULED = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")  # what schedulers note in a group
MOMENTUM = {"momentum_buffer": 1}
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "exp_inf": 1}
ROOT_MEAN_SQUARE = {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0}  # momentum of what is divided by the root
NEARLY_CLOSED = 0.1  # |z| below which state is scaled no further: it may be from when the gate was open
POWERS = {  # of the gradient, in what optimisers keep per element; the same name means other things elsewhere
    **dict.fromkeys(("SGD", "SGDW", "Muon"), MOMENTUM),
    **dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "FusedAdam", "AdamWLegacy", "NAdamW"), MOMENTS),
    **dict.fromkeys(("Lamb", "Lion"), MOMENTS),
    **dict.fromkeys(("RMSprop", "RMSpropTF"), ROOT_MEAN_SQUARE),
    "Adagrad": {"sum": 2},
}
OF_THE_OLD = ("step", "_opt_called")  # what a scheduler hangs onto the optimiser that it turns


def transfer_optimizer(hyper: HyperModel, slim: nn.Module, optimizer: Any) -> torch.optim.Optimizer:
    """Return an optimiser for the slim network, of the same class and options, with the survivors' state.

    Momentum and moments are sliced as the weights are. The slim weight is W = z A, gate times trained tensor, so
    dL/dW = dL/dA / z: what is linear in the gradient (momentum, Adam's first moment) is divided by z, what is
    quadratic (its second moment) by z squared. That is the state the optimiser would hold had it seen the slim
    weight's gradients, and gradients are what it will be shown from now on. (With weight decay, SGD's momentum
    contains a share of the weight itself, which scales otherwise; at z = 1 nothing scales.) It is scaled at most as for
    |z| = 0.1: the gradient of a gate that has closed since would be scaled out of all proportion.

    The latents are folded in, so their state goes. ``DHP``'s hypernetwork is dropped at export, and its state cannot be
    told of the weights it made: those, and whatever else cannot be carried over (the state of a class that is not known
    here, for instance), start afresh, with one warning that counts them. What else the optimiser has as attributes, its
    hooks left out, the new one has too. Parameters beside the hyperized network (a head of the user's, a decoder) stay
    with their state.

    A scheduler has to be made anew. Learning rates, and the momentum or betas that some schedulers move too, are those
    of now: at the end of ``OneCycleLR`` the rate is next to nothing. Set them before you make the new one:
    ``for group in optimizer.param_groups: group["lr"] = 0.01``, and ``"momentum"`` or ``"betas"`` likewise.

    Args:
        hyper: the searched network.
        slim: what ``export_pruned(hyper)`` returned, on the same device.
        optimizer: the one that trained ``hyper``, or a wrapper around it; it is not changed.

    Raises:
        ModelError: ``slim`` is not an export of ``hyper`` as it is now; or the optimiser trains none of ``hyper``'s
            weights, or holds parameters elsewhere than in its groups, as L-BFGS does.

    Example:
        >>> from hyperprune import export_pruned, hyperize
        >>> hyper = hyperize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4))
        >>> optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1), momentum=0.9)
        >>> hyper(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> hyper.bank.remove_(torch.arange(8) < 5)
        >>> slim = export_pruned(hyper)
        >>> carried = transfer_optimizer(hyper, slim, optimizer)
        >>> carried.state[slim[0].weight]["momentum_buffer"].shape
        torch.Size([3, 4])
    """
    if not isinstance(hyper, HyperModel):
        raise ModelError(f"transfer_optimizer takes what hyperize returned first, not {type(hyper).__name__}.")
    plan = hyper.plan()
    if plans_of(slim)[-1:] != (plan,):
        raise ModelError(
            f"this {type(slim).__name__} is not an export of the searched network as it is now. Call "
            "slim = export_pruned(hyper) first, and transfer before either of them is changed."
        )
    old = unwrapped(optimizer)
    _require_nothing_else(old)
    with hyper.bank.still():  # as at export
        moves = _moves(hyper.model, slim, plan)
    _require_trained(old, moves)
    beside = _beside(old, hyper)
    made = _emptied(old, _groups(old, moves, beside))
    made.state.update({p: copy.deepcopy(old.state[p]) for p in beside if p in old.state})
    powers = _powers(old)
    fresh = 0
    for move in (move for several in moves.values() for move in several):
        state = old.state.get(move.source.trained, {})
        carried = move.carried(state, powers)
        fresh += bool(state) and carried is None
        if carried:
            made.state[move.new] = carried
    if fresh:
        warnings.warn(
            f"the optimiser's state of {fresh} parameters could not be carried over to the slim network (generated by "
            "a hypernetwork, or kept in a form that is not known here): they start afresh.",
            stacklevel=2,
        )
    return made


@dataclass(frozen=True)
class _Source:
    """Where a parameter of the slim network comes from.

    Attributes:
        name: in the slim network.
        trained: the parameter of the searched network that carries it.
        factor: what ``trained`` is multiplied by at export, of its shape; None where it is not a plain factor.
    """

    name: str
    trained: nn.Parameter
    factor: Tensor | None
    plan: WidthPlan

    def sliced(self, tensor: Tensor) -> Tensor:
        for cut in self.plan.slices:
            if cut.tensor == self.name:
                tensor = tensor.index_select(cut.axis, torch.tensor(cut.kept, device=tensor.device))
        return tensor.clone()


@dataclass(frozen=True)
class _Move:
    source: _Source
    new: nn.Parameter

    def carried(self, state: dict[str, Any], powers: Mapping[str, int]) -> dict[str, Any] | None:
        """Return the state for the new parameter; None where it cannot be told."""
        if self.source.factor is None:
            return None
        factor = self.source.sliced(self.source.factor)
        carried: dict[str, Any] = {}
        for key, value in state.items():
            if value is None or isinstance(value, (bool, int, float)):
                carried[key] = value
            elif isinstance(value, Tensor) and value.ndim == 0:  # the count of steps
                carried[key] = value.clone()
            elif key in powers and value.shape == self.source.trained.shape and value.is_floating_point():
                carried[key] = self.source.sliced(value) / _scale(factor, key, powers[key]).to(value.dtype)
            else:
                return None
        return carried


def _scale(factor: Tensor, key: str, power: int) -> Tensor:
    """Return what a state of this power of the gradient is divided by; of odd quantities it has the gate's sign."""
    size = factor.abs().clamp_min(NEARLY_CLOSED) ** power
    return size if power == 2 or key == "exp_inf" else torch.where(factor < 0, -size, size)


def _moves(model: nn.Module, slim: nn.Module, plan: WidthPlan) -> dict[int, list[_Move]]:
    """Return by the id of a trained parameter what it becomes: more than one where slimming unties what it shared.

    Each new parameter is there once, though several tensors of a hypernetwork make it.
    """
    moves: dict[int, list[_Move]] = defaultdict(list)
    seen: set[int] = set()
    closed = {closing.module for closing in plan.closings}
    there = dict(slim.named_parameters(remove_duplicate=False))
    for source in _sources(model, plan):
        if source.name not in there and layer_of(source.name) in closed:
            continue
        new = slim.get_parameter(source.name)
        if id(new) not in seen:
            seen.add(id(new))
            moves[id(source.trained)].append(_Move(source, new))
    return moves


def _sources(model: nn.Module, plan: WidthPlan) -> Iterator[_Source]:
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], Generated):
            owner, _, name = f".{path}".rpartition(".parametrizations.")
            full = f"{owner}.{name}"[1:]
            for trained in module.parameters(recurse=False):
                yield _Source(full, trained, _rescaled(_factor(module), full, plan), plan)
        else:
            for name, parameter in module.named_parameters(path, recurse=False):
                yield _Source(name, parameter, _rescaled(torch.ones_like(parameter), name, plan), plan)


@torch.no_grad()
def _factor(made: parametrize.ParametrizationList) -> Tensor | None:
    """Return what the trained tensor is multiplied by at export; None unless it is just that."""
    originals, generated = list(made.parameters(recurse=False)), cast(Generated, made[0])
    if len(originals) != 1:
        return None
    factor = generated.plain(torch.ones_like(originals[0]))
    plain = generated.plain(originals[0])
    return factor if plain.shape == factor.shape and torch.allclose(plain, factor * originals[0]) else None


@torch.no_grad()
def _rescaled(factor: Tensor | None, name: str, plan: WidthPlan) -> Tensor | None:
    for rescale in plan.rescales:
        if factor is not None and rescale.tensor == name:
            factor = factor.clone()
            factor[list(rescale.rows)] *= rescale.factor
    return factor


def _emptied(old: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return an optimiser like another one, with other groups, and without state or hooks."""
    own = {k: v for k, v in vars(old).items() if not k.endswith("_hooks") and k not in OF_THE_OLD}
    made: torch.optim.Optimizer = type(old).__new__(type(old))
    made.__setstate__({**own, "defaults": dict(old.defaults), "param_groups": groups, "state": defaultdict(dict)})
    return made


def _powers(optimizer: torch.optim.Optimizer) -> Mapping[str, int]:
    """Return the powers of the gradient in an optimiser's state, by its class or the nearest one it inherits from."""
    return next((POWERS[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in POWERS), {})


def _unscheduled(group: dict[str, Any]) -> dict[str, Any]:
    """Leave out where a scheduler started: one made anew starts from the learning rate of now."""
    return {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key not in SCHEDULED
    }


def _require_nothing_else(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that holds parameters, or another optimiser, where they cannot be replaced (L-BFGS, SAM)."""
    for name, value in vars(optimizer).items():
        parameters = isinstance(value, (list, tuple)) and any(isinstance(item, nn.Parameter) for item in value)
        if parameters or isinstance(value, torch.optim.Optimizer):
            raise ModelError(
                f"{type(optimizer).__name__} keeps more than state and parameter groups ({name!r}), so it cannot be "
                "carried over to the slim network. If it wraps another optimiser pass that one, or make a new one."
            )


def _require_trained(optimizer: torch.optim.Optimizer, moves: Mapping[int, list[_Move]]) -> None:
    if not any(id(parameter) in moves for group in optimizer.param_groups for parameter in group["params"]):
        raise ModelError(
            "the optimiser trains none of this network's weights. Pass the network that it trained: where slim was "
            "exported from an average (EMA) or another copy, transfer_optimizer(hyper, slim, optimizer) still takes "
            "the searched network itself."
        )


def _beside(optimizer: torch.optim.Optimizer, hyper: HyperModel) -> list[Tensor]:
    """Return the parameters of an optimiser that are none of the hyperized network's."""
    own = {id(parameter) for parameter in hyper.parameters()}
    return [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]


def _groups(
    optimizer: torch.optim.Optimizer, moves: dict[int, list[_Move]], beside: list[Tensor]
) -> list[dict[str, Any]]:
    heirs: dict[int, list[tuple[Tensor, str]]] = {id(parameter): [(parameter, "")] for parameter in beside}
    heirs |= {trained: [(move.new, move.source.name) for move in several] for trained, several in moves.items()}
    groups = []
    for group in optimizer.param_groups:
        names = group.get("param_names", [""] * len(group["params"]))
        pairs = zip(group["params"], names, strict=True)
        named = [(new, name or old) for p, old in pairs for new, name in heirs.get(id(p), ())]
        renewed = {**_unscheduled(group), "params": [parameter for parameter, _ in named]}
        if "param_names" in group:
            renewed["param_names"] = [name for _, name in named]
        groups.append(renewed)
    return [group for group in groups if group["params"]]
