"""Two processes that search together find what one process with the whole batch finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = WORKER.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What each of two ranks holds after a search, and what one process alone holds."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for words in (torchrun, []):
        command = [sys.executable, *words, str(WORKER), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: load_file(out / f"{name}.safetensors") for name in ("rank0", "rank1", "alone")}


def test_all_ranks_hold_the_same_bits(found: dict[str, dict[str, torch.Tensor]]) -> None:
    first, second = found["rank0"], found["rank1"]
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_two_halves_of_a_batch_find_what_the_whole_batch_finds(found: dict[str, dict[str, torch.Tensor]]) -> None:
    together, alone = found["rank0"], found["alone"]
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for kind in ("lean", "dhp"):
        alive = together[f"{kind}.bank.alive"]
        assert torch.equal(alive, alone[f"{kind}.bank.alive"])
        assert 0 < int(alive.sum()) < len(alive)
