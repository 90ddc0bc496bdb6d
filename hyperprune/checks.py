"""What is refused before anything begins, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from hyperprune.copies import copied
from hyperprune.errors import InputsError, ModelError, NothingPrunableError, listed
from hyperprune.generators import Generated
from hyperprune.trace import ExampleInputs


def require_plain(model: object, where: str) -> None:
    """Make sure that a network is a module, and not wrapped: a wrapper hides its class and its plans.

    Args:
        where: the function that takes it.

    Raises:
        ModelError: it is not, or it is hyperized still.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} takes a torch.nn.Module, not {type(model).__name__}.")
    if is_wrapped(model):
        inner = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
        raise ModelError(f"the model is wrapped in {type(model).__name__}. Pass the plain one: model.{inner}.")
    if is_hyperized(model):
        raise ModelError(
            f"{type(model).__name__} is hyperized: its weights are generated still. {where} takes a plain network: "
            "what export_pruned(hyper) returns, or the dense one. To go on searching later, keep hyper.state_dict()."
        )


def is_wrapped(model: nn.Module) -> bool:
    """Say whether a network stands inside another module that runs it."""
    return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod")


def is_hyperized(model: nn.Module) -> bool:
    """Say whether a network's weights are generated."""
    return any(isinstance(module, Generated) for module in model.modules())


def require_hyperizable(model: object) -> None:
    """Make sure that a network can be copied and given generated weights.

    Raises:
        ModelError: it is no module, wrapped or hyperized already, has layers with spectral norm of torch's old kind
            or without a shape yet, or hooks that hold a part of it.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"hyperize takes a torch.nn.Module, not {type(model).__name__}.")
    if is_hyperized(model):
        raise ModelError("the model is already hyperized. To start again, hyperize the original model.")
    if is_wrapped(model):
        raise ModelError(
            f"the model is wrapped in {type(model).__name__}. Hyperize the plain module, then wrap the result: "
            "DistributedDataParallel(hyperize(model, x)) or torch.compile(hyperize(model, x))."
        )
    for path, module in model.named_modules():
        _check_plain(path, module)
    lazy = [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"{lazy[0]} has no shape yet: its layer is lazy. Call the model once on an example, then hyperize it."
        )
    _check_hooks(model)


def _check_plain(path: str, module: nn.Module) -> None:
    hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
    if "SpectralNorm" in hooks:
        raise ModelError(
            f"layer {path!r} ({type(module).__name__}) has a spectral norm of torch's old kind. Remove it first "
            "(torch.nn.utils.remove_spectral_norm), and put it on the slim network again if need be; or use that of "
            "torch.nn.utils.parametrizations, whose layers keep their channels."
        )
    if hasattr(module, "_orig_mod"):
        raise ModelError(f"layer {path!r} is compiled. Put its _orig_mod back in its place, and compile the result.")


def _check_hooks(model: nn.Module) -> None:
    """A function is not copied with its module: one that holds a part of the model would go on writing into it."""
    parts = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers(), *_containers(model))}
    for path, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), vars(module).get("forward")]
        for hook in (hook for hook in hooks if isinstance(hook, FunctionType)):
            if any(id(held) in parts for held in _held(hook)):
                raise ModelError(
                    f"{hook.__qualname__}, which runs with layer {path!r}, holds a part of the model, in its closure "
                    "or its defaults. hyperize works on a copy, and the function would go on using yours. Make it "
                    "a method (layer.register_forward_hook(self.keep)), or remove it before hyperize."
                )


def _containers(model: nn.Module) -> Iterator[object]:
    """Return the lists and dicts that modules hold as plain attributes."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, (list, dict)) and not name.startswith("_"):
                yield value


def _held(thing: object, depth: int = 4) -> Iterator[object]:
    """Return what a function holds: in its closure, its defaults, and inside what it finds there."""
    inner: list[object] = []
    if isinstance(thing, FunctionType):
        inner += [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        inner += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    elif isinstance(thing, (list, tuple, set)):
        inner += list(thing)
    elif isinstance(thing, dict):
        inner += list(thing.values())
    elif isinstance(thing, MethodType):
        inner += [thing.__self__, thing.__func__]
    elif isinstance(thing, partial):
        inner += [thing.func, *thing.args, *thing.keywords.values()]
    for held in inner:
        yield held
        if depth:
            yield from _held(held, depth - 1)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def require_fixed_weights(base: nn.Module) -> None:
    """Make sure that no layer edits its weights in train() and eval(): a generated weight would not take the edit.

    Raises:
        ModelError: one does.
    """
    if all(type(module).train is nn.Module.train and type(module).eval is nn.Module.eval for module in base.modules()):
        return
    tried = copied(base)
    states = [{name: value.clone() for name, value in tried.train(mode).state_dict().items()} for mode in (True, False)]
    moved = [name for name in states[0] if not _same(states[0][name], states[1].get(name))]
    moved += [name for name in states[1] if name not in states[0]]
    if moved:
        path = moved[0].rpartition(".")[0]
        raise ModelError(
            f"layer {path!r} ({type(base.get_submodule(path)).__name__}) changes {moved[0]!r} between train() and "
            "eval(), as merged LoRA layers and fused branches do. Generated weights cannot be edited from outside: "
            "merge or fuse the layer for good, or take the edit out of its train(), then hyperize."
        )


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)


def require_same_device(model: nn.Module, inputs: ExampleInputs) -> None:
    """Make sure that a network has parameters, and that its inputs are where they are.

    Raises:
        ModelError: the network lies on the meta device.
        NothingPrunableError: it has no parameters.
        InputsError: the inputs are elsewhere.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError(f"this {type(model).__name__} lies on the meta device. Build it with real tensors.")
    devices = {parameter.device for parameter in model.parameters()}
    if not devices:
        raise NothingPrunableError(f"{type(model).__name__} has no parameters, so there is nothing to prune.")
    strangers = {tensor.device for tensor in inputs.tensors()} - devices
    if strangers:
        raise InputsError(
            f"the example inputs are on {listed(strangers)}, the model on {listed(devices)}. "
            "Move one to the other: x.to(next(model.parameters()).device)."
        )
