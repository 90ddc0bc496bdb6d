"""Rehearsal: export once before anything is offered as prunable, and find what to blame when that fails."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, product
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hyperprune.copies import copied
from hyperprune.coupling import STAYS, CouplingMap, Group, Heir, Held, lies_inside
from hyperprune.errors import ModelError
from hyperprune.generators import Lean, attach, withdraw_
from hyperprune.labels.flow import LAST_RESORT
from hyperprune.latents import LatentBank
from hyperprune.norms import attach_norms, detach_norms
from hyperprune.plan import Spared
from hyperprune.slim import carve_, changed, doubtful, is_standard
from hyperprune.trace import ExampleInputs, drop_caches_, failing_lines, is_of_libraries, random_state_kept
from hyperprune.verify import Proof, compare, rounding, run_eval, tensors_of

FEWEST = 8  # values per channel from which statistics are worth taking; a single one would normalise to nothing
ENOUGH = 1024  # values per channel from which more add nothing: statistics need not be those of every pixel
CLEAR = 1e-5  # bound on the error in float32; what is above it is looked at once more in float64
FEW_UNITS = 8  # in a group, up to which it counts as small
MOST_WAYS = 8  # attributes of one module that are tried one by one
MOST_LINES = 8  # whose calls are read as at first once more, one after the other
FEW = 3  # classes that multiply activations, up to which every combination of readings is tried
FUSED = "scaled_dot_product_attention"
AGAIN = 2  # runs in train mode that tell shapes drawn by chance from shapes that follow widths
SLACK = 10  # in other types: the rehearsal looks for wrong wiring; rounding may differ more than in a real proof


@dataclass(frozen=True)
class Choices:
    """How to read what is ambiguous.

    Attributes:
        readings: which reading of each ambiguous call to take: 0 is the likeliest, the last freezes its channels.
        closed: modules whose channels all stay, because no reading of their calls exported exactly.
        heirs: modules that take over the sizes on one line of the module around them: that line calls a method of
            theirs which is not ``forward``, and torch.export credits what happens there to the caller.
        held: positions of tensors that stay, because no export without some of them was exact.
        spared: attributes that keep their numbers, though these are sizes that change too.
    """

    readings: Mapping[str, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    heirs: frozenset[Heir] = frozenset()
    held: frozenset[Held] = frozenset()
    spared: frozenset[Spared] = frozenset()

    def next(self, calls: Iterable[str]) -> Choices:
        """Return the choices with the next reading for some calls.

        Example:
            >>> Choices({"view": 1}).next(["view", "chunk"]).readings
            {'view': 2, 'chunk': 1}
        """
        return self.read({call: self.readings.get(call, 0) + 1 for call in calls})

    def read(self, readings: Mapping[str, int]) -> Choices:
        """Return the choices with these readings in place of the ones they had."""
        return replace(self, readings={**self.readings, **readings})

    def close(self, module: str) -> Choices:
        """Return the choices with one more module closed."""
        return replace(self, closed=self.closed | {module})

    def inherit(self, modules: Iterable[Heir]) -> Choices:
        """Return the choices with more modules that take over the sizes around them."""
        return replace(self, heirs=self.heirs | set(modules))


Couple = Callable[[Choices], CouplingMap]


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
    halves = [_about_half(coupling, draw) | whole for draw in range(_draws(coupling, model))]
    outcomes = (_rehearse_at(half, model, coupling, inputs) for half in halves)
    proof = next(outcomes)
    if isinstance(proof, Fault):
        return proof
    fault = next((other for other in outcomes if isinstance(other, Fault)), None)
    return fault or _fault_in_training(halves[0], model, coupling, inputs) or proof


def _rehearse_at(half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> Proof | Fault:
    single = next(model.parameters()).dtype == torch.float32
    if single and _is_read_in_two_ways(coupling):
        finely = _rehearse_finely(half, model, coupling, inputs, None)
        if finely is not None:
            return finely
    outcome = _rehearse_once(half, _light_copy(model, coupling), coupling, inputs, CLEAR if single else None)
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
    """Say whether a product may or may not be scaled by its width: a norm behind it may hide which, but for rounding.

    A layer norm over two channels gives nearly the same signs whatever the scale; in float64 the rest shows.
    """
    return any(not made.node.startswith(FUSED) for made in coupling.products)


def _rehearse_once(
    half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, bound: float | None
) -> Proof | Fault:
    enliven_(model, coupling)
    drop_caches_(model)
    try:
        with _gated(model, coupling, half), _buffers_kept(model):
            expected = _calibrated_run(model, inputs)
        carve_(model, coupling.plan(half.numpy()))
        proof = compare(expected, run_eval(model, inputs.copied()))
    except Exception as error:  # whatever the user's forward raises on generated weights, or on wrong sizes
        modules = _modules_on_stack(model, error.__traceback__)
        return Fault(f"{type(error).__name__}: {error}", modules, failing_lines(error.__traceback__))
    bound = SLACK * proof.tolerance if bound is None else bound
    return proof if proof.relative_error <= bound else Fault(str(proof), proof=proof)


@contextmanager
def _gated(model: nn.Module, coupling: CouplingMap, alive: Tensor) -> Iterator[None]:
    """Let a plain model compute with the other units' gates at zero while the block runs."""
    bank = LatentBank(coupling.groups).to(next(model.parameters()).device)
    bank.keep_(alive)
    attach(model, bank, coupling, Lean(), seed=0)
    attach_norms(model, bank, coupling)
    yield
    withdraw_(model)
    detach_norms(model)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back the buffers that forward() replaces by others: a slim model must make these anew by itself."""
    before = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        yield
    finally:
        for module, name, buffer in before:
            module._buffers[name] = buffer


def _fault_in_training(half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> Fault | None:
    """Say what a slim model cannot do in train mode though the whole one can; None if all is well, or neither can.

    Code of the user's may do there what eval mode does not: add noise of a fixed size, count channels, return features.
    """
    if is_of_libraries(model):
        return None
    plan, calm = coupling.plan(half.numpy()), _without_dropout(copied(model))
    for attempt in (inputs, inputs.doubled()):
        whole = _run_in_training(copied(calm), attempt)
        if isinstance(whole, Exception):
            continue
        slim = _run_in_training(carve_(copied(calm), plan), attempt)
        if isinstance(slim, Exception):
            return Fault(f"in train mode, {type(slim).__name__}: {slim}", training=True)
        if _shapes(slim) == _shapes(whole):
            return _error_in_training(half, calm, coupling, attempt, slim)
        again = (_run_in_training(copied(calm), attempt, seed) for seed in range(1, 1 + AGAIN))
        if all(not isinstance(run, Exception) and _shapes(run) == _shapes(whole) for run in again):
            shapes = f"{_shapes(slim)} in place of {_shapes(whole)}"
            return Fault(f"in train mode, outputs of shapes {shapes}", training=True)
        return None
    return None


def _error_in_training(
    half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, slim: list[Tensor]
) -> Fault | None:
    """Say that what a slim model made in train mode is something else, where nothing is drawn there.

    What differs is looked at in float64: a batch of one example twice divides rounding by the root of nearly nothing.
    """
    error = _error(_run_gated_in_training(half, copied(model), coupling, inputs), slim)
    if error is None or error <= CLEAR:
        return None
    finer = copied(model).double()
    inputs = inputs.suiting(finer)
    first, second = (_run_in_training(copied(finer), inputs, seed) for seed in range(AGAIN))
    if isinstance(first, Exception) or isinstance(second, Exception) or not all(map(torch.equal, first, second)):
        return None
    expected = _run_gated_in_training(half, copied(finer), coupling, inputs)
    error = _error(expected, _run_in_training(carve_(finer, coupling.plan(half.numpy())), inputs))
    if error is None or error <= CLEAR:
        return None
    return Fault(f"in train mode, outputs with a relative error of {error:.1e}", training=True)


def _error(expected: list[Tensor] | Exception, found: list[Tensor] | Exception) -> float | None:
    """Return the relative error of a run; None where two runs do not compare."""
    if isinstance(expected, Exception) or isinstance(found, Exception):
        return None
    return compare(expected, found).relative_error if found and _shapes(expected) == _shapes(found) else None


def _run_gated_in_training(
    half: Tensor, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs
) -> list[Tensor] | Exception:
    with _gated(model, coupling, half):
        return _run_in_training(model, inputs)


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return model


def fault_at_other_sizes(
    model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs
) -> tuple[ExampleInputs, Fault] | None:
    """Return inputs of another size that the model takes, and what goes wrong there; None if nothing does.

    Libraries' models take their sizes from what they meet. Others may interpolate their positions by a number.
    """
    if is_of_libraries(model):
        return None
    for attempt in inputs.larger():
        outcome = _rehearse_at(_about_half(coupling, 0), model, coupling, attempt)
        if isinstance(outcome, Proof):
            return None
        if _runs(model, attempt):
            return attempt, outcome
    return None


def _runs(model: nn.Module, inputs: ExampleInputs) -> bool:
    try:
        run_eval(copied(model), inputs.copied())
    except Exception:  # whatever the user's forward raises
        return False
    return True


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _run_in_training(network: nn.Module, inputs: ExampleInputs, seed: int = 0) -> list[Tensor] | Exception:
    """Run a network of which nothing else is wanted; return the tensors of its outputs, or why it failed."""
    drop_caches_(network)
    try:
        with random_state_kept(network, seed), torch.enable_grad():
            return [tensor.detach() for tensor in tensors_of(inputs.copied().call(network.train()))]
    except Exception as error:  # whatever the user's forward raises in train mode
        return error


def _calibrated_run(model: nn.Module, inputs: ExampleInputs) -> Any:
    with calibrated(model) as calls:
        expected = run_eval(model, inputs.copied())
    if max(calls.values(), default=0) > 1:  # the first call of a reused norm had other statistics than the last
        expected = run_eval(model, inputs.copied())
    return expected


def _draws(coupling: CouplingMap, model: nn.Module) -> int:
    """Return how many draws tell a wrong size from a right one: groups of few units often keep the same number.

    One is enough where no code of the user's holds sizes.
    """
    if not _suspects(coupling, _modules(model)):
        return 1
    return 2 + 2 * any(group.size <= FEW_UNITS for group in coupling.groups)


def _about_half(coupling: CouplingMap, draw: int) -> Tensor:
    """Draw which units live: about half of each group (less at other draws), never all, bool of shape ``[units]``.

    Groups keep different numbers as far as they can, and prime ones where they are large enough: a width that equals
    another, or heads times their width, would let a size that stands for the other pass by luck.
    """
    alive, rng = torch.zeros(coupling.units, dtype=torch.bool), torch.Generator().manual_seed(draw)
    taken: set[int] = set()
    for group in coupling.groups:
        share = (0.35 + 0.3 * float(torch.rand(1, generator=rng))) / (1 + draw)
        kept = _apart(group.size, share, taken, rng, group.least)
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


def _light_copy(model: nn.Module, coupling: CouplingMap) -> nn.Module:
    """Copy a model, but share with it the weights that the rehearsal only reads."""
    parameters = {name for name, _ in model.named_parameters()}
    weights = [model.get_parameter(name) for name in coupling.weights & parameters]
    return copied(model, shared=[weight for weight in weights if not _all_zero(weight)])


def _all_zero(weight: Tensor) -> bool:
    """Say whether a weight is zero everywhere; its first slice nearly always shows that it is not."""
    return not bool(weight[0].any()) and not bool(weight.any())


def with_spared(model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> CouplingMap:
    """Return the map with the attributes that equal a size by chance: exports hold while these keep their numbers.

    They are tried class by class. Those whose names speak of channels follow in any case.
    """
    if not _suspects(coupling, _modules(model)):
        return coupling
    kinds: dict[tuple[type[nn.Module], str], list[Spared]] = {}
    for spared in doubtful(model, coupling.plan(_about_half(coupling, 0).numpy())):
        kinds.setdefault((type(model.get_submodule(spared.module)), spared.attribute), []).append(spared)
    for alike in kinds.values():
        tried = replace(coupling, spared=(*coupling.spared, *alike))
        if isinstance(rehearse(model, tried, inputs), Proof):
            coupling = tried
    return coupling


def after_fault(choices: Choices, coupling: CouplingMap, model: nn.Module, fault: Fault) -> Choices | None:
    """Decide how to read the model next, after a slim one failed to run, or computed something else.

    An exception points first to the calls on the lines that ran, then to the modules it passed through; a wrong
    result to products between activations, then to every call that holds a size. Where no call is left to read
    differently, the module that failed is closed.

    Args:
        model: the network, for the classes of its modules.

    Returns:
        what to try; None if nothing is left, or if train mode alone went wrong, and the groups themselves must be
        asked (``without_guilty``).
    """
    if fault.training:  # the calls are those of eval mode, where all is well
        return None
    modules = _modules(model)
    if fault.inexact and (readings := _other_products(coupling, modules, choices)):
        return choices.read(readings)
    suspects = _suspects(coupling, modules)
    if heirs := _heirs(coupling, modules, fault) - choices.heirs:
        return choices.inherit(heirs)
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
    if fault.inexact and (unfrozen := [made.node for made in coupling.products]):
        return choices.read(dict.fromkeys(unfrozen, LAST_RESORT))
    return None


def whatever_is_read(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, fault: Fault, couple: Couple
) -> Choices | None:
    """Return the choices without the groups that are to blame even with nothing ambiguous left to read.

    A number from a width beside attention would else cost every reading of the attention before its own groups are
    asked. None if exports hold once every ambiguous call keeps its channels: then one of these is to blame.
    """
    modules = _modules(model)
    calls = [*_suspects(coupling, modules), *chain(*_kinds_of_products(coupling, modules).values())]
    if not fault.inexact or not calls:
        return None
    settled = choices.read(dict.fromkeys(calls, LAST_RESORT))
    rest = couple(settled)
    outcome = rehearse(model, rest, inputs) if rest.groups else None
    if not isinstance(outcome, Fault) or not outcome.inexact:
        return None
    return replace(choices, held=without_guilty(settled, model, rest, inputs, outcome).held)


def in_one_class(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, fault: Fault, couple: Couple
) -> Choices | None:
    """Return the choices with the calls of one class read otherwise, if exports hold then.

    A wrong result says nothing of where it comes from: else the sizes of all classes would be read otherwise at once.
    None before all ways to read products have been tried.
    """
    modules = _modules(model)
    classes: dict[type[nn.Module], list[str]] = {}
    for node, path in _suspects(coupling, modules).items():
        classes.setdefault(type(modules[path]), []).append(node)
    if not fault.inexact or not 1 < len(classes) <= FEW or _other_products(coupling, modules, choices):
        return None
    products = list(chain(*_kinds_of_products(coupling, modules).values()))
    for depth, nodes, digit in product(range(1, LAST_RESORT + 1), classes.values(), (0, 1) if products else (0,)):
        tried = choices.read(dict.fromkeys(products, digit) | dict.fromkeys(nodes, depth))
        rest = couple(tried)
        if rest.groups and isinstance(rehearse(model, rest, inputs), Proof):
            return tried
    return None


def with_firm_attributes(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, fault: Fault, couple: Couple
) -> Choices | None:
    """Return the choices by which attributes of the module that failed keep their numbers, if it fails no more.

    One number may be two sizes: as many heads as each has channels, or a stream that stays as wide as what is pruned
    (the attention of GPT-2 ends in a layer that holds the one width it makes). A wrong result names no module: all
    attributes are tried whose names do not speak of channels. Modules of one class at like places are read alike.
    """
    modules = _modules(model)
    plan = coupling.plan(_about_half(coupling, 0).numpy())
    chance = set(doubtful(model, plan))
    if fault.inexact:
        tried = replace(choices, spared=choices.spared | chance)
        return tried if chance and isinstance(rehearse(model, couple(tried), inputs), Proof) else None
    elsewhere = None
    for path in dict.fromkeys(fault.modules):
        names = {spared.attribute: spared in chance for spared in changed(model, plan) if spared.module == path}
        alike = [other for other in modules if _place(modules, other) == _place(modules, path)]
        for chosen in _ways_to_spare(names):
            tried = replace(choices, spared=choices.spared | {Spared(*pair) for pair in product(alike, chosen)})
            outcome = rehearse(model, couple(tried), inputs)
            if isinstance(outcome, Proof):
                return tried
            if outcome.modules and set(alike).isdisjoint(outcome.modules):
                elsewhere = elsewhere or tried
    return elsewhere


def _ways_to_spare(names: Mapping[str, bool]) -> Iterator[list[str]]:
    """Yield attributes to spare: those that equal a size by chance, with each other one, then all; then without them.

    Example:
        >>> list(_ways_to_spare({"heads": False, "buckets": True}))
        [['buckets', 'heads'], ['heads'], ['heads', 'buckets']]
        >>> list(_ways_to_spare({}))
        []
    """
    chance, others = ([name for name in names if names[name] == doubted] for doubted in (True, False))
    for first in [chance, []] if chance else [[]]:
        yield from ([*first, name] for name in others[:MOST_WAYS])
    if len(names) > 1 or chance:
        yield list(names)


def _place(modules: Mapping[str, nn.Module], path: str) -> tuple[type[nn.Module], str]:
    """Return a module's class and where it stands, whatever the numbers of the blocks around it."""
    return type(modules[path]), re.sub(r"\d+", "*", path)


