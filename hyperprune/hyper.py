"""``hyperize``: from a trained network to one whose weights are generated from latents."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune.budget import Budget, Ladder
from hyperprune.checks import require_fixed_weights, require_hyperizable, require_same_device
from hyperprune.copies import copied
from hyperprune.cost import CostModel
from hyperprune.coupling import Branch, CouplingMap, Site, build, find_branches
from hyperprune.edits import edited
from hyperprune.errors import ModelError, SavingError
from hyperprune.generators import Generator, Lean, attach, generated
from hyperprune.labels import Attention, flow
from hyperprune.latents import LatentBank
from hyperprune.norms import attach_norms, detach_norms
from hyperprune.plan import WidthPlan
from hyperprune.rehearsal import Choices, first_readings, for_other_sizes, least_tied, with_spared
from hyperprune.selection import Pattern, select_layers
from hyperprune.slim import carve_
from hyperprune.tables import in_float64_, tables_of, to_attributes_, to_buffers_
from hyperprune.trace import ExampleInputs, Trace, drop_caches_, is_of_libraries, trace
from hyperprune.verify import Proof, compare, rounding, run_eval, tensors_of


class HyperModel(nn.Module):
    """The user's model with generated weights.

    Made by ``hyperize``; computes what the model computed. ``model`` is the transformed copy, of the user's own
    class, so ``hyper.model.forward_features`` and the like still work.

    Attributes:
        model: the transformed copy.
        bank: owner of all latents.
        norms: what lets norms over channels count the living ones only.
        coupling: what is tied to what, what stays and why; print it.
        cost: MACs and parameters at any widths.
        inputs: the example inputs, for the proof at export.
        generated: names of the parameters that are generated.
        asked: the budget of the latest search, None before any.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hyper = hyperize(model, torch.randn(1, 4))
        >>> type(hyper.model).__name__, hyper.coupling.units, hyper.cost.total(hyper.cost.full).macs
        ('Sequential', 8, 48)
        >>> optimizer = torch.optim.AdamW(hyper.parameter_groups(lr=1e-3, weight_decay=0.05))
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.05, 0.0]
    """

    def __init__(
        self,
        model: nn.Module,
        bank: LatentBank,
        coupling: CouplingMap,
        cost: CostModel,
        inputs: ExampleInputs,
        norms: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.bank = bank
        self.norms = nn.ModuleList() if norms is None else norms
        self.coupling = coupling
        self.cost = cost
        self.inputs = inputs
        self.generated = frozenset(generated(model))
        self.asked: Budget | None = None
        for part in (self, *bank.modules(), *self.norms.modules()):
            part.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __copy__(self) -> HyperModel:
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> HyperModel:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SavingError(
            "a hyperized network cannot be pickled. To go on later, save hyper.state_dict(), search.state_dict() and "
            "the optimiser's; to keep the slim network, save_pruned(export_pruned(hyper), path)."
        )

    def parameter_groups(self, lr: float, weight_decay: float = 0.0, **options: Any) -> list[dict[str, Any]]:
        """Return two parameter groups for any optimiser: the model's parameters, and the latents.

        The latents take the same learning rate and no weight decay: decay would press survivors too.

        Args:
            lr: learning rate.
            weight_decay: decay of the model's parameters.
            options: anything else the optimiser takes per group.

        Raises:
            ModelError: FSDP has cut the latents into shards; the message says how to leave them whole.
        """
        self.bank.require_whole()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return [
            {"params": weights, "lr": lr, "weight_decay": weight_decay, **options},
            {"params": [self.bank.latents], "lr": lr, "weight_decay": 0.0, **options},
        ]

    def living(self) -> Tensor:
        """Return which units live, bool, shape ``[units]``."""
        return self.bank.living()

    def plan(self) -> WidthPlan:
        """Return the widths of the network as it is now."""
        return self.coupling.plan(self.living().cpu().numpy())

    def require_intact(self) -> None:
        """Make sure that every layer with channels to lose is still the one that was hyperized.

        Raises:
            ModelError: one was replaced or wrapped since.
        """
        for site in self.coupling.sites:
            if not _is_as_made(self.model, site, site.tensor in self.generated):
                path, _, name = site.tensor.rpartition(".")
                raise ModelError(
                    f"layer {path!r} was replaced or wrapped after hyperize: {name!r} is not what was hyperized. "
                    "Change the model first (a new head, adapters), then call hyperize."
                )

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint of what the state belongs to, uint8 of shape ``[32]``; ``state_dict`` holds it.

        Units are numbered by the coupling, so latents of another network, or of other ``keep=``, could fit in
        number and still belong to other channels.
        """
        parts: list[object] = [(name, tuple(tensor.shape)) for name, tensor in self.named_parameters()]
        parts += [(site.tensor, site.axis, site.role, site.units) for site in self.coupling.sites]
        parts += [(group.start, group.size) for group in self.coupling.groups]
        return torch.tensor(list(hashlib.sha256(repr(parts).encode()).digest()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Compare fingerprints; ``load_state_dict`` calls this before it copies anything.

        Raises:
            ModelError: the state belongs to something else.
        """
        if not isinstance(state, Tensor) or not torch.equal(state.cpu(), self.get_extra_state()):
            raise ModelError(
                "the state is of another network, or of one hyperized with another generator, keep= or only=. Call "
                "hyperize with the model and the options of the run that saved it, then load the state."
            )

    def extra_repr(self) -> str:
        return f"groups={len(self.coupling.groups)}, units={self.coupling.units}"


@torch.inference_mode(False)
def hyperize(
    model: nn.Module,
    example_inputs: Any,
    *,
    generator: Generator | None = None,
    keep: Iterable[Pattern] = (),
    only: Iterable[Pattern] = (),
    attention: Attention = "heads",
) -> HyperModel:
    """Give every layer that reads removable channels a weight generated from latents.

    The result computes the same outputs as ``model``, bit for bit, in eval and in train mode, but for a generator
    that starts from scratch. ``model`` itself is not changed: parameters, buffers, mode, gradients, hooks and the
    global random state stay as found.

    Everything that is offered as prunable has been exported once on the example inputs, or on a part of large ones if
    all layers are torch's, torchvision's or timm's: a random half of all units is removed, and the slim network must
    equal the zeroed one. Where an example is ``torch.zeros``, or an image of ones, numbers are drawn for that and for
    the proof at export: those would hide mistakes.

    Args:
        model: a plain module (wrap it in DistributedDataParallel or torch.compile afterwards).
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for one forward call.
        generator: how weights are generated; ``Lean()`` by default, or ``DHP()``.
        keep: layers whose output channels stay: names, globs (``"layer4.*"``), classes, or functions of
            name and module.
        only: if given, the channels of all other layers stay.
        attention: what attention loses: ``"heads"``, whole ones, or ``"width"``, the same channels inside every head.
            A single head always loses width.

    Raises:
        ModelError: not a plain module: wrapped, already hyperized, or with parametrized layers; or a pattern
            of ``keep`` or ``only`` matches nothing.
        InputsError: the example inputs are of the wrong type or device, or the model fails on them.
        TraceError: the forward pass cannot be traced.
        NothingPrunableError: nothing may be removed; the message says why.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
        >>> x = torch.randn(1, 3, 4, 4)
        >>> hyper = hyperize(model, x)
        >>> torch.equal(hyper(x), model(x))
        True
    """
    require_hyperizable(model)
    if attention not in get_args(Attention):
        raise ModelError(f"attention must be one of {', '.join(map(repr, get_args(Attention)))}, not {attention!r}.")
    generator = Lean() if generator is None else generator
    if isinstance(generator, type) or not isinstance(generator, Generator):
        raise ModelError(f"generator must be a generator, such as DHP(), not {generator!r}.")
    inputs = ExampleInputs.of(example_inputs).map(lambda t: t.clone() if t.is_inference() else t)
    require_same_device(model, inputs)
    tables = tables_of(model)
    base = to_buffers_(_copy(model), tables)  # a stream that meets them can lose channels then
    require_fixed_weights(base)
    traces = trace(base, inputs)
    if not is_of_libraries(base) and not all(map(torch.equal, base.parameters(), model.parameters())):
        base = to_buffers_(_copy(model), tables)  # forward() sets some parameters at its first run
    drop_caches_(base)
    inputs = _lively(base, inputs)
    unreached = {name for name, _ in base.named_parameters()} - set().union(*(t.used() for t in traces))
    kept, changing = _kept(model, keep, only), edited(base, inputs)

    def offered(traces: tuple[Trace, ...]) -> CouplingMap:
        def couple(choices: Choices) -> CouplingMap:
            ledger = flow(traces, choices.readings, attention)
            found = build(
                ledger, base, unreached, choices.closed, kept, choices.heirs, choices.followers, choices.held, changing
            )
            return replace(found, spared=tuple(sorted(choices.spared)))

        return least_tied(base, inputs, couple, first_readings([trace.graph for trace in traces], couple))

    coupling = for_other_sizes(base, inputs, offered(traces), lambda other: offered((*traces, trace(base, other)[0])))
    found = replace(coupling, branches=find_branches(traces[0], coupling))
    to_attributes_(base, tables, but=[site.tensor for site in coupling.sites])
    return _assemble(base, with_spared(base, found, inputs), generator, inputs)


def _lively(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """Return inputs that let exports be compared, if the model takes others than those of the user."""
    lively = inputs.lively()
    if lively is inputs:
        return inputs
    try:
        found = tensors_of(run_eval(_copy(model), lively))
    except Exception:  # whatever the user's forward raises
        return inputs
    return lively if all(bool(tensor.isfinite().all()) for tensor in found) else inputs


def _kept(model: nn.Module, keep: Iterable[Pattern], only: Iterable[Pattern]) -> frozenset[str]:
    """Return the paths of modules whose output channels stay because the user says so."""
    kept = select_layers(model, keep, "keep")
    if chosen := select_layers(model, only, "only"):
        kept |= {path for path, _ in model.named_modules(remove_duplicate=False)} - chosen
    return kept


def slim_copy(hyper: HyperModel) -> nn.Module:
    """Return a plain, physically smaller copy of the network as it is now, latents folded in (no proof)."""
    return carve_(plain_copy(hyper), hyper.plan())


def plain_copy(hyper: HyperModel) -> nn.Module:
    """Return a copy of the full-width network with plain layers whose weights are the generated ones.

    Its norms read all channels again, so with dead channels it equals the network only once these are carved out.
    """
    with hyper.bank.still():
        plain = copied(hyper.model)
        detach_norms(plain)
    return plain


def allowed_widths(hyper: HyperModel, budget: Budget) -> Ladder:
    """Return the widths that a budget allows; branches are tried first, if it asks for depth.

    Raises:
        BudgetError: a pattern matches no group, or a floor lies above a ceiling.
    """
    return Ladder.of(hyper.coupling.groups, budget, closable_branches(hyper) if budget.depth else ())


def closable_branches(hyper: HyperModel) -> tuple[Branch, ...]:
    """Return the residual branches that can be closed: closing them has been tried on a copy, and was exact.

    All are closed together; those that fail are found one by one.
    """
    branches = hyper.coupling.branches
    if not branches or _closes(hyper, branches):
        return branches
    sound = tuple(branch for branch in branches if _closes(hyper, (branch,)))
    return sound if sound and _closes(hyper, sound) else ()


def _closes(hyper: HyperModel, branches: tuple[Branch, ...]) -> bool:
    tried = copied(hyper)
    keep = torch.ones(hyper.coupling.units, dtype=torch.bool)
    for group in (hyper.coupling.groups[at] for branch in branches for at in branch.groups):
        keep[group.units] = False
    tried.bank.keep_(keep)
    try:
        return prove(tried, slim_copy(tried)).holds
    except Exception:  # whatever the user's forward raises where a layer is missing
        return False


def prove(hyper: HyperModel, slim: nn.Module, tolerance: float | None = None) -> Proof:
    """Compare a slim model with the searched network on the example inputs, in eval mode.

    Where large numbers in the outputs could hide a difference in small ones, copies in float64 are compared too.
    """
    proof = _compared(hyper, slim, tolerance)
    if tolerance is None:
        proof = replace(proof, tolerance=max(proof.tolerance, rounding(slim)))
    if proof.holds and proof.uneven and tolerance is None and next(slim.parameters()).dtype == torch.float32:
        return proof_in_float64(hyper) or proof
    return proof


def _compared(hyper: HyperModel, slim: nn.Module, tolerance: float | None) -> Proof:
    inputs = hyper.inputs.suiting(hyper.model)
    with hyper.bank.still():
        return compare(run_eval(hyper.model, inputs), run_eval(slim, inputs), tolerance)


def proof_in_float64(hyper: HyperModel) -> Proof | None:
    """Compare copies in float64, where rounding all but vanishes; None if the network runs in its own type alone."""
    try:
        finer = copied(hyper)
        in_float64_(finer)
        return _compared(finer, slim_copy(finer), None)
    except Exception:  # whatever the user's forward raises
        return None


def _assemble(model: nn.Module, coupling: CouplingMap, generator: Generator, inputs: ExampleInputs) -> HyperModel:
    cost = CostModel(coupling, model)
    bank = LatentBank(coupling.groups)
    bank.to(next(model.parameters()).device)
    attach(model, bank, coupling, generator, torch.initial_seed() % 2**63)
    return HyperModel(model, bank, coupling, cost, inputs, attach_norms(model, bank, coupling))


def _is_as_made(model: nn.Module, site: Site, is_generated: bool) -> bool:
    """Say whether a site's tensor is still generated, or else still as long along its axis."""
    path, _, name = site.tensor.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    if is_generated:
        return parametrize.is_parametrized(module, name)
    tensor = getattr(module, name, None)
    return isinstance(tensor, Tensor) and tensor.shape[site.axis : site.axis + 1] == (len(site.units),)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). hyperize works on a "
            "copy; drop attributes that cannot be copied, such as locks, open files and generators."
        ) from error
