"""What a generator is, and how it takes the place of a layer's weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperprune.coupling import CouplingMap, Site
from hyperprune.generators.gate import gated
from hyperprune.generators.inputs import lighten_
from hyperprune.generators.recurrent import ask_anew_, note_weights_
from hyperprune.latents import LatentBank, select


class Generated(nn.Module):
    """A parametrization of ours: makes one weight.

    Attributes:
        order: names of the layer's parameters before it was parametrized, so that a slim layer keeps their order.
        by_columns: whether the weight is one tensor times ``columns()``.
    """

    order: tuple[str, ...] = ()
    by_columns = False

    def forward(self, *originals: Tensor) -> Tensor:
        """Return the weight that the layer uses.

        Under ``no_grad`` it says of itself what the parameter would say, that it requires a gradient: torch chooses
        between kernels by that, and they differ in the last bit.
        """
        weight = self.generate(*originals)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            weight.requires_grad_(originals[0].requires_grad)
        return weight

    def generate(self, *originals: Tensor) -> Tensor:
        """Make the weight from what the layer owns in its place."""
        raise NotImplementedError

    def plain(self, *originals: Tensor) -> Tensor:
        """Return the weight that a plain layer gets at export; the generated one unless said otherwise."""
        value: Tensor = self(*originals)
        return value

    def columns(self) -> Tensor:
        """Return the gates of the columns, shape ``[channels]``, of a weight that is one tensor times these."""
        raise NotImplementedError


class GatedRows(Generated):
    """A weight or bias, generated or not, times the gates of its rows: one factor of a product between activations.

    Args:
        inner: what generates the weight; None where nothing does.
        units: the unit at each position of the first axis, ``STAYS`` for rows that are not gated.
    """

    def __init__(self, bank: LatentBank, inner: Generated | None, units: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.rows = select(bank, units)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Hand the starting tensors of what generates the weight to torch's parametrization."""
        start = getattr(self.inner, "right_inverse", None)
        return weight if start is None else cast(tuple[Tensor, ...], start(weight))

    def generate(self, *originals: Tensor) -> Tensor:
        return self._gated(originals[0] if self.inner is None else self.inner(*originals))

    def plain(self, *originals: Tensor) -> Tensor:
        """Return the plain weight of what generates it, gated."""
        return self._gated(originals[0] if self.inner is None else self.inner.plain(*originals))

    def _gated(self, weight: Tensor) -> Tensor:
        return gated(weight, self.rows().to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))


@runtime_checkable
class Generator(Protocol):
    """Chooses how the weights of a network are generated."""

    def start_(self, bank: LatentBank, rng: torch.Generator) -> None:
        """Set the latents to the values from which the search starts."""

    def weight(
        self,
        bank: LatentBank,
        module: nn.Module,
        weight: Tensor,
        sites: Mapping[str, Site],
        rng: torch.Generator,
    ) -> Generated | None:
        """Return the parametrization of one weight, or None where it needs none.

        ``sites`` holds the weight's site of role ``"reads"`` and of role ``"writes"``, where it has them.
        """


def attach(model: nn.Module, bank: LatentBank, coupling: CouplingMap, generator: Generator, seed: int) -> None:
    """Replace every gated weight of ``model`` by a generated one, in place.

    Layers keep their class (``isinstance`` holds) and their ``forward``.
    """
    rng = torch.Generator().manual_seed(seed)
    generator.start_(bank, rng)
    factors = {tensor: product for product in coupling.products for tensor in product.tensors}
    gated = _weights(coupling)
    for tensor in dict.fromkeys([*factors, *gated]):
        sites = gated.get(tensor, {})
        path, _, name = tensor.rpartition(".")
        module = model.get_submodule(path)
        weight = getattr(module, name)
        made = generator.weight(bank, module, weight, sites, rng) if sites else None
        if tensor in factors:
            made = GatedRows(bank, made, factors[tensor].along(len(weight)))
        if made is not None:
            made.order = tuple(module._parameters)
            parametrize.register_parametrization(module, name, made, unsafe=True)
            for original in module.parametrizations[name].parameters(recurse=False):  # type: ignore[index,union-attr]
                vars(original).update(vars(weight))  # attributes such as no_decay
            lighten_(module, weight)
            ask_anew_(module)


def is_generated(module: nn.Module) -> bool:
    """Say whether a layer's parametrizations are of ours: weight norm and the like are the user's."""
    lists = getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}
    return any(isinstance(made[0], Generated) for made in lists.values())


def generated(model: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of a model that are generated."""
    for path, module in model.named_modules(remove_duplicate=False):
        if is_generated(module):
            yield from (f"{path}.{name}" if path else name for name in module.parametrizations)


def detach(model: nn.Module) -> None:
    """Replace every generated weight of ``model`` by its present value, a plain parameter, in place.

    ``torch.nn.utils.parametrize.remove_parametrizations`` is not used: it deletes the property from the class,
    which a deep copy shares with its original, so cleaning a copy would break the original.
    """
    for module in list(model.modules()):
        if is_generated(module):
            _detach(module, _plain)


def withdraw_(model: nn.Module) -> None:
    """Put back the weights from which a lean generator generates, in place, as if nothing had been attached."""
    for module in list(model.modules()):
        if is_generated(module):
            _detach(module, _original)


def _original(made: parametrize.ParametrizationList) -> nn.Parameter:
    return cast(nn.Parameter, made.original)


def _detach(module: nn.Module, value: Callable[[parametrize.ParametrizationList], nn.Parameter]) -> None:
    lists = cast(nn.ModuleDict, module.parametrizations)
    values = {name: value(cast(parametrize.ParametrizationList, made)) for name, made in lists.items()}
    order = [name for made in lists.values() for name in cast(Generated, made[0]).order]  # type: ignore[index]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    present = {**module._parameters, **values}
    module._parameters.clear()
    module._parameters.update({name: present.pop(name) for name in [*order, *present] if name in present})
    note_weights_(module)


@torch.no_grad()
def _plain(made: parametrize.ParametrizationList) -> nn.Parameter:
    originals = list(made.parameters(recurse=False))
    value = cast(Generated, made[0]).plain(*originals).detach().clone()
    plain = nn.Parameter(value, requires_grad=all(p.requires_grad for p in originals))
    vars(plain).update(vars(originals[0]))
    return plain


def _weights(coupling: CouplingMap) -> dict[str, dict[str, Site]]:
    found: dict[str, dict[str, Site]] = defaultdict(dict)
    for site in coupling.sites:
        if site.role in ("reads", "writes"):
            found[site.tensor][site.role] = site
    return dict(found)
