"""What a checkpoint says beside its weights: a small JSON document with a version, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as parts
from itertools import pairwise
from typing import Any, NoReturn

from hyperprune.checkpoint import fields
from hyperprune.checkpoint.sizes import Sizes
from hyperprune.errors import CheckpointError
from hyperprune.plan import WidthPlan

FORMAT = "hyperprune.slim"
VERSION = 1
LONGEST_TEXT = 32 * 2**20  # characters; the plans of a ResNet-50 take less than one million
MOST_PLANS = 1000


@dataclass(frozen=True)
class Document:
    """How a slim network comes out of a dense one of the same class.

    Attributes:
        model: the network's class, module and name, such as ``"torchvision.models.resnet.ResNet"``.
        plans: what to carve, in this order; none for a dense network.
        sizes: by module and attribute, the sizes that slimming repaired there (see ``sizes``).
        tied: names that share one tensor; the file holds it under the first of them.
        derived: dtype of every buffer that the class works out itself and no file keeps, such as ``"torch.int64"``.
        metadata: whatever the user wrote down.

    Example:
        >>> from hyperprune.plan import Slice
        >>> document = Document("torch.nn.modules.linear.Linear", (WidthPlan((Slice("bias", 0, 4, (1, 3)),)),))
        >>> Document.from_text(document.to_text()) == document
        True
    """

    model: str
    plans: tuple[WidthPlan, ...] = ()
    sizes: Sizes = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the document as JSON.

        Raises:
            CheckpointError: it is too long, or would not be read back as it is.
        """
        data = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "plans": [plan.to_json() for plan in self.plans],
            "sizes": self.sizes,
            "tied": self.tied,
            "derived": dict(self.derived),
            "metadata": dict(self.metadata),
        }
        text = json.dumps(data, separators=(",", ":"))
        self.from_text(text)
        return text

    @classmethod
    def from_text(cls, text: str) -> Document:
        """Read a document; nothing in it is taken on trust.

        Raises:
            CheckpointError: the text is not what ``to_text`` writes; the message names the place.
        """
        data = fields.record(_parse(text), "the document")
        _check_version(data)
        fields.require(data, ("format", "version", *(part.name for part in parts(cls))), "the document")
        plans = fields.array(data["plans"], "plans", MOST_PLANS)
        return cls(
            fields.text(data["model"], "model"),
            tuple(_plan(plan, f"plans[{at}]") for at, plan in enumerate(plans)),
            _sizes(data["sizes"]),
            tuple(_tie(names, f"tied[{at}]") for at, names in enumerate(fields.array(data["tied"], "tied"))),
            fields.texts(data["derived"], "derived"),
            fields.texts(data["metadata"], "metadata"),
        )


def _parse(text: str) -> Any:
    if len(text) > LONGEST_TEXT:
        raise CheckpointError(f"the document has {len(text):,} characters; at most {LONGEST_TEXT:,} are read.")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, nested too deep
        raise CheckpointError(f"the document is not JSON that hyperprune reads: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_version(data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise CheckpointError(f"the document's format is {data.get('format')!r}, not {FORMAT!r}.")
    version = fields.whole(data.get("version"), "version")
    if not 1 <= version <= VERSION:
        raise CheckpointError(
            f"it has version {version} of the format, this hyperprune reads 1 to {VERSION}. Update hyperprune."
        )


def _plan(data: Any, where: str) -> WidthPlan:
    data = fields.record(data, where)
    data = {"closings": [], "spared": [], **data}  # files from before there were any have none
    fields.require(data, WidthPlan(()).to_json(), where)
    for part, check in _CHECKS.items():
        for at, item in enumerate(fields.array(data[part], f"{where}.{part}")):
            check(item, f"{where}.{part}[{at}]")
    plan = WidthPlan.from_json(data)
    if len({(cut.tensor, cut.axis) for cut in plan.slices}) < len(plan.slices):
        raise CheckpointError(f"{where} slices one axis of one tensor twice.")
    return plan


def _check_slice(data: Any, where: str) -> None:
    tensor, axis, size, kept = fields.row(data, where, 4)
    fields.text(tensor, where)
    fields.whole(axis, where)
    ends = [*fields.wholes(kept, where), fields.whole(size, where)]
    if not all(a < b for a, b in pairwise(ends)):
        raise CheckpointError(f"{where}: the positions kept must rise, and lie below the axis's length.")


def _check_resize(data: Any, where: str) -> None:
    module, old, new = fields.row(data, where, 3)
    fields.text(module, where)
    before, after = (fields.wholes(sizes if isinstance(sizes, list) else [sizes], where) for sizes in (old, new))
    if isinstance(old, list) is not isinstance(new, list) or len(before) != len(after):
        raise CheckpointError(f"{where}: as many sizes must stand after as before.")
    if any(a > b for a, b in zip(after, before, strict=True)):
        raise CheckpointError(f"{where}: a size grows; slimming only shrinks.")


def _check_rescale(data: Any, where: str) -> None:
    tensor, rows, factor = fields.row(data, where, 3)
    fields.text(tensor, where)
    fields.wholes(rows, where)
    fields.number(factor, where)


def _check_closing(data: Any, where: str) -> None:
    module, role, channels, axis = fields.row(data, where, 4)
    fields.text(module, where)
    if role not in ("starts", "passes", "ends"):
        raise CheckpointError(f"{where}: a layer of a closed branch starts, passes or ends, not {str(role)[:80]!r}.")
    fields.whole(channels, where)
    if type(axis) is not int or not -1 <= axis <= 1:
        raise CheckpointError(f"{where}: channels lie on axis -1 or 1, not {str(axis)[:80]}.")


def _check_spared(data: Any, where: str) -> None:
    for name in fields.row(data, where, 2):
        fields.text(name, where)


_CHECKS = {
    "slices": _check_slice,
    "resizes": _check_resize,
    "rescales": _check_rescale,
    "closings": _check_closing,
    "spared": _check_spared,
}


def _sizes(data: Any) -> Sizes:
    found: dict[str, dict[str, int | list[int]]] = {}
    for module, attributes in fields.record(data, "sizes").items():
        where = f"sizes[{module[:80]!r}]"
        for name, value in fields.record(attributes, where).items():
            checked = fields.wholes(value, where) if isinstance(value, list) else fields.whole(value, where)
            found.setdefault(module, {})[name] = checked
    return found


def _tie(data: Any, where: str) -> tuple[str, ...]:
    names = tuple(fields.text(name, where) for name in fields.array(data, where))
    if len(names) < 2 or len(set(names)) < len(names):
        raise CheckpointError(f"{where}: a tie needs two names or more, each once.")
    return names
