"""What the zoo table measures on one model, with hyperprune and with Torch-Pruning (runs in a child process)."""

from __future__ import annotations

import copy
import resource
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

Record = dict[str, Any]
SEGMENTATION = ("deeplab", "fcn_", "lraspp")
LINEAR = ("mm", "addmm")
CLASSES = (1000, 21)
ROUNDING, ROUNDING64 = 1e-5, 1e-9
ROUNDS = 2  # of the second opinion
REMOVALS = ((2, 0.5), (3, 0.8), (4, 0.25))  # seed, and the share of units that stays


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights, every constant tensor redrawn, and an input of its default size."""
    library, _, short = name.partition("/")
    torch.manual_seed(0)
    if library == "torchvision":
        model, size = _torchvision(short)
    else:
        import timm

        model = timm.create_model(short, pretrained=False)
        size = timm.data.resolve_model_data_config(model)["input_size"]
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    enliven_(model.eval(), x)
    return model, x


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import torchvision

    options: Record = {"weights": None}
    if name.startswith(SEGMENTATION):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default takes half a minute, and is drawn anew below
    side = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, **options), (3, side, side)


@torch.no_grad()
def enliven_(model: nn.Module, x: Tensor) -> None:
    """Redraw every constant tensor, and give batch norms statistics of their own, so that no branch is silent.

    Scales that are all one (or tiny, as layer scale) and single numbers (zero, as the gains of branches) become
    U(0.5, 1.5), zero vectors N(0, 0.1), zero matrices random. Each batch norm takes the statistics of what arrives,
    set off by up to a deviation.
    """
    rng = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        if tensor.is_floating_point() and bool((tensor == tensor.flatten()[0]).all()):
            zero = tensor.numel() > 1 and not bool(tensor.any())
            fan = tensor[0].numel() if tensor.ndim > 1 else 100
            drawn = torch.randn(tensor.shape, generator=rng) / fan**0.5 if zero else None
            tensor.copy_(drawn if drawn is not None else torch.rand(tensor.shape, generator=rng) + 0.5)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    model(x)
    for hook in hooks:
        hook.remove()


def _take_statistics(norm: nn.Module, args: tuple[Any, ...]) -> None:
    x: Tensor = args[0]
    count = len(norm.running_mean)
    rng = torch.Generator().manual_seed(count)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if x.numel() // count < 8:
        norm.running_mean.copy_(torch.randn(count, generator=rng) / 10)
        norm.running_var.copy_(torch.rand(count, generator=rng) + 0.5)
        return
    variance, mean = torch.var_mean(x, dim=axes, correction=0)
    norm.running_mean.copy_(mean + variance.sqrt() * (2 * torch.rand(count, generator=rng) - 1))
    norm.running_var.copy_(variance.clamp_min(1e-3) * (torch.rand(count, generator=rng) + 0.5))


@torch.no_grad()
def weight_macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Count multiply-adds of convolutions and of products with two axes, by torch's own counter."""
    counter = FlopCounterMode(display=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # the counter trips over parameters that are expanded without gradients
    with counter:
        model(x)
    for parameter in trained:
        parameter.requires_grad_(True)
    flops: Counter[str] = Counter()
    for operator, count in counter.get_flop_counts()["Global"].items():
        flops[str(operator).split(".")[-1]] += count
    convolution = flops.pop("convolution", 0) // 2
    linear = sum(flops.pop(kind, 0) for kind in LINEAR) // 2
    return {"conv": convolution, "linear": linear, "between": sum(flops.values()) // 2}


def peak_mb() -> float:
    """Return the largest memory this process ever held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe(error: BaseException) -> str:
    """Return an error in one string, with the last line of this package it passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "hyperprune" in f.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {error}"[:3000]


def try_hyperprune(name: str) -> Record:
    """Hyperize a model, ask for a second opinion, remove random units several times, export, and compare."""
    from hyperprune.errors import HyperpruneError
    from hyperprune.hyper import hyperize
    from hyperprune.verify import tensors_of

    model, x = build(name)
    record: Record = {"params": sum(p.numel() for p in model.parameters()), "input": list(x.shape[1:])}
    with torch.no_grad():
        dense = model(x)
    record["macs"] = weight_macs(model, x)
    before, started = peak_mb(), time.perf_counter()
    try:
        hyper = hyperize(model, x)
    except HyperpruneError as error:
        return record | {"status": "refused", "message": describe(error)}
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["peak_mb"], record["grown_mb"] = round(peak_mb()), round(peak_mb() - before)
    coupling = hyper.coupling
    record |= {"groups": len(coupling.groups), "units": coupling.units, **_shares(hyper, model, record["macs"])}
    record["frozen"] = _stays(coupling)
    with torch.no_grad():
        again = [torch.equal(a, b) for a, b in zip(tensors_of(dense), tensors_of(hyper(x)), strict=True)]
    record["bit_exact"] = all(again)
    record["opinion"] = _opinion(hyper)
    try:
        record |= _removals(hyper, dense)
    except Exception as error:
        return record | {"status": "export fails", "message": describe(error)}
    exact = record["error"] <= ROUNDING or record.get("error64", 1) <= ROUNDING64
    return record | {"status": "exact" if exact else "wrong"}


def _removals(hyper: Any, dense: Any) -> Record:
    """Remove random units and export, several times: the largest error, and what the first removal did."""
    from hyperprune.hyper import prove, slim_copy
    from hyperprune.verify import compare, run_eval

    record: Record = {"error": 0.0}
    for seed, share in REMOVALS:
        keep = torch.rand(hyper.coupling.units, generator=torch.Generator().manual_seed(seed)) < share
        for group in hyper.coupling.groups:
            keep[group.start + group.size - group.least : group.start + group.size] = True
        hyper.bank.keep_(keep)
        slim = slim_copy(hyper)
        error = prove(hyper, slim).relative_error
        record["error"] = max(record["error"], error)
        if "power" not in record:
            record["power"] = compare(dense, run_eval(hyper.model, hyper.inputs)).relative_error
            record["slim_params"] = sum(p.numel() for p in slim.parameters())
        if error > ROUNDING:  # is it rounding, or is it wrong?
            finer = copy.deepcopy(hyper).double()
            record["error64"] = max(record.get("error64", 0.0), prove(finer, slim_copy(finer)).relative_error)
    return record


def _opinion(hyper: Any) -> Record:
    """Ask for a second opinion on the coupling, in float64 too where float32 leaves a doubt."""
    from tests.second_opinion import second_opinion

    found = second_opinion(hyper, rounds=ROUNDS)
    doubt = not found.agrees
    if doubt:
        found = second_opinion(copy.deepcopy(hyper).double(), rounds=ROUNDS)
    leaks = dict(list(found.leaks.items())[:5])
    state = {"agrees": found.agrees, "change": found.change, "leaks": leaks, "in_float64": doubt}
    return state | {"asked": found.asked, "felt": found.felt}


def _shares(hyper: Any, model: nn.Module, macs: dict[str, int]) -> Record:
    """Return the share of MACs that goes when every group keeps one unit, over all MACs and by kind."""
    gone: Counter[str] = Counter()
    least = np.array([group.least for group in hyper.coupling.groups])
    layers = [hyper.cost.layers(counts) for counts in (hyper.cost.full, least)]
    for full, least in zip(*layers, strict=True):
        gone["conv" if len(full.shape) > 2 else "linear"] += full.macs - least.macs
    known = hyper.cost.total(hyper.cost.full).macs
    total = max(macs["conv"] + macs["linear"], known)
    shares: Record = {"prunable": sum(gone.values()) / total, "macs_known": known}
    for kind in ("conv", "linear"):
        shares[f"prunable_{kind}"] = min(1.0, gone[kind] / macs[kind]) if macs[kind] else None
    return shares


def _stays(coupling: Any) -> list[Record]:
    """Return the channels that stay, summed by reason, with one place for each."""
    channels: Counter[str] = Counter()
    places: dict[str, str] = {}
    for frozen in coupling.frozen:
        channels[frozen.reason] += frozen.channels
        places.setdefault(frozen.reason, f"{frozen.layer} <- {frozen.where}")
    return [{"reason": r, "channels": n, "first": places[r]} for r, n in channels.most_common()]


def try_torch_pruning(name: str) -> Record:
    """Prune half of the channels with Torch-Pruning, and compare with the dense model, the same channels silent."""
    import torch_pruning as tp

    model, x = build(name)
    record: Record = {"params": sum(p.numel() for p in model.parameters())}
    dense = copy.deepcopy(model)
    ignored = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) in CLASSES]
    started = time.perf_counter()
    try:
        heads = {m.qkv: m.num_heads for m in model.modules() if _has_heads(m)}
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(
            model, x, importance, pruning_ratio=0.5, ignored_layers=ignored, num_heads=dict(heads)
        )
        silence = _Silence(pruner.DG, model)
        for group in pruner.step(interactive=True):
            silence.note(group)
            group.prune()
        _set_heads_(model, pruner.num_heads)
    except Exception as error:
        return record | {"status": "does not build", "message": _short(error)}
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["slim_params"] = sum(p.numel() for p in model.parameters())
    try:
        with torch.no_grad():
            found = model(x)
    except Exception as error:
        return record | {"status": "does not run", "message": _short(error)}
    if record["slim_params"] == record["params"]:
        return record | {"status": "prunes nothing"}
    return record | _judge(dense, silence, x, found)


