"""How to read what is ambiguous: what to blame when a rehearsal fails, and what to try next."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product

import torch
from torch import Tensor, nn

from hyperprune.coupling import CouplingMap, Follower, Group, Heir, Held, lies_inside
from hyperprune.errors import ModelError
from hyperprune.labels.flow import LAST_RESORT
from hyperprune.plan import Spared, layer_of
from hyperprune.rehearsal.rehearse import (
    FUSED,
    Fault,
    about_half,
    holds_sizes,
    modules_of,
    rehearse,
    rehearse_at,
    suspects_in,
)
from hyperprune.slim import changed, doubtful, is_standard
from hyperprune.trace import ExampleInputs
from hyperprune.verify import Proof

MOST_WAYS = 8  # attributes of one module that are tried one by one
MOST_LINES = 8  # whose calls are read as at first once more, one after the other
INSISTED = ("AssertionError", "ValueError")  # code of the user's found a width wrong, not torch
FEW = 3  # classes that multiply activations, up to which every combination of readings is tried


@dataclass(frozen=True)
class Choices:
    """How to read what is ambiguous.

    Attributes:
        readings: which reading of each ambiguous call to take: 0 is the likeliest, the last freezes its channels.
        closed: modules whose channels all stay, because no reading of their calls exported exactly.
        heirs: modules that take over the sizes on one line of the module around them: that line calls a method of
            theirs which is not ``forward``, and torch.export credits what happens there to the caller.
        followers: modules that compare what they are given with widths of their own layers, which no call holds; and
            whether with what the first of them reads alone.
        held: positions of tensors that stay, because no export without some of them was exact.
        spared: attributes that keep their numbers, though these are sizes that change too.
    """

    readings: Mapping[str, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    heirs: frozenset[Heir] = frozenset()
    followers: frozenset[Follower] = frozenset()
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

    def spare(self, attributes: Iterable[Spared]) -> Choices:
        """Return the choices with more attributes that keep their numbers."""
        return replace(self, spared=self.spared | set(attributes))

    def inherit(self, modules: Iterable[Heir]) -> Choices:
        """Return the choices with more modules that take over the sizes around them."""
        return replace(self, heirs=self.heirs | set(modules))


Couple = Callable[[Choices], CouplingMap]


def with_spared(model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs) -> CouplingMap:
    """Return the map with the attributes that equal a size by chance: exports hold while these keep their numbers.

    They are tried class by class. Those whose names speak of channels follow in any case.
    """
    if not holds_sizes(coupling, modules_of(model)):
        return coupling
    for alike in _of_one_name(model, doubtful(model, coupling.plan(about_half(coupling, 0).numpy()))):
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
    modules = modules_of(model)
    if fault.inexact and (readings := _other_products(coupling, modules, choices)):
        return choices.read(readings)
    suspects = suspects_in(coupling, modules)
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
    norms = [node for norm in coupling.norms for node in norm.nodes]
    if fault.inexact and (unfrozen := [*(made.node for made in coupling.products), *norms]):
        return choices.read(dict.fromkeys(unfrozen, LAST_RESORT))
    return None


def with_widths_of_own_layers(
    choices: Choices, model: nn.Module, inputs: ExampleInputs, fault: Fault, couple: Couple
) -> Choices | None:
    """Return the choices by which the module that failed holds widths of its own layers, if it fails no more.

    ``assert x.shape[1] == self.channels`` leaves no call in the graph. Modules of one class are read alike.
    """
    modules = modules_of(model)
    path = next(iter(fault.modules), "")
    known = {follower for follower, _ in choices.followers}
    if not fault.what.startswith(INSISTED) or not path or path in known or is_standard(modules[path]):
        return None
    alike = {other for other, module in modules.items() if type(module) is type(modules[path])} - known
    elsewhere = None
    for of_first in (False, True):
        tried = replace(choices, followers=choices.followers | {(other, of_first) for other in alike})
        outcome = rehearse(model, couple(tried), inputs)
        if isinstance(outcome, Proof):
            return tried
        if alike.isdisjoint(outcome.modules):
            elsewhere = elsewhere or tried
    return elsewhere


def whatever_is_read(
    choices: Choices, model: nn.Module, coupling: CouplingMap, inputs: ExampleInputs, fault: Fault, couple: Couple
) -> Choices | None:
    """Return the choices without the groups that are to blame even with nothing ambiguous left to read.

    A number from a width beside attention would else cost every reading of the attention before its own groups are
    asked. None if exports hold once every ambiguous call keeps its channels: then one of these is to blame.
    """
    modules = modules_of(model)
    calls = [*suspects_in(coupling, modules), *chain(*_kinds_of_products(coupling, modules).values())]
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
    modules = modules_of(model)
    classes: dict[type[nn.Module], list[str]] = {}
    for node, path in suspects_in(coupling, modules).items():
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
    attributes are tried whose names do not speak of channels, then those of one name in one class after the other.
    Else modules of one class at like places are read alike.
    """
    modules = modules_of(model)
    plan = coupling.plan(about_half(coupling, 0).numpy())
    chance = set(doubtful(model, plan))
    if fault.inexact:
        ways = (
            choices.spare(alike) for alike in [chance, *_of_one_name(model, changed(model, plan))[:MOST_WAYS]] if alike
        )
        return next((tried for tried in ways if isinstance(rehearse(model, couple(tried), inputs), Proof)), None)
    elsewhere = None
    for path in dict.fromkeys(fault.modules):
        names = {spared.attribute: spared in chance for spared in changed(model, plan) if spared.module == path}
        alike = [other for other in modules if _place(modules, other) == _place(modules, path)]
        for chosen in _ways_to_spare(names):
            tried = choices.spare(Spared(*pair) for pair in product(alike, chosen))
            outcome = rehearse(model, couple(tried), inputs)
            if isinstance(outcome, Proof):
                return tried
            if outcome.modules and set(alike).isdisjoint(outcome.modules):
                elsewhere = elsewhere or tried
    return elsewhere


