"""Apply a width plan to a plain model: slice tensors, then tell the layers their new sizes.

Torch-Pruning's slicing functions are not used: they drop ``requires_grad=False``, of a grouped convolution keep the
first input channels whichever were asked for, slice bare parameters along one axis, and leave most buffers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hyperprune.errors import SlimmingError
from hyperprune.plan import Rescale, Slice, WidthPlan, layer_of, note_plan_
from hyperprune.slim.close import close_
from hyperprune.slim.followers import follow_, sizes_in
from hyperprune.slim.sizes import changes_by_module, resize_
from hyperprune.slim.structure import MADE_OF, adjust_, adjust_transformers_
from hyperprune.trace import drop_caches_

ROWS = (
    *(("weight", 0), ("in_proj_weight", 1), ("q_proj_weight", 0)),
    *((name, 0) for name in ("parametrizations.weight.original1", *MADE_OF)),
)


def carve_(model: nn.Module, plan: WidthPlan) -> nn.Module:
    """Slice every tensor the plan names, in place, and return the model.

    The layers of closed branches are replaced by what stands for them (``slim.close``). The model keeps a note of the
    plan (``plan.plans_of``), so that it can be saved and built again.
    Rows are rescaled first, then sliced. All is checked before the first change, so a plan of another model changes
    nothing.

    Raises:
        SlimmingError: a tensor is missing or has another size than the plan expects.

    Example:
        >>> from hyperprune.plan import Slice
        >>> plan = WidthPlan((Slice("0.weight", 0, 4, (1, 3)), Slice("0.bias", 0, 4, (1, 3))))
        >>> carve_(nn.Sequential(nn.Linear(3, 4)), plan)
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    cuts: dict[str, list[Slice]] = defaultdict(list)
    for cut in plan.slices:
        _check(model, cut)
        cuts[cut.tensor].append(cut)
    for rescale in plan.rescales:
        _check_rows(model, rescale)
    before = sizes_in(model)
    close_(model, plan.closings)
    for rescale in plan.rescales:
        _rescale_(model, rescale)
    touched: dict[nn.Module, str] = {}
    for tensor, slices in cuts.items():
        path, _, name = tensor.rpartition(".")
        module = model.get_submodule(path)
        _replace(module, name, _sliced(getattr(module, name), slices))
        touched[model.get_submodule(layer_of(tensor))] = layer_of(tensor)
    for module, path in touched.items():
        adjust_(module, _rows(cuts, path))
    adjust_transformers_(model)
    for path, changes in sorted(changes_by_module(plan).items()):
        resize_(model.get_submodule(path), changes, {s.attribute for s in plan.spared if s.module == path})
    follow_(model, before, plan.spared)
    drop_caches_(model)
    note_plan_(model, plan)
    return model


def _rows(cuts: Mapping[str, list[Slice]], path: str) -> Slice | None:
    """Return what stays of the rows that a layer divides into groups or heads."""
    for name, axis in ROWS:
        for cut in cuts.get(f"{path}.{name}" if path else name, ()):
            if cut.axis == axis:
                return cut
    return None


def _check(model: nn.Module, cut: Slice) -> None:
    path, _, name = cut.tensor.rpartition(".")
    try:
        tensor = getattr(model.get_submodule(path), name)
    except AttributeError:
        raise SlimmingError(
            f"the plan slices {cut.tensor!r}, which {type(model).__name__} does not have. "
            "The plan belongs to another architecture."
        ) from None
    if tensor.ndim <= cut.axis or tensor.shape[cut.axis] != cut.size:
        raise SlimmingError(
            f"the plan expects {cut.size} positions along axis {cut.axis} of {cut.tensor!r}, "
            f"but its shape is {tuple(tensor.shape)}. The plan belongs to other widths."
        )


def _check_rows(model: nn.Module, rescale: Rescale) -> None:
    state = dict(model.named_parameters(remove_duplicate=False))
    if rescale.tensor not in state or len(state[rescale.tensor]) <= max(rescale.rows, default=-1):
        raise SlimmingError(
            f"the plan multiplies rows of {rescale.tensor!r}, which {type(model).__name__} does not have. "
            "The plan belongs to another architecture."
        )


def _rescale_(model: nn.Module, rescale: Rescale) -> None:
    path, _, name = rescale.tensor.rpartition(".")
    module = model.get_submodule(path)
    data = getattr(module, name).detach().clone()
    data[list(rescale.rows)] *= rescale.factor
    _replace(module, name, data)


def _sliced(tensor: Tensor, slices: list[Slice]) -> Tensor:
    data = tensor.detach()
    for cut in slices:
        data = data.index_select(cut.axis, torch.from_numpy(np.array(cut.kept, dtype=np.int64)).to(data.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return data.contiguous(memory_format=torch.channels_last)
    return data


def _replace(module: nn.Module, name: str, data: Tensor) -> None:
    if name in module._parameters:
        old = module._parameters[name]
        assert old is not None
        new = nn.Parameter(data, requires_grad=old.requires_grad)
        vars(new).update(vars(old))  # attributes such as no_decay
        module._parameters[name] = new
    else:
        module._buffers[name] = data
