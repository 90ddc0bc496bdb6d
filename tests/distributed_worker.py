"""One rank of a search under DistributedDataParallel: ``torchrun tests/distributed_worker.py OUT``.

Run without torchrun it is the reference: one process that sees both halves of every batch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hyperprune import DHP, Budget, Fisher, HyperModel, L1Proximal, Lean, Search, hyperize

STEPS, BATCH, CLASSES = 12, 16, 5


def network() -> nn.Module:
    """A residual network without batch norm: half a batch's statistics are not those of the whole."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4 * 4, CLASSES)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The whole batch of a step, the same on every rank."""
    rng = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, 8, 8, generator=rng), torch.randint(CLASSES, (BATCH,), generator=rng)


def search(kind: str) -> HyperModel:
    """Search to half the MACs, on this rank's share of every batch."""
    generator, rule = (Lean(), Fisher()) if kind == "lean" else (DHP(embedding=2), L1Proximal())
    hyper = hyperize(network(), torch.randn(1, 3, 8, 8), generator=generator)
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    model: nn.Module = DistributedDataParallel(hyper) if ranks > 1 else hyper
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.05), momentum=0.9)
    steps = Search(hyper, optimizer, Budget(macs=0.5), STEPS, sparsifier=rule)
    for step in range(STEPS):
        images, labels = (part.chunk(ranks)[rank] for part in batch(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps.step()
    return hyper


def main(out: Path) -> None:
    """Search with both kinds of generator and write down what every rank holds."""
    torch.set_num_threads(1)
    together = "RANK" in os.environ
    if together:
        dist.init_process_group("gloo")
    found = {}
    for kind in ("lean", "dhp"):
        hyper = search(kind)
        found |= {f"{kind}.{name}": value.detach().clone() for name, value in hyper.state_dict().items()}
    save_file(found, out / (f"rank{dist.get_rank()}.safetensors" if together else "alone.safetensors"))
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