def without_guilty(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, fault: Fault
) -> Choices:
    """Let go of the groups without which every rehearsal holds; they are found by bisection.

    So a number that is worked out from a width (``x / math.sqrt(x.shape[1])``) costs the channels that it counts,
    not the model.

    Raises:
        ModelError: the model differs from itself with nothing removed.
    """
    if isinstance(_rehearse_at(torch.ones(coupling.units, dtype=torch.bool), model, coupling, inputs), Fault):
        raise ModelError(
            f"a rehearsed export of {type(model).__name__} went wrong ({fault.what}), even with every channel in "
            "place. A layer changes its weights or buffers while running, or looks its parameters up by name, or the "
            "outputs are random in eval mode. Hyperize the part of the model that does none of this."
        )

    def holds(groups: Sequence[Group]) -> bool:
        return isinstance(rehearse(model, coupling, inputs, _all_but(groups, coupling)), Proof)

    guilty = _guilty(coupling.groups, holds)
    units = {unit for group in guilty for unit in range(group.start, group.start + group.size)}
    held = {
        (site.tensor, site.axis, tuple(at for at, unit in enumerate(site.units) if unit in units))
        for site in coupling.sites
        if not units.isdisjoint(site.units)
    }
    return replace(choices, held=choices.held | held)


def _guilty(groups: Sequence[Group], holds: Callable[[Sequence[Group]], bool]) -> list[Group]:
    """Return groups that fail; of two halves that fail only together, the smaller.

    Example:
        >>> groups = [Group(name, at, 4, 1, (), (), ()) for at, name in enumerate("abcde")]
        >>> [group.name for group in _guilty(groups, lambda some: not {"b", "e"} & {group.name for group in some})]
        ['b', 'e']
    """
    if holds(groups):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return [*_guilty(groups[:half], holds), *_guilty(groups[half:], holds)] or list(groups[:half])


