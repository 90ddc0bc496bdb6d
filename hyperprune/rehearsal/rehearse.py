"""Remove a random half of all units from a copy, and compare it with the network in which they are zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from hyperprune.copies import copied
from hyperprune.coupling import STAYS, CouplingMap, Size
from hyperprune.rehearsal.runs import (
    buffers_kept,
    calibrated_run,
    enliven_,
    gated,
    light_copy,
    shapes_in_training,
    takes,
)
from hyperprune.slim import carve_, is_standard
from hyperprune.trace import ExampleInputs, drop_caches_, failing_lines, is_of_libraries
from hyperprune.verify import Proof, compare, rounding, run_eval

CLEAR = 1e-5  # bound on the error in float32; what is above it is looked at once more in float64
FEW_UNITS = 8  # in a group, up to which it counts as small
PAIR = 2
FUSED = "scaled_dot_product_attention"
AGAIN = 2  # runs in train mode that tell shapes drawn by chance from shapes that follow widths
SLACK = 10  # in other types: the rehearsal looks for wrong wiring; rounding may differ more than in a real proof


@dataclass(frozen=True)
class Fault:
    """What went wrong, and the modules whose code was running, innermost first.

    Attributes:
        lines: the lines of source that were running, innermost first.
        proof: how far the outputs differ, if the slim model ran.
        training: it went wrong in train mode alone.
    """

    what: str
    modules: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    proof: Proof | None = None
    training: bool = False

    @property
    def inexact(self) -> bool:
        """Whether the slim model ran, but its outputs differ."""
        return self.proof is not None


def rehearse(
    model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, whole: Tensor | None = None
) -> Proof | Fault:
    """Remove a random half of all units from a copy of a plain model, and compare with zeroing them.

    The reference has the gates of the removed units at zero, the slim model lacks these units. Many layers with
    drawn values may amplify rounding as far as a real difference; so outputs that differ are looked at once more
    in float64, where rounding all but vanishes and a wrong export does not. Where code of the user's holds sizes, it
    all happens at several draws of widths: at one, a wrong size may be right by luck (97 // 2 == 96 // 2). Returns a
    proof, or what went wrong.

    Args:
        whole: units that stay in any case, bool, shape ``[units]``.
    """
    whole = torch.zeros(coupling.units, dtype=torch.bool) if whole is None else whole
    halves = [about_half(coupling, draw) | whole for draw in range(_draws(coupling, model))]
    outcomes = (rehearse_at(half, model, coupling, inputs) for half in halves)
    proof = next(outcomes)
    if isinstance(proof, Fault):
        return proof
    fault = next((other for other in outcomes if isinstance(other, Fault)), None)
    return fault or _fault_in_training(halves[0], model, coupling, inputs) or proof


def rehearse_at(half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> Proof | Fault:
    """Rehearse with one draw of units that stay, in float64 too where float32 cannot tell."""
    single = next(model.parameters()).dtype == torch.float32
    if single and _is_read_in_two_ways(coupling):
        finely = _rehearse_finely(half, model, coupling, inputs, None)
        if finely is not None:
            return finely
    outcome = _rehearse_once(half, light_copy(model, coupling), coupling, inputs, CLEAR if single else None)
    if single and isinstance(outcome, Fault) and outcome.proof is not None:
        again = _rehearse_finely(half, model, coupling, inputs, CLEAR)
        if again is None and outcome.proof.relative_error <= rounding(model):  # float64 cannot tell: as in real proofs
            return outcome.proof
        return again if isinstance(again, Proof) else outcome
    if single and isinstance(outcome, Proof) and outcome.uneven:
        return _rehearse_finely(half, model, coupling, inputs, None) or outcome
    return outcome


def _rehearse_finely(
    half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, bound: float | None
) -> Proof | Fault | None:
    """Rehearse in float64; None if the network runs in no other type than its own."""
    finer = copied(model).double()
    try:
        outcome = _rehearse_once(half, finer, coupling, inputs.suiting(finer), bound)
    except Exception:  # whatever the user's forward raises
        return None
    return None if isinstance(outcome, Fault) and not outcome.inexact else outcome


def _is_read_in_two_ways(coupling: CouplingMap) -> bool:
    """Say whether a product, or a norm by a length, may be scaled by its width or not: a norm behind it may hide which.

    A layer norm over two channels gives nearly the same signs whatever the scale; in float64 the rest shows.
    """
    return any(not made.node.startswith(FUSED) for made in coupling.products) or any(n.nodes for n in coupling.norms)


def _rehearse_once(
    half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, bound: float | None
) -> Proof | Fault:
    enliven_(model, coupling)
    drop_caches_(model)
    try:
        with gated(model, coupling, half), buffers_kept(model):
            expected = calibrated_run(model, inputs)
        carve_(model, coupling.plan(half.numpy()))
        proof = compare(expected, run_eval(model, inputs))
    except Exception as error:  # whatever the user's forward raises on generated weights, or on wrong sizes
        modules = _modules_on_stack(model, error.__traceback__)
        return Fault(f"{type(error).__name__}: {error}", modules, failing_lines(error.__traceback__))
    bound = SLACK * proof.tolerance if bound is None else bound
    return proof if proof.relative_error <= bound else Fault(str(proof), proof=proof)


def _fault_in_training(half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> Fault | None:
    """Say what a slim model cannot do in train mode though the whole one can; None if all is well, or neither can.

    Code of the user's may do there what eval mode does not: add noise of a fixed size, count channels, return features.
    Values are not compared: what is drawn differs, and so do penalties that are means over channels.
    """
    if is_of_libraries(model):
        return None
    for attempt in (inputs, inputs.doubled()):
        expected = shapes_in_training(copied(model), attempt)
        if isinstance(expected, Exception):
            continue
        found = shapes_in_training(carve_(copied(model), coupling.plan(half.numpy())), attempt)
        if isinstance(found, Exception):
            return Fault(f"in train mode, {type(found).__name__}: {found}", training=True)
        if found != expected and all(
            shapes_in_training(copied(model), attempt, seed) == expected for seed in range(1, 1 + AGAIN)
        ):
            return Fault(f"in train mode, outputs of shapes {found} in place of {expected}", training=True)
        return None
    return None


def fault_at_other_sizes(
    model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs
) -> tuple[ExampleInputs, Fault] | None:
    """Return inputs of another size that the model takes, and what goes wrong there; None if nothing does.

    Libraries' models take their sizes from what they meet. Others may interpolate their positions by a number. On a
    GPU, an index beyond a table that does not grow would end the process; so only a CPU is asked.
    """
    if is_of_libraries(model) or any(tensor.device.type != "cpu" for tensor in inputs.tensors()):
        return None
    for attempt in inputs.larger():
        outcome = rehearse_at(about_half(coupling, 0), model, coupling, attempt)
        if isinstance(outcome, Proof):
            return None
        if takes(model, attempt):
            return attempt, outcome
    return None


def excerpts_for(model: nn.Module, inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    """Yield what to rehearse on: less than the inputs first, if all layers are libraries'; at last the inputs.

    Code of the user's may do on large images what it does not do on small ones.
    """
    if is_of_libraries(model):
        yield from inputs.excerpts()
    yield inputs


def _draws(coupling: CouplingMap, model: nn.Module) -> int:
    """Return how many draws tell a wrong size from a right one: groups of few units often keep the same number.

    One is enough where no code of the user's holds sizes.
    """
    if not holds_sizes(coupling, modules_of(model)):
        return 1
    return 2 + 2 * any(group.size <= FEW_UNITS for group in coupling.groups)


def about_half(coupling: CouplingMap, draw: int) -> Tensor:
    """Draw which units live: about half of each group (less at other draws), never all, bool of shape ``[units]``.

    Groups keep different numbers as far as they can, and prime ones where they are large enough: a width that equals
    another, or heads times their width, would let a size that stands for the other pass by luck. Of two units one can
    stay, or both: at other draws some of such groups stay whole, no two of the first eight at the same ones.
    """
    alive, rng = torch.zeros(coupling.units, dtype=torch.bool), torch.Generator().manual_seed(draw)
    taken: set[int] = set()
    pairs = [group.start for group in coupling.groups if group.size == PAIR]
    whole = {start for at, start in enumerate(pairs) if draw and at >> (draw - 1) & 1}
    for group in coupling.groups:
        share = (0.35 + 0.3 * float(torch.rand(1, generator=rng))) / (1 + draw)
        kept = PAIR if group.start in whole else _apart(group.size, share, taken, rng, group.least)
        taken.add(kept)
        alive[group.start + torch.randperm(group.size, generator=rng)[:kept]] = True
    return alive


def _apart(size: int, share: float, taken: set[int], rng: torch.Generator, least: int = 1) -> int:
    """Return a number below ``size`` near a share of it: free and prime, or else free, or else any.

    All of them if there is no number from the least up.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> [_apart(*way, rng) for way in ((100, 0.5, {47, 53}), (3, 0.5, {1}), (2, 0.5, {1}), (4, 0.1, set()))]
        [43, 2, 1, 1]
    """
    near = sorted(range(least, size), key=lambda number: abs(number - share * size))
    free = [number for number in near if number not in taken]
    prime = (number for number in free if number > 2 and all(number % d for d in range(2, math.isqrt(number) + 1)))
    within = next(prime, size)
    if abs(within - share * size) < 0.2 * size:
        return within
    if not near:
        return size
    return free[0] if free else near[int(torch.randint(len(near), (), generator=rng))]


def suspects_in(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the calls that hold sizes, each with its module; layers that keep their own sizes are innocent."""
    found: dict[str, str] = {}
    for size in _sizes_of_users(coupling, modules):
        if size.node:
            found.setdefault(size.node, size.module)
    return found


def holds_sizes(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> bool:
    """Say whether code of the user's holds sizes that change."""
    return any(True for _ in _sizes_of_users(coupling, modules))


def _sizes_of_users(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> Iterator[Size]:
    changing = (size for size in coupling.sizes if set(size.slots) != {(STAYS,)})
    return (size for size in changing if not is_standard(modules[size.module]))


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules under every path that leads to them."""
    return dict(model.named_modules(remove_duplicate=False))


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
