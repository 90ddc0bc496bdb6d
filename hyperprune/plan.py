"""A width plan: which channels of which tensors stay. Plain data between search and slimming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperprune.errors import UnknownNameError


def layer_of(tensor: str) -> str:
    """Return the path of the layer that a tensor belongs to, also where a parametrization makes its weight of it.

    Example:
        >>> layer_of("body.0.weight"), layer_of("body.0.parametrizations.weight.original1"), layer_of("table")
        ('body.0', 'body.0', '')
    """
    path, parametrized, _ = f".{tensor}".partition(".parametrizations.")
    return path[1:] if parametrized else tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Rescale:
    """Rows of a weight or bias to multiply by a factor, in the numbering before slicing.

    Attributes:
        tensor: name of the parameter.
        rows: positions along its first axis.
        factor: what they are multiplied by.
    """

    tensor: str
    rows: tuple[int, ...]
    factor: float


Sizes = int | tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """The positions that stay along one axis of one parameter or buffer.

    Attributes:
        tensor: name of the parameter or buffer, for instance ``"layer1.0.conv1.weight"``.
        axis: the axis that is sliced.
        size: length of the axis before.
        kept: positions that stay, rising.
    """

    tensor: str
    axis: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Resize:
    """A size that a module writes into its ``forward``: it must change from ``old`` to ``new``.

    Tuples stand for sizes that the module keeps together in one list, in this order (the parts of a split).
    """

    module: str
    old: Sizes
    new: Sizes


@dataclass(frozen=True, order=True)
class Spared:
    """An attribute that equals a size by chance: a slim network computes the same with the number it had."""

    module: str
    attribute: str


@dataclass(frozen=True)
class Closing:
    """What becomes of one layer of a closed residual branch.

    Attributes:
        module: its path.
        role: ``"starts"`` (it is given what runs past the branch), ``"passes"`` (it hands on what it is given) or
            ``"ends"`` (it makes its bias, or zeros).
        channels: of a layer that ends the branch: how many it makes.
        axis: where these channels lie in its output.
    """

    module: str
    role: str
    channels: int = 0
    axis: int = 0


@dataclass(frozen=True)
class WidthPlan:
    """Everything slimming needs to know, in plain numbers.

    Example:
        >>> plan = WidthPlan((Slice("conv.weight", 0, 8, (0, 3, 5)),))
        >>> plan.width("conv.weight", 0)
        3
        >>> WidthPlan.from_json(plan.to_json()) == plan
        True
    """

    slices: tuple[Slice, ...]
    resizes: tuple[Resize, ...] = ()
    rescales: tuple[Rescale, ...] = ()
    closings: tuple[Closing, ...] = ()
    spared: tuple[Spared, ...] = ()

    def width(self, tensor: str, axis: int) -> int:
        """Return how many positions stay along an axis that the plan slices.

        Raises:
            UnknownNameError: the plan does not slice this axis.
        """
        for cut in self.slices:
            if (cut.tensor, cut.axis) == (tensor, axis):
                return len(cut.kept)
        raise UnknownNameError(f"the plan does not slice axis {axis} of {tensor!r}")

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and ints."""
        return {
            "slices": [[s.tensor, s.axis, s.size, list(s.kept)] for s in self.slices],
            "resizes": [[r.module, _plain(r.old), _plain(r.new)] for r in self.resizes],
            "rescales": [[r.tensor, list(r.rows), r.factor] for r in self.rescales],
            "closings": [[c.module, c.role, c.channels, c.axis] for c in self.closings],
            "spared": [[s.module, s.attribute] for s in self.spared],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WidthPlan:
        """Build a plan from what ``to_json`` returned."""
        return cls(
            tuple(Slice(t, axis, size, tuple(kept)) for t, axis, size, kept in data["slices"]),
            tuple(Resize(module, _sizes(old), _sizes(new)) for module, old, new in data["resizes"]),
            tuple(Rescale(tensor, tuple(rows), factor) for tensor, rows, factor in data["rescales"]),
            tuple(Closing(*closing) for closing in data["closings"]),
            tuple(Spared(*spared) for spared in data["spared"]),
        )


def _plain(sizes: Sizes) -> int | list[int]:
    return sizes if isinstance(sizes, int) else list(sizes)


def _sizes(value: int | list[int]) -> Sizes:
    return value if isinstance(value, int) else tuple(value)


_NOTE = "_width_plans"


def plans_of(model: object) -> tuple[WidthPlan, ...]:
    """Return the plans a slim model was carved by, oldest first; empty for a dense model.

    They live on the model itself, so deep copies and whole pickles keep them; its ``state_dict`` does not.
    """
    return tuple(vars(model).get(_NOTE, ()))


def note_plan_(model: object, plan: WidthPlan) -> None:
    """Note on a model that it has been carved by a plan."""
    vars(model)[_NOTE] = (*plans_of(model), plan)