def _of_one_name(model: nn.Module, attributes: Iterable[Spared]) -> list[list[Spared]]:
    """Put attributes of one name in one class together."""
    kinds: dict[tuple[type[nn.Module], str], list[Spared]] = {}
    for spared in attributes:
        kinds.setdefault((type(model.get_submodule(spared.module)), spared.attribute), []).append(spared)
    return list(kinds.values())


def _ways_to_spare(names: Mapping[str, bool]) -> Iterator[list[str]]:
    """Yield attributes to spare: those that equal a size by chance, also with each other one; then without; then all.

    Example:
        >>> list(_ways_to_spare({"heads": False, "buckets": True}))
        [['buckets'], ['buckets', 'heads'], ['heads'], ['heads', 'buckets']]
        >>> list(_ways_to_spare({}))
        []
    """
    chance, others = ([name for name in names if names[name] == doubted] for doubted in (True, False))
    if chance:
        yield chance
    for first in [chance, []] if chance else [[]]:
        yield from ([*first, name] for name in others[:MOST_WAYS])
    if len(names) > 1:
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
    if isinstance(rehearse_at(torch.ones(coupling.units, dtype=torch.bool), model, coupling, inputs), Fault):
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
    for nodes in _kinds_of_products(coupling, modules_of(model)).values():
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
    """Return products between activations, and norms, by the class that writes them; fused attention says its scale.

    Norms that divide by a length are asked the same: whether the number that multiplies them follows from the width.
    """
    kinds: dict[type[nn.Module], list[str]] = {}
    for made in coupling.products:
        if not made.node.startswith(FUSED):
            kinds.setdefault(_writer(modules, made.tensors[0]), []).append(made.node)
    for norm in coupling.norms:
        if norm.nodes:
            kinds.setdefault(type(modules[norm.module]), []).extend(norm.nodes)
    return kinds


def _writer(modules: Mapping[str, nn.Module], tensor: str) -> type[nn.Module]:
    """Return the class whose forward() multiplies what a layer made: the one around the layer."""
    path = layer_of(tensor)
    while path and is_standard(modules[path]) and not isinstance(modules[path], nn.MultiheadAttention):
        path = path.rpartition(".")[0]
    return type(modules[path])


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
