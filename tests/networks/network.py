"""From a description to the network it stands for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import randomise_norms_
from tests.networks import everywhere, images, sequences  # noqa: F401  (importing the parts enters them into the table)
from tests.networks.description import Description, Step
from tests.networks.part import PARTS, Part, Shape, channels

CLASSES, HIDDEN = 3, 4
LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Tied(Part):
    """A layer as an earlier one, with the same weight and a bias of its own."""

    def __init__(self, earlier: Part) -> None:
        nn.Module.__init__(self)
        self.layer = _twin(earlier.layer)
        self.layer.weight = earlier.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _twin(layer: Any) -> Any:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features)
    geometry = (layer.kernel_size, layer.stride, layer.padding)
    rest: dict[str, Any] = {"groups": layer.groups, "dilation": layer.dilation}
    return type(layer)(layer.in_channels, layer.out_channels, *geometry, **rest)


class Network(nn.Module):
    """Parts in a row, each of which reads any of the values before it; heads for the values nobody reads.

    Attributes:
        inputs: number of inputs.
    """

    def __init__(self, inputs: tuple[Shape, ...], ends: str = "joined") -> None:
        super().__init__()
        self.parts, self.heads, self.ends = nn.ModuleList(), nn.ModuleList(), ends
        self._steps: list[Step] = []
        self._places: list[int] = []
        self._shapes: list[Shape] = list(inputs)
        self.inputs = len(inputs)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of all values so far: of the inputs, then of what the steps return."""
        return tuple(self._shapes)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._steps)

    def append_(self, step: Step) -> None:
        """Add a step."""
        if step.kind == "again":
            place = self._places[step.options["step"]]
        else:
            place = len(self.parts)
            self.parts.append(self._part(step))
        with torch.no_grad():
            part = self.parts[place].eval()
            made = part(*(torch.zeros(self._shapes[at]) for at in step.takes))
        self._steps.append(step)
        self._places.append(place)
        self._shapes += [tuple(value.shape) for value in _several(made)]

    def _part(self, step: Step) -> Part:
        if step.kind == "tied":
            return Tied(self.parts[self._places[step.options["step"]]])
        return PARTS[step.kind](*(self._shapes[at] for at in step.takes), **step.options)

    def close_(self) -> None:
        """Give the loose ends their heads."""
        widths = [channels(self._shapes[at]) for at in self.loose_ends()]
        for width in widths if self.ends == "separate" else [sum(widths)]:
            self.heads.append(nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, CLASSES)))

    def loose_ends(self) -> list[int]:
        """Return the values that no step reads."""
        taken = {at for step in self._steps for at in step.takes}
        return [at for at in range(self.inputs, len(self._shapes)) if at not in taken]

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, place in zip(self._steps, self._places, strict=True):
            values += _several(self.parts[place](*(values[at] for at in step.takes)))
        loose = [values[at] for at in self.loose_ends()]
        vectors = [value.flatten(2).mean(2) if value.ndim == 4 else _over_tokens(value) for value in loose]
        if self.ends == "separate":
            return {f"head{at}": head(x) for at, (head, x) in enumerate(zip(self.heads, vectors, strict=True))}
        joined = self.heads[0](torch.cat(vectors, dim=1))
        return (joined, loose[-1]) if self.ends == "raw" and len(loose) > 1 else joined


def _over_tokens(value: Tensor) -> Tensor:
    return value.mean(1) if value.ndim == 3 else value


def _several(made: Any) -> list[Tensor]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def build(description: Description) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network, its weights drawn by the description's seed, and example inputs; moves no random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(description.seed)
        network = Network(description.inputs, description.ends)
        for step in description.steps:
            network.append_(step)
        network.close_()
        _liven_(network)
        return network.train(), tuple(torch.randn(shape) for shape in description.inputs)


@torch.no_grad()
def _liven_(network: nn.Module) -> None:
    """Draw weights as large as signals need, and norms as after training, so that a mix-up of channels shows."""
    randomise_norms_(network)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and not isinstance(module, Part):
                parameter.normal_(0, 1.5 / math.sqrt(parameter[0].numel()))
            elif "bias" in name:
                parameter.normal_(0, 0.3)
            elif not isinstance(module, nn.modules.batchnorm._BatchNorm):
                parameter.uniform_(0.5, 1.5)