def _all_but(groups: Sequence[Group], coupling: CouplingMap) -> Tensor:
    """Return the units of all other groups, bool, shape ``[units]``."""
    others = torch.ones(coupling.units, dtype=torch.bool)
    for group in groups:
        others[group.units] = False
    return others


def undecided(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, couple: Couple
) -> Choices | None:
    """Return the choices without the products of which exports hold both ways, scaled by their width or not.

    Example inputs whose tokens are all alike cannot tell: attention averages them whatever its scale. None if every
    product has only one reading.
    """
    doubtful: list[str] = []
    for nodes in _kinds_of_products(coupling, _modules(model)).values():
        other = dict.fromkeys(nodes, 1 - choices.readings.get(nodes[0], 0))
        if isinstance(rehearse(model, couple(choices.read(other)), inputs), Proof):
            doubtful += nodes
    return choices.read(dict.fromkeys(doubtful, LAST_RESORT)) if doubtful else None


def with_first_readings(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, couple: Couple
) -> CouplingMap:
    """Return the map, once exports hold, with those calls read as at first that were read otherwise without need.

    A wrong result blames all calls that hold sizes, and an exception all of a class: the channels of the innocent
    come back, line by line.
    """
    blamed = {node for node, reading in choices.readings.items() if reading}
    if len(blamed) < 2:
        return coupling
    lines: dict[str, set[str]] = {}
    for size in couple(choices.read(dict.fromkeys(blamed, 0))).sizes:
        if size.node in blamed:
            lines.setdefault(size.source, set()).add(size.node)
    if not 1 < len(lines) <= MOST_LINES:
        return coupling
    for nodes in lines.values():
        tried = choices.read(dict.fromkeys(nodes, 0))
        found = couple(tried)
        if found.units > coupling.units and isinstance(rehearse(model, found, inputs), Proof):
            choices, coupling = tried, found
    return coupling


