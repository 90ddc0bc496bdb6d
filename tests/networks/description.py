"""A random network as plain data: it can be printed, stored as JSON, and built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.networks.part import Shape


@dataclass(frozen=True)
class Step:
    """One part and the values it reads: inputs are numbered first, then what each step returns.

    Attributes:
        kind: name of the part; ``"again"`` uses an earlier step's part once more, ``"tied"`` only its weight.
        takes: numbers of the values it reads.
        options: the part's options; for ``"again"`` and ``"tied"``, ``step`` is the number of the earlier step.
    """

    kind: str
    takes: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        read = [f"#{at}" for at in self.takes]
        return f"{self.kind}({', '.join(read + [f'{key}={value}' for key, value in self.options.items()])})"


@dataclass(frozen=True)
class Description:
    """A network, and how to hyperize it.

    Attributes:
        inputs: shapes of the inputs.
        steps: what is computed, in order.
        ends: what becomes of the values that no step reads: ``"joined"`` in one head, ``"separate"`` heads in a
            dict, or ``"raw"``, joined, and the last of several as it is too.
        generator: ``"lean"`` or ``"dhp"``.
        attention: ``"heads"`` or ``"width"``.
        seed: of the weights, the inputs and the units that are removed.
    """

    inputs: tuple[Shape, ...]
    steps: tuple[Step, ...]
    ends: str = "joined"
    generator: str = "lean"
    attention: str = "heads"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and ints."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """Build a description from what ``to_json`` returned."""
        steps = tuple(Step(s["kind"], tuple(s["takes"]), _options(s["options"])) for s in data["steps"])
        return cls(**{**data, "inputs": tuple(tuple(shape) for shape in data["inputs"]), "steps": steps})

    def __str__(self) -> str:
        lines = [f"inputs {', '.join(map(str, self.inputs))}", *map(str, self.steps)]
        return "\n".join([*lines, f"ends={self.ends} {self.generator} {self.attention} seed={self.seed}"])


def _options(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
