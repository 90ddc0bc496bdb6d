"""One run of the model as a torch.fx graph of ATen calls, with every tensor's name and every call's origin.

The graph is analysed and never executed: the user's own class keeps running. ``torch.export`` (non-strict)
follows the path the example inputs take, so Python control flow is no obstacle.
"""

from __future__ import annotations

import dataclasses
import random
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from traceback import extract_tb, format_tb
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import nn

from hyperprune.constants import constants_known
from hyperprune.copies import copied
from hyperprune.errors import InputsError, TraceError
from hyperprune.regions import join_regions_
from hyperprune.writes import settle_writes_

_STEP = re.compile(r"slice\((?P<bounds>[^)]*)\)|(?P<name>[^.]+)")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
CORNER, TWO = 96, 2  # pixels along a side, and images, that show as much of a network as many do
STAND_IN = 16  # for a size that depends on values: what is left of it behind a kernel of 7 is still a size
_BRANCHES = (
    "The forward pass probably branches on the values of its input. Pass example inputs that take the branch you "
    "train, or hyperize the submodule (the backbone) that has no such branch."
)
_CAUSAL = (
    "torch's own transformer looks at the mask to find out whether it is causal. Say so in forward(): tgt_is_causal= "
    "beside tgt_mask=, is_causal= beside an encoder's mask=."
)
_UNKNOWN = (
    "Let forward() return tensors, or lists, dicts and dataclasses of them. Hugging Face's models make a cache: say "
    "model.config.use_cache = False, or use_cache=False among the example inputs."
)
_ASSIGNED = (
    "This version of torch.export lets no forward() keep tensors as attributes (self.feature = x). Newer ones do: "
    "upgrade torch (2.15 does), or return such tensors instead."
)
_MARKS = {"not a known type": _UNKNOWN, "assigned during export": _ASSIGNED}
_ELEMENT_BY_ELEMENT = ("add", "sub", "mul", "div", "cat", "relu", "prelu", "gelu", "silu", "sigmoid", "tanh", "dropout")
_CONVERSIONS = (torch.ops.aten.to, torch.ops.aten.type_as, torch.ops.aten.contiguous)
_LIBRARY = ("/torch/nn/", "/torch/_", "/torch/functional")
_PACKAGES = ("torch.", "torchvision.", "timm.")


