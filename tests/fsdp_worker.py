"""A rank of a search under FSDP2: ``torchrun -m tests.fsdp_worker OUT``. Without torchrun, one process alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hyperprune import DHP, Budget, HyperModel, Lean, Search, hyperize
from hyperprune.errors import ModelError
from hyperprune.generators import Generator
from tests.distributed_worker import STEPS, batch, network

GENERATORS: dict[str, Generator] = {"lean": Lean(), "dhp": DHP(embedding=2)}


def hyperized(kind: str) -> HyperModel:
    """The network of the test for DistributedDataParallel."""
    return hyperize(network(), torch.randn(1, 3, 8, 8), generator=GENERATORS[kind])


def shard(hyper: HyperModel) -> None:
    """Shard everything but the latents, as docs/scaling.md says."""
    latents = hyper.bank.latents
    for layer in hyper.model.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    fully_shard(hyper, ignored_params={latents})
    latents.register_post_accumulate_grad_hook(average_)
    sharded = [p for p in hyper.parameters() if isinstance(p, DTensor)]
    assert len(sharded) == len(list(hyper.parameters())) - 1


def average_(parameter: Tensor) -> None:
    """Give every rank the mean of the ranks' gradients."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def search(hyper: HyperModel) -> None:
    """Search to half the MACs, on this rank's share of every batch."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.05), momentum=0.9)
    steps = Search(hyper, optimizer, Budget(macs=0.5), STEPS)
    for step in range(STEPS):
        images, labels = (part.chunk(ranks)[rank] for part in batch(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(hyper(images), labels).backward()
        optimizer.step()
        steps.step()


def check_refusal() -> None:
    """With its latents sharded, no search accepts a network, though it still computes the same."""
    hyper, plain = hyperized("lean"), hyperized("lean")
    fully_shard(hyper)
    with pytest.raises(ModelError, match="ignored_params"):
        hyper.parameter_groups(lr=0.05)
    optimizer = torch.optim.SGD(hyper.parameters(), lr=0.05)
    steps = Search(hyper, optimizer, Budget(macs=0.5), STEPS)
    images, _ = batch(0)
    outputs = hyper(images)
    assert torch.equal(outputs, plain(images))
    outputs.square().mean().backward()
    with pytest.raises(ModelError, match="ignored_params"):
        optimizer.step()
    assert steps.step_count == 0


def main(out: Path) -> None:
    """Search with both kinds of generator and write down what comes out, gathered whole."""
    torch.set_num_threads(1)
    together = "RANK" in os.environ
    if together:
        dist.init_process_group("gloo")
        check_refusal()
    found = {}
    for kind in GENERATORS:
        hyper = hyperized(kind)
        if together:
            shard(hyper)
        search(hyper)
        whole = get_model_state_dict(hyper, options=StateDictOptions(full_state_dict=together, cpu_offload=together))
        found |= {f"{kind}.{name}": value.detach().clone() for name, value in whole.items()}
    if not together or dist.get_rank() == 0:
        save_file(found, out / ("together.safetensors" if together else "alone.safetensors"))
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
