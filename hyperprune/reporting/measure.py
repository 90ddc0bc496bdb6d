"""``report``: measure a dense and a slim network and say what changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode as MultiplyCounter

from hyperprune.cost import count_with_fvcore
from hyperprune.errors import HyperpruneError, ModelError
from hyperprune.hyper import HyperModel
from hyperprune.latency import LatencyComparison
from hyperprune.plan import layer_of
from hyperprune.plots import layer_widths
from hyperprune.reporting.change import Change
from hyperprune.reporting.data import Latency, LayerChange, PruningReport, StageChange
from hyperprune.reporting.reading import latency_from_json
from hyperprune.reporting.stages import stage_of, stages_of
from hyperprune.search import SearchProgress
from hyperprune.trace import ExampleInputs
from hyperprune.verify import Proof, run_eval

WEIGHTED = ("convolution", "_convolution", "mm", "addmm")  # torch's operators behind convolutions and linear layers
FVCORES = ("conv", "linear", "addmm")  # fvcore's names of the same
EXPORT = "slim network against the searched one"


def report(
    dense: nn.Module,
    slim: nn.Module,
    example_inputs: Any,
    *,
    history: Iterable[SearchProgress] = (),
    accuracy: Mapping[int, float] | None = None,
    latency: LatencyComparison | Iterable[Latency] = (),
    proof: Proof | Mapping[str, Proof] | None = None,
    name: str | None = None,
) -> PruningReport:
    """Measure both networks and return what changed: widths, MACs and parameters per layer, per stage, in total.

    MACs are counted while each network runs once, in eval mode; fvcore counts them again as a second opinion.

    Args:
        dense: the network before pruning.
        slim: what ``export_pruned`` made of it.
        example_inputs: as for ``hyperize``.
        history: ``search.progress()`` at as many steps as you like.
        accuracy: share of examples classified correctly, 0 to 1, by the step of the search.
        latency: what ``compare_latency`` returned; or times of your own, one entry per runtime and batch size.
        proof: from ``export_with_proof``; or several, by what was compared.
        name: name of the network; its class by default.

    Raises:
        ModelError: ``slim`` is no slim copy of ``dense``.
        HyperpruneError: ``history`` or ``accuracy`` hold something else.

    Example:
        >>> from hyperprune import Budget, prune
        >>> dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> found = report(dense, prune(dense, x, Budget(macs=0.5)), x, name="two layers")
        >>> found.macs
        Change(dense=48, slim=24)
        >>> [(layer.name, layer.width) for layer in found.layers]
        [('0', Change(dense=8, slim=4)), ('2', Change(dense=2, slim=2))]
    """
    course = tuple(history)
    _check(dense, slim)
    _check_course(course, accuracy or {})
    inputs = ExampleInputs.of(example_inputs)
    macs = _paired(macs_by_module(dense, inputs), macs_by_module(slim, inputs))
    layers = _layers(dense, slim, macs)
    return PruningReport(
        model=type(dense).__name__ if name is None else name,
        inputs=tuple(f"{'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in inputs.tensors()),
        macs=Change.total(macs.values()),
        params=Change.total(_params(dense, slim).values()),
        counted=_second_opinion(dense, slim, inputs),
        layers=layers,
        stages=_stages(dense, slim, layers, macs),
        history=course,
        accuracy=dict(accuracy or {}),
        latency=latency_from_json(latency.to_json()) if isinstance(latency, LatencyComparison) else tuple(latency),
        proofs={EXPORT: proof} if isinstance(proof, Proof) else dict(proof or {}),
        made_with=_versions(),
    )


def macs_by_module(model: nn.Module, inputs: ExampleInputs) -> Counter[str]:
    """Return the multiply-adds that each module's own ``forward`` does (those of its children left out), by path.

    Only convolutions and products with a matrix count; products between activations (attention) do not.
    """
    macs: Counter[str] = Counter()
    running, seen = [""], 0

    def settle(*_: Any) -> None:
        nonlocal seen
        counts = counter.get_flop_counts().get("Global", {})
        total = sum(count for operator, count in counts.items() if operator.__name__ in WEIGHTED) // 2
        macs[running[-1]] += total - seen
        seen = total

    with MultiplyCounter(display=False) as counter, _watched(model, running, settle), _attention_written_out():
        try:
            run_eval(model, inputs.suiting(model))
        except Exception as error:  # whatever the user's forward raises
            raise inputs.refused(model, error) from error
        settle()
    return +macs


@contextmanager
def _watched(model: nn.Module, running: list[str], settle: Any) -> Iterator[None]:
    """Keep the path of the module that runs at the end of ``running``; call ``settle`` before each change."""

    def enter(path: str, *_: Any) -> None:
        settle()
        running.append(path)

    def leave(*_: Any) -> None:
        settle()
        running.pop()

    handles = [module.register_forward_pre_hook(partial(enter, path)) for path, module in model.named_modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attention_written_out() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from its fused path, in which nothing can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _layers(dense: nn.Module, slim: nn.Module, macs: Mapping[str, Change]) -> tuple[LayerChange, ...]:
    widths = {layer.name: Change(layer.dense, layer.slim) for layer in layer_widths(dense, slim)}
    found = [(path, module) for path, module in dense.named_modules() if path in widths or path in macs]
    stages = stages_of(dense, [path for path, _ in found])
    own = _params(dense, slim)
    return tuple(
        LayerChange(
            name=path,
            kind=type(module).__name__,
            stage=stage_of(path, stages),
            width=widths.get(path),
            macs=macs.get(path, Change(0, 0)),
            params=Change.total(change for name, change in own.items() if layer_of(name) == path),
        )
        for path, module in found
    )


def _stages(
    dense: nn.Module, slim: nn.Module, layers: tuple[LayerChange, ...], macs: Mapping[str, Change]
) -> tuple[StageChange, ...]:
    """Return all stages; every module and every parameter lies in exactly one."""
    stages = stages_of(dense, [layer.name for layer in layers])
    params = _params(dense, slim)
    homes = {name: stage_of(name, stages) for name in (*params, *macs)}
    count = Counter(layer.stage for layer in layers)
    order = dict.fromkeys([*stages, *homes.values()])
    return tuple(
        StageChange(
            name=stage,
            layers=count[stage],
            macs=Change.total(change for path, change in macs.items() if homes[path] == stage),
            params=Change.total(change for name, change in params.items() if homes[name] == stage),
        )
        for stage in order
        if stage in homes.values()
    )


def _params(dense: nn.Module, slim: nn.Module) -> dict[str, Change]:
    return _paired(*({name: tensor.numel() for name, tensor in model.named_parameters()} for model in (dense, slim)))


def _paired(dense: Mapping[str, int], slim: Mapping[str, int]) -> dict[str, Change]:
    return {name: Change(dense.get(name, 0), slim.get(name, 0)) for name in dict.fromkeys([*dense, *slim])}


def _second_opinion(dense: nn.Module, slim: nn.Module, inputs: ExampleInputs) -> Change | None:
    try:
        counts = [count_with_fvcore(model, inputs).by_operator for model in (dense, slim)]
    except Exception:  # fvcore traces with torch.jit, which refuses some models; the report then says so
        return None
    return Change(*(sum(count.get(name, 0) for name in FVCORES) for count in counts))


def _check_plain(model: object) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, HyperModel):
        raise ModelError(
            f"report compares two plain networks, not a {type(model).__name__}: report(model, export_pruned(hyper), x)."
        )


def _check(dense: nn.Module, slim: nn.Module) -> None:
    _check_plain(dense)
    _check_plain(slim)
    known = dict(dense.named_modules())
    strangers = [path for path, module in slim.named_modules() if path not in known and list(module.parameters())]
    if strangers:
        raise ModelError(
            f"the slim network has a layer {strangers[0]!r} that the dense one lacks, so they are not the same "
            "architecture. Pass the network that was pruned first, and what export_pruned made of it second."
        )
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.named_parameters()} for model in (dense, slim)]
    wider = [name for name, shape in shapes[1].items() if math.prod(shape) > math.prod(shapes[0].get(name, shape))]
    if wider:
        raise ModelError(
            f"{wider[0]!r} is larger in the slim network ({shapes[1][wider[0]]}) than in the dense one "
            f"({shapes[0][wider[0]]}). Pass the dense network first."
        )


def _check_course(history: tuple[object, ...], accuracy: Mapping[int, float]) -> None:
    strangers = [item for item in history if not isinstance(item, SearchProgress)]
    if strangers:
        raise HyperpruneError(
            f"history takes what search.progress() returned at some steps, not {type(strangers[0]).__name__}."
        )
    wrong = [share for share in accuracy.values() if not 0 <= share <= 1]
    if wrong:
        raise HyperpruneError(f"accuracy is a share of the examples, from 0 to 1, by the step; {wrong[0]!r} is not.")


def _versions() -> str:
    return f"hyperprune {version('hyperprune')}, torch {torch.__version__}"
