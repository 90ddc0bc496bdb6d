"""Rehearsal: export once before anything is offered as prunable, and find what to blame when that fails."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hyperprune.coupling import STAYS, CouplingMap
from hyperprune.errors import ModelError
from hyperprune.generators import Lean, attach, withdraw_
from hyperprune.latents import LatentBank
from hyperprune.norms import attach_norms, detach_norms
from hyperprune.slim import carve_, is_standard
from hyperprune.trace import ExampleInputs, drop_caches_, failing_lines
from hyperprune.verify import Proof, compare, run_eval

FEWEST = 8  # values per channel from which statistics are worth taking; a single one would normalise to nothing
CLEAR = 1e-5  # bound on the error in float32; what is above it is looked at once more in float64
SLACK = 10  # in other types: the rehearsal looks for wrong wiring; rounding may differ more than in a real proof


@dataclass(frozen=True)
class Choices:
    """How to read what is ambiguous.

    Attributes:
        readings: which reading of each ambiguous call to take: 0 is the likeliest, the last freezes its channels.
        closed: modules whose channels all stay, because no reading of their calls exported exactly.
    """

    readings: Mapping[str, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()

    def next(self, calls: Iterable[str]) -> Choices:
        """Return the choices with the next reading for some calls.

        Example:
            >>> Choices({"view": 1}).next(["view", "chunk"]).readings
            {'view': 2, 'chunk': 1}
        """
        return replace(self, readings={**self.readings, **{c: self.readings.get(c, 0) + 1 for c in calls}})

    def close(self, module: str) -> Choices:
        """Return the choices with one more module closed."""
        return replace(self, closed=self.closed | {module})


@dataclass(frozen=True)
class Fault:
    """What went wrong, and the modules whose code was running, innermost first.

    Attributes:
        inexact: the slim model ran, but its outputs differ.
        lines: the lines of source that were running, innermost first.
    """

    what: str
    modules: tuple[str, ...]
    inexact: bool = False
    lines: tuple[str, ...] = ()


def rehearse(model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> Proof | Fault:
    """Remove a random half of all units from a copy of a plain model, and compare with zeroing them.

    The reference has the gates of the removed units at zero, the slim model lacks these units. Many layers with
    drawn values may amplify rounding as far as a real difference; so outputs that differ are looked at once more
    in float64, where rounding all but vanishes and a wrong export does not. Returns a proof, or what went wrong.
    """
    single = next(model.parameters()).dtype == torch.float32
    outcome = _rehearse_once(_light_copy(model, coupling), coupling, inputs, CLEAR if single else None)
    if single and isinstance(outcome, Fault) and outcome.inexact:
        finer = copy.deepcopy(model).double()
        again = _rehearse_once(finer, coupling, inputs.like(next(finer.parameters())), CLEAR)
        return again if isinstance(again, Proof) else outcome
    return outcome


def _rehearse_once(
    model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, bound: float | None
) -> Proof | Fault:
    half = _about_half(coupling)
    enliven_(model, coupling)
    drop_caches_(model)
    bank = LatentBank(coupling.groups).to(next(model.parameters()).device)
    bank.keep_(half)
    attach(model, bank, coupling, Lean(), seed=0)
    attach_norms(model, bank, coupling)
    with calibrated(model):
        expected = run_eval(model, inputs)
    withdraw_(model)
    detach_norms(model)
    carve_(model, coupling.plan(half.numpy()))
    try:
        proof = compare(expected, run_eval(model, inputs))
    except Exception as error:  # whatever the user's forward raises on wrong sizes
        modules = _modules_on_stack(model, error.__traceback__)
        return Fault(f"{type(error).__name__}: {error}", modules, lines=failing_lines(error.__traceback__))
    bound = SLACK * proof.tolerance if bound is None else bound
    return proof if proof.relative_error <= bound else Fault(str(proof), (), inexact=True)


def _about_half(coupling: CouplingMap) -> Tensor:
    """Draw which units live: about half of each group, never all, bool of shape ``[units]``.

    Groups of one size keep different numbers as far as they can, and no group exactly its half: equal widths would
    let a size that stands for two of them pass by luck.
    """
    alive, rng = torch.zeros(coupling.units, dtype=torch.bool), torch.Generator().manual_seed(0)
    seen: Counter[int] = Counter()
    for group in coupling.groups:
        share = 0.35 + 0.3 * float(torch.rand(1, generator=rng))
        kept = 1 + (int(group.size * share) + seen[group.size]) % (group.size - 1)
        seen[group.size] += 1
        alive[group.start + torch.randperm(group.size, generator=rng)[:kept]] = True
    return alive


def _light_copy(model: nn.Module, coupling: CouplingMap) -> nn.Module:
    """Copy a model, but share with it the weights that the rehearsal only reads."""
    parameters = {name for name, _ in model.named_parameters()}
    weights = [model.get_parameter(t.name) for t in coupling.tensors if t.positions > 0 and t.name in parameters]
    return copy.deepcopy(model, {id(weight): weight for weight in weights if bool(weight.any())})


def after_fault(choices: Choices, coupling: CouplingMap, model: nn.Module, fault: Fault) -> Choices:
    """Decide what to try next after a slim model failed to run, or computed something else.

    An exception points first to the calls on the lines that ran, then to the modules it passed through, a wrong
    result to every call that holds a size. Where no call is left to read differently, the module that failed is
    closed.

    Args:
        model: the network, for the classes of its modules.

    Raises:
        ModelError: nothing is left to try.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    suspects = _suspects(coupling, modules)
    for line in fault.lines:
        here = _unread(coupling, suspects, choices, line)
        if kin := [node for node in here if suspects[node] in fault.modules]:
            return choices.next(set(here) & set(_alike(modules, suspects, kin[0])))
    for path in fault.modules:
        if kin := [node for node, module in suspects.items() if module == path]:
            alike = _alike(modules, suspects, kin[0])
            return choices.next([node for node in alike if not choices.readings.get(node)] or alike)
    if suspects:
        return choices.next(suspects)
    for path in fault.modules:
        if path and path not in choices.closed and not is_standard(modules[path]):
            return choices.close(path)
    raise ModelError(
        f"a rehearsed export of {type(model).__name__} went wrong ({fault.what}), and no size written into "
        "forward() explains it. Please report the model; a layer probably changes its weights while running."
    )