@dataclass(frozen=True)
class ExampleInputs:
    """The arguments of one forward call: positional ``args`` and keyword ``kwargs``.

    Example:
        >>> ExampleInputs.of(torch.zeros(1, 3)).args[0].shape
        torch.Size([1, 3])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> ExampleInputs:
        """Read a tensor, a tuple of arguments, or a dict of keyword arguments.

        Raises:
            InputsError: ``inputs`` is none of these, or holds no tensor.
        """
        if isinstance(inputs, ExampleInputs):
            return inputs
        if isinstance(inputs, torch.Tensor):
            found = cls((inputs,))
        elif isinstance(inputs, (tuple, list)):
            found = cls(tuple(inputs))
        elif isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
            found = cls((), dict(inputs))
        else:
            raise InputsError(
                f"example inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
                f"not {type(inputs).__name__}. Pass, for instance, torch.randn(1, 3, 224, 224)."
            )
        if not found.tensors():
            raise InputsError("example inputs hold no tensor. Pass what you would pass to model(...).")
        return found

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor among the arguments, in order."""
        leaves = torch.utils._pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def map(self, change: Any) -> ExampleInputs:
        """Return the same arguments with ``change`` applied to each tensor."""
        args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs)))
        return ExampleInputs(tuple(args), kwargs)

    def suiting(self, model: nn.Module) -> ExampleInputs:
        """Return the inputs on the device of a model, those of floating point in its dtype, if it has only one."""
        tensors: list[torch.Tensor] = [*model.parameters()] or [*model.buffers()]
        kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        kind = kinds.pop() if len(kinds) == 1 else None
        return self.map(lambda t: t.to(tensors[0].device, kind if t.is_floating_point() else None))

    def call(self, model: nn.Module) -> Any:
        """Run ``model`` on these arguments."""
        return model(*self.args, **self.kwargs)

    def doubled(self) -> ExampleInputs:
        """Return every example twice: in train mode, batch norm may insist on two."""
        return self.map(lambda t: torch.cat([t, t]) if t.ndim else t)

    def larger(self) -> tuple[ExampleInputs, ...]:
        """Return inputs of other sizes that a model may take: twice as many rows, twice the image, twice the tokens.

        Example:
            >>> [tuple(other.args[0].shape) for other in ExampleInputs.of(torch.zeros(1, 3, 8, 8)).larger()]
            [(1, 3, 16, 8), (1, 3, 16, 16), (1, 6, 8, 8)]
        """
        rank = max(tensor.ndim for tensor in self.tensors())
        space, tokens = tuple(range(2, rank)), (1,) if rank > 1 else ()
        ways = [axes for axes in dict.fromkeys((space[:1], space, tokens)) if axes]
        return tuple(self.map(lambda tensor, axes=axes: _mirrored(tensor, axes)) for axes in ways)

    def excerpts(self) -> tuple[ExampleInputs, ...]:
        """Return parts of the inputs that show much of what a network does: corners of two images, then two images.

        Inputs that are not images have none, nor have those of which no part is half as much at most.

        Example:
            >>> [tuple(part.args[0].shape) for part in ExampleInputs.of(torch.zeros(8, 3, 224, 160)).excerpts()]
            [(2, 3, 96, 160), (2, 3, 224, 160)]
        """
        if any(tensor.ndim != 4 or not tensor.is_floating_point() for tensor in self.tensors()):
            return ()
        corners = self.map(lambda t: t[:TWO, :, : _corner(t.shape[2]), : _corner(t.shape[3])])
        return tuple(part.lively() for part in (corners, self.map(lambda t: t[:TWO])) if 2 * part.size <= self.size)

    @property
    def size(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors())

    def refused(self, model: nn.Module, error: Exception) -> InputsError:
        """Return the error that says that a model fails on these arguments."""
        shapes = [f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in self.tensors()]
        return InputsError(
            f"{type(model).__name__} fails on the example inputs {shapes}: {type(error).__name__}: {error}"
        )

    def lively(self) -> ExampleInputs:
        """Return the inputs with drawn numbers in place of zeros, and of images that are one number everywhere.

        Zeros hide all that a network without biases computes, and constants what moves from place to place. Ones with
        one or two axes may be a mask, so they stay.
        """
        if not any(map(_is_blank, self.tensors())):
            return self
        rng = torch.Generator().manual_seed(0)
        return self.map(lambda tensor: _drawn(tensor, rng) if _is_blank(tensor) else tensor)

    def copied(self) -> ExampleInputs:
        """Return copies, for a model that changes its inputs in place."""
        return self.map(torch.Tensor.clone)


