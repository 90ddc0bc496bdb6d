"""From the searched network to the user's own class, plain and slim, proved equal."""

from __future__ import annotations

import reprlib
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from hyperprune.arguments import is_positive
from hyperprune.budget import Budget, Solver
from hyperprune.criteria import criterion as find_criterion
from hyperprune.errors import BudgetError, ModelError, ProofError
from hyperprune.hyper import HyperModel, allowed_widths, hyperize, proof_in_float64, prove, slim_copy
from hyperprune.metering import priced, settled
from hyperprune.schedule import Schedule
from hyperprune.search import search_of
from hyperprune.verify import Proof, full_precision

AMPLIFIED = 1e-3  # a relative error in float32 up to which a proof in float64 will do


def export_pruned(hyper: HyperModel, *, tolerance: float | None = None) -> nn.Module:
    """Return the slim network: the user's own class, plain layers, dead channels gone, latents folded in.

    It has been run beside the searched network on the example inputs (eval mode) and equals it.
    ``hyper`` is not changed, so it can be searched further and exported again.

    Args:
        tolerance: bound on the relative error; by default 1e-4 for float32, 1e-10 for float64, more for
            half precision (``ROUNDING`` in ``hyperprune/verify.py``). A network that amplifies rounding beyond that,
            to 1e-3 at most, is proved in float64 instead, with a warning; not if a tolerance is given.

    Raises:
        ModelError: ``hyper`` is a plain module, has no values, has a layer replaced since, or is an average (EMA) over
            which units live.
        ProofError: the slim network differs by more than the tolerance, or holds weights that are not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hyper = hyperize(model, torch.randn(1, 4))
        >>> hyper.bank.remove_(torch.arange(8) < 5)
        >>> export_pruned(hyper)[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    return export_with_proof(hyper, tolerance=tolerance)[0]


@torch.inference_mode(False)
def export_with_proof(hyper: HyperModel, *, tolerance: float | None = None) -> tuple[nn.Module, Proof]:
    """As ``export_pruned``, and return the proof beside the slim network."""
    if not isinstance(hyper, HyperModel):
        raise ModelError(
            f"export_pruned takes what hyperize returned, not {type(hyper).__name__}. Of a wrapper, such as an average "
            "or a compiled network, give what lies within (.module, ._orig_mod). For one call without training use "
            "prune(model, x, Budget(macs=0.5))."
        )
    if tolerance is not None and not is_positive(tolerance):
        raise ProofError(f"tolerance must be a number above 0, such as 1e-4, not {tolerance!r}.")
    hyper.require_intact()
    _require_known_mask(hyper)
    _warn_of_an_unmet_budget(hyper)
    with full_precision():
        slim = slim_copy(hyper)
    _require_finite(slim)
    try:
        proof = prove(hyper, slim, tolerance)
    except Exception as error:  # whatever the user's forward raises
        raise ProofError(
            f"the slim {type(slim).__name__} does not run: {type(error).__name__}: {error}. Nothing was exported. "
            "A size in forward() does not follow the channels; keep= can hold the layer in question."
        ) from error
    if not proof.holds:
        proof = _settled_finely(hyper, slim, proof, may_pass=tolerance is None)
    return slim, proof


def _settled_finely(hyper: HyperModel, slim: nn.Module, proof: Proof, *, may_pass: bool) -> Proof:
    """Return a proof in float64 in place of one that fails by rounding alone; whatever else fails is an error."""
    refused = f"the slim {type(slim).__name__} does not equal the searched network: {proof}. Nothing was exported. "
    finely = proof_in_float64(hyper)
    if finely is None or not finely.holds:
        raise ProofError(refused + _OF_SIZES)
    if not may_pass or proof.relative_error > AMPLIFIED:
        raise ProofError(refused + _OF_ROUNDING)
    warnings.warn(
        f"the network amplifies rounding: carved and run in float64, the slim {type(slim).__name__} equals the "
        f"searched network ({finely}), but not in their own type ({proof}).",
        stacklevel=5,
    )
    return finely


_OF_SIZES = (
    "If forward() compares sizes (`if y.shape == x.shape`), widths that became equal change what it does: write the "
    "condition without them, or hyperize with keep= for one of these layers."
)
_OF_ROUNDING = (
    "In float64 they are equal: this is rounding, which the network amplifies, as untrained ones may. "
    "export_pruned(copy.deepcopy(hyper).double()).float() is the same slim network with a proof in float64; or pass a "
    "larger tolerance=."
)


def _require_known_mask(hyper: HyperModel) -> None:
    alive = hyper.bank.alive
    if alive.is_meta:
        raise ModelError('the network lies on "meta" and has no values. Export it before it goes there.')
    if not bool(((alive == 0) | (alive == 1)).all()):
        raise ModelError(
            "which units live has been averaged over time: hyper.bank.alive holds fractions. An EMA must copy this "
            "buffer: use AveragedModel(hyper) without use_buffers=True, or call "
            "ema.module.bank.alive.copy_(hyper.bank.alive) before export_pruned(ema.module)."
        )


def _warn_of_an_unmet_budget(hyper: HyperModel) -> None:
    search = search_of(hyper)
    if search is None:
        _warn_of_an_old_copy(hyper)
    elif unmet := search.unmet():
        why = (
            "The search has ended, so its units were changed afterwards: by an older state that was loaded, perhaps. "
            "Load one from after the search, or make a new Search and train on."
            if search.done
            else f"The budget is met at the search's last step, and this one stands at step {search.step_count} of "
            f"{search.steps}: each search.step() is one optimiser step."
        )
        warnings.warn(f"the network that is exported has {unmet}. {why}", stacklevel=5)


def _warn_of_an_old_copy(hyper: HyperModel) -> None:
    """A copy or an average (EMA) from before the search's last step holds what that step removed."""
    if hyper.asked is None or not hyper.asked.asked().keys() <= {"macs", "params"}:
        return
    if unmet := Schedule(hyper, hyper.asked).unmet(hyper.living()):
        warnings.warn(
            f"the network that is exported has {unmet}, which its latest search was asked for. A copy or an average "
            "(EMA) is to be updated after search.step(), the last one too, so that it takes over what was removed.",
            stacklevel=6,
        )