def _suspects(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the calls that hold sizes, each with its module; layers that keep their own sizes are innocent."""
    return {
        size.node: size.module
        for size in coupling.sizes
        if set(size.slots) != {(STAYS,)} and not is_standard(modules[size.module])
    }


def _unread(coupling: CouplingMap, suspects: Iterable[str], choices: Choices, line: str) -> list[str]:
    """Return the suspects on the line that failed, of which only the likeliest reading was tried."""
    here = {size.node for size in coupling.sizes if size.source == line}
    return [node for node in suspects if node in here and not choices.readings.get(node)]


def _alike(modules: Mapping[str, nn.Module], suspects: Mapping[str, str], node: str) -> list[str]:
    """Return the suspects in modules of the same class: a fault in one block is a fault in all of them."""
    kind = type(modules[suspects[node]])
    return [other for other, path in suspects.items() if type(modules[path]) is kind]


def _modules_on_stack(slim: nn.Module, traceback: TracebackType | None) -> tuple[str, ...]:
    """Return paths of the modules whose code was running, innermost first."""
    paths = {id(module): path for path, module in slim.named_modules()}
    found: list[str] = []
    while traceback is not None:
        owner = id(traceback.tb_frame.f_locals.get("self"))
        if owner in paths:
            found.append(paths[owner])
        traceback = traceback.tb_next
    return tuple(found[::-1])


@torch.no_grad()
def enliven_(model: nn.Module, coupling: CouplingMap) -> None:
    """Draw new values, in place, for tensors that would make a comparison blind.

    A layer scale of 1e-6 or a batch norm that starts at zero hides a whole branch: a wrong export would go
    unnoticed. Scales become U(0.5, 1.5), weights that are all zero become random; the global random state is
    left alone.
    """
    rng = torch.Generator().manual_seed(0)
    state = model.state_dict(keep_vars=True)
    for tensor in coupling.tensors:
        value = state.get(tensor.name)
        if value is None or not value.is_floating_point():
            continue
        if tensor.positions == 0 and not tensor.name.endswith("bias"):
            value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
        elif tensor.positions > 0 and not bool(value.any()):
            value.copy_(torch.randn(value.shape, generator=rng) / math.sqrt(value[0].numel()))


@contextmanager
def calibrated(model: nn.Module) -> Iterator[None]:
    """While the block runs, batch norms in eval mode first take the statistics of what they are given.

    A freshly built network in eval mode may lose its signal over many layers; this keeps it alive. Means are set
    off by up to a standard deviation: over a single image they would leave nothing for a global average.
    """
    hooks = [m.register_forward_pre_hook(_take_statistics) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    x: Tensor = args[0]
    if x.numel() // x.shape[1] < FEWEST:
        return
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if isinstance(module.running_var, Tensor) and isinstance(module.running_mean, Tensor):
        variance, mean = torch.var_mean(x, dim=axes, correction=0)
        offset = torch.linspace(-1, 1, len(mean), dtype=mean.dtype, device=mean.device)
        module.running_mean.copy_(mean + offset * variance.sqrt())
        module.running_var.copy_(variance.clamp_min(1e-3))