def _mirrored(tensor: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor twice as long along some axes: what it was and, behind, its mirror image, somewhat fainter."""
    for axis in [axis for axis in axes if axis < tensor.ndim]:
        behind = tensor.flip(axis)
        faint = behind * 0.9 if tensor.is_floating_point() else behind  # equal numbers would be ranked by rounding
        tensor = torch.cat([tensor, faint], axis)
    return tensor


def _corner(side: int) -> int:
    """Return how many pixels of a side are enough: a multiple of what most networks divide images by."""
    return CORNER if side >= 2 * CORNER else side


def _is_blank(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_nested or tensor.numel() < 2:
        return False
    first = tensor.flatten()[0]
    return bool((tensor == first).all()) and (tensor.ndim > 2 or not bool(first))


def _drawn(tensor: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Draw numbers of the same sign: U(0, 1) for zeros, else between a half and one and a half of what there is."""
    drawn = torch.rand(tensor.shape, generator=rng).to(tensor)
    return torch.where(tensor == 0, drawn, tensor * (0.5 + drawn))


@dataclass(frozen=True)
class Origin:
    """Where a call comes from: the module that made it, and the line of source."""

    op: str
    module: str
    source: str

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        return f"{self.op}{where}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Trace:
    """A graph and what its placeholders are called in the model.

    Attributes:
        graph: ATen calls in the order in which they ran; shapes are in ``node.meta["val"]``.
        parameters: placeholder name -> parameter name in the model.
        buffers: placeholder name -> buffer name in the model.
        training: whether the model was in train mode.
    """

    graph: torch.fx.Graph
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    training: bool

    def used(self) -> set[str]:
        """Return the names of the parameters and buffers that some call reads."""
        names = {**self.parameters, **self.buffers}
        return {
            names[node.name]
            for node in self.graph.nodes
            if node.op == "placeholder" and node.name in names and node.users
        }


def trace(model: nn.Module, inputs: ExampleInputs) -> tuple[Trace, ...]:
    """Trace ``model`` in eval mode, and in train mode too where that reaches layers that eval does not.

    The auxiliary heads of GoogLeNet and Inception run only in train mode, and so do averages kept in buffers; a slim
    model must still fit them. What is followed are copies, and code of the user's only after one run with real numbers:
    tensors without data, which torch.export sends through forward(), would stay in the caches that it keeps. The copies
    share the parameters of ``model``, so a forward pass that edits its own edits these.

    Raises:
        InputsError: the model itself fails on these inputs.
        TraceError: the model runs but cannot be exported; the message holds the line that stopped it.
    """
    with random_state_kept(model), _quiet():
        traces = [_followed(model, inputs, training=False)]
        unused = _with_channels(model) - traces[0].used()
        if unused:
            traces += _train_trace(model, inputs, unused)
    return tuple(traces)


def origin(node: torch.fx.Node) -> Origin:
    """Say which module made this call, and on which line of the user's source."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return Origin(str(node.target), _module_path(stack), _source_line(node.meta.get("stack_trace") or ""))


def owner(node: torch.fx.Node) -> str:
    """Return the path of the innermost module whose ``forward`` made this call."""
    return _module_path(list((node.meta.get("nn_module_stack") or {}).values()))


def plain_name(node: torch.fx.Node) -> str:
    """Return the name of a call without overload and without the mark of an in-place operation."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")


