"""What DHP's hypernetwork costs in training: as published and as ours, beside the lean generator and no generator.

    python -m benchmarks.dhp             # about a minute on one core; writes the figures and the page
    python -m benchmarks.dhp --report    # writes the page again

All kinds train in turns in one process. ``published`` here has the published biases; ``dhp as published`` in
``make bench-speed`` leaves them out, as ``DHP`` does, and differs from it by the order of its products alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.speed_report import between
from benchmarks.speed_steps import DEVICE, Contender, dense, dhp, hyperized, peak
from examples.networks import resnet56
from hyperprune import hyperize
from hyperprune.coupling import CouplingMap
from hyperprune.files import write_whole
from hyperprune.stopwatch import Stopwatch

RESULTS = Path("benchmarks/results/dhp.json")
PAGE = Path("docs/speed.md")
MARKS = ("<!-- dhp: begin -->", "<!-- dhp: end -->")
SHAPE = (32, 3, 32, 32)
ROUNDS = 21
EMBEDDING = 8
COLUMNS = (
    "kind", "parameters", "ratio to dense", "optimiser MB", "peak MB", "ratio to dense", "step s", "ratio to dense",
    "quartiles", "weights alone ms",
)  # fmt: skip
FACTORS = (
    "", "parameters", "optimiser memory", "peak memory", "peak memory beyond dense", "step time", "quartiles",
    "weights alone",
)  # fmt: skip


class PublishedWeight(nn.Module):
    """The hypernetwork of one convolution as published: O = W2 E + b2, E = s w1 + b1, s = z_in z_out + b0.

    One s and one O for each pair of a channel that is read (c of them) and one that is made (n of them). Nothing is
    taken from ``hyperprune.generators``.

    Args:
        reads: z_in, the latent of the channels that flow in, shape ``[c]``.
        writes: z_out, the latent of those that flow out, shape ``[n]``.
        kernel: size of the kernel.
        embedding: m, the dimension of the embedding.
    """

    def __init__(
        self, reads: nn.Parameter, writes: nn.Parameter, kernel: tuple[int, ...], embedding: int = EMBEDDING
    ) -> None:
        super().__init__()
        self.reads = reads
        self.writes = writes
        self.kernel = kernel
        self.embedding = embedding

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return b0, w1, b1, W2, b2 as the paper starts them; the weight is forgotten but for its shape."""
        (n, c), k2, m = weight.shape[:2], math.prod(self.kernel), self.embedding
        b0, w1, b1 = weight.new_zeros(c, n), weight.new_empty(c, n, m), weight.new_zeros(c, n, m)
        w2, b2 = weight.new_empty(c, n, k2, m), weight.new_zeros(c, n, k2)
        half_width = math.sqrt(3 / (m * c * k2))
        return b0, w1.uniform_(-math.sqrt(3), math.sqrt(3)), b1, w2.uniform_(-half_width, half_width), b2

    def forward(self, b0: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        pairs = self.reads.unsqueeze(1) * self.writes.unsqueeze(0) + b0
        embedded = pairs.unsqueeze(2) * w1 + b1
        made = torch.matmul(w2, embedded.unsqueeze(3)).squeeze(3) + b2
        return made.reshape(*pairs.shape, *self.kernel).transpose(0, 1)


def published(model: nn.Module, x: Tensor) -> Contender:
    """Every convolution with the published hypernetwork, latents shared where channels are tied."""
    attach_published_(model, hyperize(model, x).coupling)
    return dense(model, x)


def attach_published_(model: nn.Module, coupling: CouplingMap) -> None:
    """Give every convolution the published hypernetwork, in place; channels that stay have a latent of their own."""
    sites = {(site.tensor, site.role): site.units for site in coupling.sites}
    latents: dict[object, nn.Parameter] = {}

    def latent(path: str, role: str, weight: Tensor) -> nn.Parameter:
        key = (f"{path}.weight", role)
        length = weight.shape[0 if role == "writes" else 1]
        return latents.setdefault(sites.get(key, key), nn.Parameter(torch.randn(length, device=weight.device)))

    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            sides = (latent(path, role, module.weight) for role in ("reads", "writes"))
            made = PublishedWeight(*sides, kernel=module.kernel_size)
            parametrize.register_parametrization(module, "weight", made, unsafe=True)


KINDS: Mapping[str, Callable[[nn.Module, Tensor], Contender]] = {
    "dense": dense, "lean": hyperized, "dhp": dhp, "published": published,
}  # fmt: skip


def measure(make: Callable[[], nn.Module], shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Train every kind in turns, and make its weights alone in the same rounds.

    Args:
        make: builds the dense network.
        shape: of a batch of images.
        rounds: how often each is timed; two rounds at least.
    """
    torch.manual_seed(0)
    x, y = torch.randn(shape, device=DEVICE), torch.randint(10, shape[:1], device=DEVICE)
    made = {kind: build(make().to(DEVICE).train(), x[:1]) for kind, build in KINDS.items()}
    for contender in made.values():
        contender.step(x, y)
    peaks = {kind: peak(contender, x, y)["peak_bytes"] for kind, contender in made.items()}
    calls = [lambda one=one: one.step(x, y) for one in made.values()] + [weights_of(one) for one in made.values()]
    watch = Stopwatch(torch.device(DEVICE), fewest=rounds, most=rounds, clock=time.process_time_ns)
    times = watch.times(calls)
    kinds = {
        kind: {
            "params": sum(parameter.numel() for parameter in one.model.parameters()),
            "optimizer_bytes": one.held()["optimizer_bytes"],
            "peak_bytes": peaks[kind],
            "step_ns": times[at],
            "weights_ns": times[len(made) + at],
        }
        for at, (kind, one) in enumerate(made.items())
    }
    return {"shape": list(shape), "device": DEVICE, "rounds": rounds, "kinds": kinds}


def weights_of(contender: Contender) -> Callable[[], None]:
    """Return a call that makes the weights of all convolutions and passes gradients back through them."""
    convolutions = [module for module in contender.model.modules() if isinstance(module, nn.Conv2d)]
    gradients = [torch.ones_like(module.weight) for module in convolutions]

    def work() -> None:
        contender.optimizer.zero_grad()
        torch.autograd.backward([module.weight for module in convolutions], gradients)

    return work


def page(text: str, results: Mapping[str, Any]) -> str:
    """Return a page with a new section between its marks."""
    return between(text, MARKS, section(results))


def section(results: Mapping[str, Any]) -> str:
    """Return what was measured, as Markdown."""
    kinds, about = results["kinds"], results["about"]
    parts = [
        _introduction(results),
        _table(COLUMNS, (_row(kind, one, kinds["dense"]) for kind, one in kinds.items())),
        "How many times as much the published formula takes:",
        _table(FACTORS, (_factors(kind, kinds) for kind in ("dhp", "lean"))),
        f"{about['threads']} thread of {about['cores']} cores, {results['device']}, torch {about['torch']}, "
        f"load average before: {about['load_before']}.",
    ]
    return "\n\n".join(parts)


def _introduction(results: Mapping[str, Any]) -> str:
    (batch, _, pixels, _), rounds = results["shape"], results["rounds"]
    return f"""## The published hypernetwork

`make bench-dhp`: ResNet-56, batch {batch}, {pixels} pixels, {rounds} rounds in turns in one process, CPU time.

* **published** is the paper's formula with its biases, written out in `benchmarks/dhp.py`; **dhp** is
  `DHP(embedding={EMBEDDING})`, **lean** the default.
* **Weights alone**: the weights of all convolutions are made once and gradients passed back through them, without the
  network.
* Times are medians over the rounds, ratios medians of the ratios within a round. Memory is counted as above."""


def _table(header: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(kind: str, one: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    steps = _ratios(one["step_ns"], reference["step_ns"])
    return [
        kind, f"{one['params']:,}", f"{one['params'] / reference['params']:.3f}", f"{one['optimizer_bytes'] / 1e6:.1f}",
        f"{one['peak_bytes'] / 1e6:.1f}", f"{one['peak_bytes'] / reference['peak_bytes']:.3f}",
        f"{median(one['step_ns']) / 1e9:.3f}", f"{median(steps):.3f}",
        _quartiles(steps), f"{median(one['weights_ns']) / 1e6:.1f}",
    ]  # fmt: skip


def _factors(kind: str, kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    theirs, ours, reference = kinds["published"], kinds[kind], kinds["dense"]["peak_bytes"]
    factors = [theirs[key] / ours[key] for key in ("params", "optimizer_bytes", "peak_bytes")]
    factors.append((theirs["peak_bytes"] - reference) / (ours["peak_bytes"] - reference))
    steps, weights = (_ratios(theirs[key], ours[key]) for key in ("step_ns", "weights_ns"))
    times = [f"{median(steps):.2f}", _quartiles(steps), f"{median(weights):.2f}"]
    return [f"published / {kind}", *(f"{factor:.2f}" for factor in factors), *times]


def _quartiles(ratios: Sequence[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{low:.2f} to {high:.2f}"


def _ratios(times: Sequence[int], references: Sequence[int]) -> list[float]:
    return [a / b for a, b in zip(times, references, strict=True)]


def main() -> None:
    """Measure, unless only the page is to be written, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the section of docs/speed.md again")
    if not parser.parse_args().report:
        torch.set_num_threads(1)
        about = {
            "torch": torch.__version__, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load_before": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        found = {"about": about, "network": "resnet56", **measure(resnet56, SHAPE, ROUNDS)}
        write_whole(RESULTS, json.dumps(found, indent=1) + "\n")
    write_whole(PAGE, page(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