def _require_finite(slim: nn.Module) -> None:
    """A network that computes NaN equals any other one that does, so a proof would say nothing."""
    broken = [name for name, tensor in slim.named_parameters() if not bool(tensor.isfinite().all())]
    broken += [name for name, tensor in slim.named_buffers() if bool(tensor.isnan().any())]
    if broken:
        raise ProofError(
            f"{len(broken)} tensors of {type(slim).__name__} are not finite, {broken[0]!r} first: training has "
            "diverged. Nothing was exported. Go back to a checkpoint from before, and lower the learning rate."
        )


def prune(model: nn.Module, example_inputs: Any, budget: Budget, *, criterion: str = "magnitude") -> nn.Module:
    """Prune in one call, without training: hyperize, score, solve the budget, export, prove.

    Args:
        model: a plain module; it is not changed.
        example_inputs: as for ``hyperize``.
        budget: what the slim network may cost.
        criterion: ``"magnitude"``, or ``"random"`` (drawn from torch's global random state).

    Raises:
        BudgetError: the budget cannot be reached, or the criterion is unknown.
        HyperpruneError: as ``hyperize`` and ``export_pruned``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune(model, torch.randn(1, 4), Budget(macs=0.5))[0].out_features
        4
    """
    if not isinstance(budget, Budget):
        raise BudgetError(f"prune takes a Budget, such as Budget(macs=0.5), not {reprlib.repr(budget)}.")
    score = find_criterion(criterion)
    hyper = hyperize(model, example_inputs)
    ladder, cost = allowed_widths(hyper, budget), priced(hyper, budget)
    solver = Solver(cost, ladder)
    scores = score(hyper.model, hyper.coupling, cost, next(iter(budget.asked())))
    keep = settled(cost, budget.limits(cost.total(cost.full)), lambda limits: solver.solve(scores, limits))
    hyper.bank.keep_(torch.from_numpy(np.asarray(keep)))
    return export_pruned(hyper)