def owner_class(node: torch.fx.Node) -> str:
    """Return the class name of the innermost module whose ``forward`` made this call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]).rpartition(".")[2] if stack else ""


def drop_caches_(model: nn.Module) -> None:
    """Let modules forget what they computed from their weights in eval mode (attention biases, for instance).

    Modules that keep such caches drop them when they are put into train mode; every mode comes back.
    """
    with modes_kept(model):
        model.train()


def is_of_libraries(model: nn.Module) -> bool:
    """Say whether all layers are torch's, torchvision's or timm's, and none has a hook.

    The forward passes of these write to no parameter, and keep nothing outside of their modules.

    Example:
        >>> is_of_libraries(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        True
    """
    return all(type(part).__module__.startswith(_PACKAGES) and not _has_hooks(part) for part in model.modules())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@contextmanager
def random_state_kept(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Give the global random generators their states back afterwards: Python's, numpy's, torch's on every device.

    Args:
        seed: what they start from meanwhile, where it must not matter what the user has drawn.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                _seed(seed, devices)
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def _seed(seed: int, devices: list[int]) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every submodule its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _module_path(stack: list[Any]) -> str:
    return re.sub(r"@\d+$", "", str(stack[-1][0])) if stack else ""


def failing_lines(traceback: TracebackType | None) -> tuple[str, ...]:
    """Return the lines of the user's source in a traceback, innermost first, written as ``Origin.source`` is."""
    return tuple(_source_line(frame) for frame in reversed(format_tb(traceback)))


def _source_line(stack_trace: str) -> str:
    frames = list(_FRAME.finditer(stack_trace))
    users = [frame for frame in frames if not any(part in frame["file"] for part in _LIBRARY)]
    chosen = (users or frames)[-1:]
    return "".join(f"{frame['file'].rsplit('/', 1)[-1]}:{frame['line']}" for frame in chosen)


def _with_channels(model: nn.Module) -> set[str]:
    """Return the names of the parameters, and of the buffers that may have channels: a counter has none."""
    buffers = {name for name, buffer in model.named_buffers() if buffer.ndim and buffer.is_floating_point()}
    return buffers | {name for name, _ in model.named_parameters()}


def _train_trace(model: nn.Module, inputs: ExampleInputs, unused: set[str]) -> list[Trace]:
    """Trace train mode if that reaches an unused tensor."""
    for attempt in (inputs, inputs.doubled()):
        try:
            found = _followed(model, attempt, training=True)
        except (TraceError, InputsError):
            continue
        return [found] if found.used() & unused else []
    return []


def _followed(model: nn.Module, inputs: ExampleInputs, *, training: bool) -> Trace:
    """Return the trace of a copy: what torch.export leaves in it goes with it.

    Raises:
        InputsError: the model fails on these inputs.
        TraceError: it runs, but cannot be exported.
    """
    try:
        found = _export(_copy(model, training) if is_of_libraries(model) else _warmed(model, inputs, training), inputs)
    except TraceError:
        return _with_constants(model, inputs, training)
    if any(plain_name(node) == "item" for node in found.graph.nodes):
        with suppress(TraceError):
            return _with_constants(model, inputs, training)
    return found


def _with_constants(model: nn.Module, inputs: ExampleInputs, training: bool) -> Trace:
    """Return the trace of a copy that knows what its constants are, after a run: the inputs may be to blame."""
    copy = _warmed(model, inputs, training)
    with constants_known():
        return _export(copy, inputs)


def _copy(model: nn.Module, training: bool) -> nn.Module:
    return copied(model, shared=model.parameters()).train(training)


def _warmed(model: nn.Module, inputs: ExampleInputs, training: bool) -> nn.Module:
    """Return a copy after a run with real numbers.

    Raises:
        InputsError: the model fails on these inputs.
    """
    copy = _copy(model, training)
    try:
        with torch.no_grad():
            inputs.copied().call(copy)
    except Exception as error:  # whatever the user's forward raises
        raise inputs.refused(model, error) from error
    drop_caches_(copy)
    return copy


def _export(model: nn.Module, inputs: ExampleInputs) -> Trace:
    try:
        program = _program(model, inputs)
    except Exception as error:  # torch.export raises many types; the model itself has run
        raise TraceError(_cannot_export(model, error)) from error
    signature = program.graph_signature
    _note_users_(program.graph)
    graph = settle_writes_(join_regions_(program.graph))
    _settle_paths_(graph, model)
    _settle_sizes_(graph)
    _drop_idle_(graph)
    _drop_unused_(graph)
    return Trace(graph, dict(signature.inputs_to_parameters), dict(signature.inputs_to_buffers), model.training)


def _program(model: nn.Module, inputs: ExampleInputs) -> torch.export.ExportedProgram:
    with plain_outputs(model), redirect_stderr(StringIO()) as said:  # torch prints the whole graph where a trace fails
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
    sys.stderr.write(said.getvalue())
    return program


def _note_users_(graph: torch.fx.Graph) -> None:
    """Note all users of each value, in place: torch.export forgets those that a no_grad region takes a size from."""
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _settle_paths_(graph: torch.fx.Graph, model: nn.Module) -> None:
    """Name layers taken from a slice of a container (``self.layers[:-1]``) as the model does, in place."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if any("slice(" in str(path) for path, *_ in stack.values()):
            node.meta["nn_module_stack"] = {
                key: (_named(str(path), model), *rest) for key, (path, *rest) in stack.items()
            }


def _named(path: str, model: nn.Module) -> str:
    """Return a path without slices: those of a list number their layers anew, those of ``nn.Sequential`` do not."""
    names: list[str] = []
    whole, children = model, model._modules
    for step in _STEP.finditer(path):
        if step["bounds"]:
            bounds = (None if bound == "None" else int(bound) for bound in step["bounds"].split(", "))
            part = list(children.items())[slice(*bounds)]
            renumbered = {str(at): child for at, (_, child) in enumerate(part)}
            children = dict(part) if isinstance(whole, nn.Sequential) else renumbered
        elif (child := children[step["name"]]) is not None:
            names.append(next(name for name, other in whole._modules.items() if other is child))
            whole, children = child, child._modules
    return ".".join(names)


def _drop_idle_(graph: torch.fx.Graph) -> None:
    """Leave out casts to the type that a tensor has, in place.

    They return the tensor itself; so torch.export credits later uses of it, by other modules, to the cast.
    """
    for node in graph.nodes:
        value, source = node.meta.get("val"), node.args[0] if node.args else None
        if getattr(node.target, "overloadpacket", None) in _CONVERSIONS and isinstance(source, torch.fx.Node):
            before = source.meta["val"]
            if (value.dtype, value.device, value.stride()) == (before.dtype, before.device, before.stride()):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _drop_unused_(graph: torch.fx.Graph) -> None:
    """Leave out calls whose results nobody uses, in place: the attention weights that a layer averages over heads.

    Calls with weights stay, for what they cost; and so do additions of what they make and the like, for sizes must fit
    there (the last block of Conv-TasNet adds to a stream that nobody reads).
    """
    used = _reaching_outputs(graph)
    weighted: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node in used or node.meta.get("val") is None:
            continue
        meets = plain_name(node) in _ELEMENT_BY_ELEMENT
        if any(source.op == "placeholder" or (meets and source in weighted) for source in node.all_input_nodes):
            weighted.add(node)
    for node in reversed(graph.nodes):
        if not node.users and node not in used and node not in weighted:
            graph.erase_node(node)


def _reaching_outputs(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return the calls that an output, or what changes a tensor in place, is made of."""
    found: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        lasting = node.op != "call_function" or schema is None or schema.is_mutable
        if lasting or any(user in found for user in node.users):
            found.add(node)
    return found


def _settle_sizes_(graph: torch.fx.Graph) -> None:
    """Replace sizes that depend on values (``nonzero``, boolean masks) by one number each, in place."""
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map_only(torch.Tensor, _settled, node.meta["val"])


def _settled(value: torch.Tensor) -> torch.Tensor:
    if all(isinstance(size, int) for size in value.shape):
        return value
    return torch.empty([_number(size) for size in value.shape], dtype=value.dtype, device="meta")


def _number(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return max(1, int(expression.subs(dict.fromkeys(expression.free_symbols, STAND_IN))))


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let a model hand out dicts where it hands out dataclasses, which torch.export does not know."""
    handle = model.register_forward_hook(lambda module, args, output: without_dataclasses(output))
    try:
        yield
    finally:
        handle.remove()


def without_dataclasses(output: Any) -> Any:
    """Return a model's output with dicts in place of dataclasses."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: without_dataclasses(getattr(output, field.name)) for field in dataclasses.fields(output)}
    if type(output) in (list, tuple):
        return type(output)(without_dataclasses(item) for item in output)
    if type(output) is dict:
        return {key: without_dataclasses(value) for key, value in output.items()}
    return output


def _cannot_export(model: nn.Module, error: Exception) -> str:
    text = str(error)
    frames = [f for f in _FRAME.finditer(text) if not any(part in f["file"] for part in _LIBRARY)]
    where = f" at {frames[-1]['file'].rsplit('/', 1)[-1]}:{frames[-1]['line']}" if frames else ""
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    looks = any(frame.name == "_detect_is_causal_mask" for frame in extract_tb(error.__traceback__))
    known = (advice for mark, advice in _MARKS.items() if mark in first)
    advice = next(known, _CAUSAL if looks else _BRANCHES)
    return f"torch.export cannot trace {type(model).__name__}{where}: {first}\n{advice}"


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