def _has_heads(module: nn.Module) -> bool:
    return isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads")


def _set_heads_(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Repair what Torch-Pruning leaves to the user, as its own example for timm's transformers does."""
    for module in model.modules():
        if _has_heads(module):
            module.num_heads = heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)


def _judge(dense: nn.Module, silence: _Silence, x: Tensor, found: Any) -> Record:
    from hyperprune.verify import compare

    with torch.no_grad():
        before = dense(x)
        if silence.broken:
            return {"status": "runs, not tested", "message": silence.broken}
        try:
            silence.apply_(dense)
            reference = dense(x)
        except Exception as error:
            return {"status": "runs, not tested", "message": _short(error)}
        try:
            error = compare(reference, found).relative_error
        except Exception as problem:  # the outputs differ in shape
            return {"status": "wrong", "message": _short(problem)}
    status = "exact" if error <= 1e-4 else "wrong"
    return {"status": status, "error": error, "power": compare(before, reference).relative_error}


def _short(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"[:300]


class _Silence:
    """The channels that Torch-Pruning took, in the dense model's numbering, and how to silence them there.

    Whatever reads a removed channel gets zero weights for it. Layer norms take their statistics over the channels
    that are left, as the pruned network's do.
    """

    def __init__(self, graph: Any, model: nn.Module) -> None:
        self._graph = graph
        self._names = {module: name for name, module in model.named_modules()}
        self._left: dict[tuple[str, str], Tensor] = {}
        self._gone: dict[tuple[str, str], list[int]] = {}
        self.broken = ""

    def note(self, group: Any) -> None:
        """Note what one group takes, before it is pruned."""
        try:
            self._note(group)
        except Exception as error:  # a shortcoming of this test, not of what it tests
            self.broken = _short(error)

    def _note(self, group: Any) -> None:
        for dependency, indices in group:
            module, handler = dependency.target.module, dependency.handler
            if module not in self._names:
                continue
            reads = self._graph.is_in_channel_pruning_fn(handler)
            side = "in" if reads and not isinstance(module, (nn.LayerNorm, nn.GroupNorm)) else "out"
            self._take(self._names[module], side, module, [int(index) for index in indices])

    def _take(self, name: str, side: str, module: nn.Module, indices: list[int]) -> None:
        size = _width(module, side)
        if size is None:
            return
        left = self._left.setdefault((name, side), torch.arange(size))
        self._gone.setdefault((name, side), []).extend(left[indices].tolist())
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[indices] = False
        self._left[name, side] = left[stays]

    def apply_(self, dense: nn.Module) -> None:
        """Silence the channels in the dense model, in place."""
        for (name, side), gone in self._gone.items():
            module = dense.get_submodule(name)
            left = self._left[name, side]
            if isinstance(module, nn.GroupNorm):
                raise NotImplementedError("a pruned group norm: its groups have no counterpart in the dense model")
            if isinstance(module, nn.LayerNorm):
                _narrow_norm_(module, left)
            elif side == "in":
                _silence_reader_(module, gone)


def _width(module: nn.Module, side: str) -> int | None:
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return getattr(module, "num_channels", None) or module.normalized_shape[-1]
    if isinstance(module, _ConvNd):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    return None


@torch.no_grad()
def _silence_reader_(module: nn.Module, gone: list[int]) -> None:
    groups = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):
        module.weight[gone] = 0
        return
    if groups == 1:
        module.weight[:, gone] = 0
        return
    made, read = module.out_channels // groups, module.in_channels // groups
    for channel in gone:
        group = channel // read
        module.weight[group * made : (group + 1) * made, channel % read] = 0


def _narrow_norm_(module: nn.LayerNorm, left: Tensor) -> None:
    channels = module.normalized_shape[-1]

    def forward(x: Tensor) -> Tensor:
        axis = -1 if x.shape[-1] == channels and not type(module).__name__.endswith("2d") else 1
        inside = x.movedim(axis, -1)
        weight, bias = (None if v is None else v[left] for v in (module.weight, module.bias))
        out = torch.zeros_like(inside)
        out[..., left] = F.layer_norm(inside[..., left], (len(left),), weight, bias, module.eps)
        return out.movedim(-1, axis)

    module.forward = forward  # type: ignore[method-assign]