def _other_products(coupling: CouplingMap, modules: Mapping[str, nn.Module], choices: Choices) -> dict[str, int]:
    """Return the next way to read the products between activations; empty if all ways have been tried.

    Products written in one class are read alike; where several classes write some, their readings are mixed too.
    """
    kinds = _kinds_of_products(coupling, modules)
    now = tuple(choices.readings.get(nodes[0], 0) for nodes in kinds.values())
    likely = product((0, 1), repeat=len(kinds)) if len(kinds) <= FEW else ((digit,) * len(kinds) for digit in (0, 1))
    following = next((way for way in likely if way > now), ())
    return {node: digit for nodes, digit in zip(kinds.values(), following, strict=False) for node in nodes}


def _kinds_of_products(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> dict[type[nn.Module], list[str]]:
    """Return the products between activations by the class that writes them; fused attention says how it scales."""
    kinds: dict[type[nn.Module], list[str]] = {}
    for made in coupling.products:
        if not made.node.startswith(FUSED):
            kinds.setdefault(_writer(modules, made.tensors[0]), []).append(made.node)
    return kinds


def _writer(modules: Mapping[str, nn.Module], tensor: str) -> type[nn.Module]:
    """Return the class whose forward() multiplies what a layer made: the one around the layer."""
    path = tensor.rpartition(".")[0]
    while path and is_standard(modules[path]) and not isinstance(modules[path], nn.MultiheadAttention):
        path = path.rpartition(".")[0]
    return type(modules[path])


def _suspects(coupling: CouplingMap, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the calls that hold sizes, each with its module; layers that keep their own sizes are innocent."""
    found: dict[str, str] = {}
    for size in coupling.sizes:
        if set(size.slots) != {(STAYS,)} and not is_standard(modules[size.module]):
            found.setdefault(size.node, size.module)
    return found


def _heirs(coupling: CouplingMap, modules: Mapping[str, nn.Module], fault: Fault) -> set[Heir]:
    """Return the modules of the class that failed, with the line that called them.

    Empty unless the class has no sizes of its own, but the module that called it has some on that line.
    """
    with_sizes = {size.module for size in coupling.sizes}
    for path in fault.modules[:1]:
        around = [module for module in with_sizes if lies_inside(path, module)]
        sources = {size.source for size in coupling.sizes if size.module in around}
        line = next((line for line in fault.lines if line in sources), None)
        if line is not None and path not in with_sizes and not is_standard(modules[path]):
            alike = {other for other, module in modules.items() if type(module) is type(modules[path])}
            return {(other, line) for other in alike - with_sizes}
    return set()


def _unread(coupling: CouplingMap, suspects: Iterable[str], choices: Choices, line: str) -> list[str]:
    """Return the suspects on the line that failed, of which only the likeliest reading was tried."""
    here = {size.node for size in coupling.sizes if size.source == line}
    return [node for node in suspects if node in here and not choices.readings.get(node)]


def _alike(modules: Mapping[str, nn.Module], suspects: Mapping[str, str], node: str) -> list[str]:
    """Return the suspects in modules of the same class: a fault in one block is a fault in all of them."""
    kind = type(modules[suspects[node]])
    return [other for other, path in suspects.items() if type(modules[path]) is kind]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
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


@torch.no_grad()
def enliven_(model: nn.Module, coupling: CouplingMap) -> None:
    """Draw new values, in place, for tensors that would make a comparison blind.

    A layer scale of 1e-6 or a batch norm that starts at zero hides a whole branch: a wrong export would go
    unnoticed. Scales become U(0.5, 1.5), weights and biases that are all zero become random; the global random state is
    left alone.
    """
    rng = torch.Generator().manual_seed(0)
    state = model.state_dict(keep_vars=True)
    for tensor in coupling.tensors:
        value = state.get(tensor.name)
        if value is None or not value.is_floating_point():
            continue
        if tensor.name not in coupling.weights and not tensor.name.endswith("bias"):
            value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
        elif value.ndim and _all_zero(value):
            value.copy_(torch.randn(value.shape, generator=rng) / math.sqrt(value[0].numel()))


@contextmanager
def calibrated(model: nn.Module) -> Iterator[Mapping[nn.Module, int]]:
    """While the block runs, batch norms in eval mode first take the statistics of what they are given.

    A freshly built network in eval mode may lose its signal over many layers; this keeps it alive. Means are set
    off by up to a standard deviation: over a single image they would leave nothing for a global average. Yields how
    often each norm was called.
    """
    calls: Counter[nn.Module] = Counter()

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1
        _take_statistics(module, args)

    hooks = [m.register_forward_pre_hook(take) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _take_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    x = _thinned(args[0])
    if x.numel() // x.shape[1] < FEWEST:
        return
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if isinstance(module.running_var, Tensor) and isinstance(module.running_mean, Tensor):
        mean = x.mean(dim=axes)
        variance = (x - mean.view(-1, *[1] * (x.ndim - 2))).square().mean(dim=axes)  # var_mean takes ten times as long
        offset = torch.linspace(-1, 1, len(mean), dtype=mean.dtype, device=mean.device)
        module.running_mean.copy_(mean + offset * variance.sqrt())
        module.running_var.copy_(variance.clamp_min(1e-3))


def _thinned(x: Tensor) -> Tensor:
    """Leave out rows of a large image (or steps of a long signal), shape ``[batch, channels, rows, ...]``."""
    rows = x.shape[2] if x.ndim > 2 else 1
    return x[:, :, :: max(1, min(rows, x.numel() // x.shape[1] // ENOUGH))] if rows > 1 else x
