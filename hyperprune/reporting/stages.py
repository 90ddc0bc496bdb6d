"""The parts of a network that people speak of: its children, or those of its largest child."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

MOST_STAGES = 24


def stages_of(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the stages, in the order of the modules.

    A child that holds more than half of the layers is cut into its own children, as long as that makes no more than
    ``MOST_STAGES`` stages.

    Args:
        model: the network.
        layers: paths of the layers that count.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
        >>> stages_of(net, ["0.0", "0.1", "1"])
        ('0.0', '0.1', '1')
    """
    stages = _children(model, "")
    while True:
        held = Counter(stage_of(layer, stages) for layer in layers)
        largest = max(stages, key=lambda stage: held[stage], default="")
        parts = _children(model.get_submodule(largest), largest) if stages else []
        if not parts or 2 * held[largest] <= len(layers) or len(stages) + len(parts) - 1 > MOST_STAGES:
            return tuple(stages)
        at = stages.index(largest)
        stages[at : at + 1] = parts


def stage_of(name: str, stages: Iterable[str]) -> str:
    """Return the stage that a layer or a tensor lies in; the empty path, which is the model's own, if in none.

    Example:
        >>> stage_of("layer1.0.conv1.weight", ["conv1", "layer1"])
        'layer1'
        >>> stage_of("pos_embed", ["blocks"])
        ''
    """
    return next((stage for stage in stages if name == stage or name.startswith(f"{stage}.")), "")


def _children(module: nn.Module, path: str) -> list[str]:
    """Return the paths of children that hold parameters."""
    held = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    return [f"{path}.{name}" if path else name for name in held]
