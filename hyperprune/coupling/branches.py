"""Residual branches that can be closed: without their inner channels they add a constant to what runs past them."""

from __future__ import annotations

from collections import defaultdict

import torch.fx

from hyperprune.coupling.map import STAYS, Branch, CouplingMap, Site
from hyperprune.plan import layer_of
from hyperprune.trace import Trace

AXES = {"conv": 1, "linear": -1}  # where the channels of a layer's output lie, by the operator's name


def find_branches(trace: Trace, coupling: CouplingMap) -> tuple[Branch, ...]:
    """Return the branches that end in a layer whose output is added to something of the same shape.

    Closing one takes all channels that this layer reads, and all that only serve to make them. No layer in between
    may read or make anything else, and every layer that starts the branch must be given what has the sizes of its end:
    then the layers can be left out. Branches that overlap are closed by the smaller one only.
    """
    finder = _Finder(coupling, _Graph(trace))
    ends = [site for site in coupling.sites if site.role == "reads" and STAYS not in site.units]
    found = [branch for end in ends if (branch := finder.branch(end)) is not None]
    taken: set[int] = set()
    kept = []
    for branch in sorted(found, key=lambda branch: len(branch.groups)):
        if not taken & set(branch.groups):
            taken.update(branch.groups)
            kept.append(branch)
    return tuple(sorted(kept, key=lambda branch: branch.groups))


class _Finder:
    """Collects what must go together with the channels that a layer reads."""

    def __init__(self, coupling: CouplingMap, graph: _Graph) -> None:
        self._coupling = coupling
        self._graph = graph
        self._sites: dict[str, list[Site]] = defaultdict(list)
        self._layers: dict[int, set[str]] = defaultdict(set)
        for site in coupling.sites:
            self._sites[site.module].append(site)
            for group in coupling.groups_at(site):
                self._layers[group].add(site.module)
        self._needed = _needed(coupling)
        self._sizes = _sizes(coupling)

    def branch(self, end: Site) -> Branch | None:
        """Return the branch that a layer ends, if there is one."""
        join = self._graph.joined(end.tensor)
        if join is None:
            return None
        closed, layers = self._closure(end)
        starts = self._starts(end, closed, layers)
        needed = self._needed.union(*(groups for path, groups in self._sizes.items() if path not in layers))
        if closed & needed or not starts or not all(self._graph.fits(tensor, join) for tensor in starts):
            return None
        first = {layer_of(tensor) for tensor in starts}
        within = layers - first - {end.module}
        return Branch(end.module, tuple(sorted(closed)), tuple(sorted(first)), tuple(sorted(within)), join.axis)

    def _closure(self, end: Site) -> tuple[frozenset[int], set[str]]:
        """Return the groups that nobody reads once the end reads nothing, and the layers that hold any of them."""
        closed = self._coupling.groups_at(end)
        while True:
            layers = set().union(*(self._layers[group] for group in closed))
            near = {g for path in layers for site in self._sites[path] for g in self._coupling.groups_at(site)}
            groups = {at: self._coupling.groups[at] for at in near - closed}
            idle = {at for at, group in groups.items() if group.readers and layers.issuperset(group.readers)}
            if not idle:
                return closed, layers
            closed |= idle

    def _starts(self, end: Site, closed: frozenset[int], layers: set[str]) -> list[str]:
        """Return the weights that make channels of the branch and read none; empty if this is no branch."""
        makes: set[str] = set()
        reads: set[str] = set()
        for site in (site for path in layers for site in self._sites[path]):
            here = self._coupling.groups_at(site)
            inner = here <= closed
            if here & closed and (not inner or STAYS in site.units):
                return []  # channels of the branch lie beside others
            if inner and site.role != "along":
                (reads if site.role == "reads" else makes).add(site.tensor)
        nested = any(other.startswith(f"{path}.") for path in layers for other in layers)
        if nested or reads - makes != {end.tensor}:
            return []
        return sorted(tensor for tensor in makes - reads if self._graph.calls(tensor))


def _needed(coupling: CouplingMap) -> set[int]:
    """Return the groups that a norm over channels, a product or a standardised weight cannot do without."""
    units = [norm.units for norm in coupling.norms]
    units += [part for product in coupling.products for part in (product.units, product.slots)]
    units += [site.units for site in coupling.sites if site.tensor in coupling.standardised]
    groups = coupling.of_unit()
    return {int(groups[unit]) for several in units for unit in several if unit != STAYS}


def _sizes(coupling: CouplingMap) -> dict[str, set[int]]:
    """Return by module the groups whose channels decide a size in its ``forward``."""
    groups = coupling.of_unit()
    found: dict[str, set[int]] = defaultdict(set)
    for size in coupling.sizes:
        if size.can_change:
            found[size.module] |= {int(groups[unit]) for slot in size.slots for unit in slot if unit != STAYS}
    return found


class _Join:
    """Where a layer's output is added to something else."""

    def __init__(self, call: torch.fx.Node, axis: int) -> None:
        self.axis = axis
        self.shape = _without(tuple(call.meta["val"].shape), axis)


class _Graph:
    """Finds the call of a weight, and what becomes of its output."""

    def __init__(self, trace: Trace) -> None:
        self._running = _running(trace)
        self._holders = {
            trace.parameters[node.name]: node
            for node in trace.graph.nodes
            if node.op == "placeholder" and node.name in trace.parameters
        }

    def joined(self, tensor: str) -> _Join | None:
        """Return where the output of this weight's only call is added, nothing but layers of its own in between."""
        call = self._call(tensor)
        if call is None:
            return None
        node = call
        while len(node.users) == 1:
            (user,) = node.users
            others = [other for other in user.all_input_nodes if other is not node and other in self._running]
            if _is_add(user) and len(others) == 1 and _shape(others[0]) == _shape(node):
                return _Join(call, self._axis(call))
            if others or _shape(user) != _shape(node):
                return None
            node = user
        return None

    def calls(self, tensor: str) -> bool:
        """Say whether this is the weight of a layer that is called once, not a scale or a bias."""
        return self._call(tensor) is not None

    def fits(self, tensor: str, join: _Join) -> bool:
        """Say whether what this weight is given has the sizes of the branch's end."""
        call = self._call(tensor)
        assert call is not None
        axis = self._axis(call)
        return axis == join.axis and _without(_shape(call.all_input_nodes[0]), axis) == join.shape

    def _call(self, tensor: str) -> torch.fx.Node | None:
        holder = self._holders.get(tensor)
        users = [] if holder is None else list(holder.users)
        return users[0] if len(users) == 1 and self._axis(users[0]) and users[0].args[1] is holder else None

    def _axis(self, call: torch.fx.Node) -> int:
        name = str(call.target)
        return next((axis for part, axis in AXES.items() if part in name and "transpose" not in name), 0)


def _running(trace: Trace) -> set[torch.fx.Node]:
    """Return the values that depend on the network's inputs."""
    found: set[torch.fx.Node] = set()
    known = {**trace.parameters, **trace.buffers}
    for node in trace.graph.nodes:
        fed = node.op == "placeholder" and node.name not in known
        if fed or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_add(node: torch.fx.Node) -> bool:
    return str(node.target) in ("aten.add.Tensor", "aten.add_.Tensor") and not node.kwargs


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    at = axis % len(shape)
    return shape[:at] + shape[at + 1 :]
