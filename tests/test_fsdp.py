"""FSDP2: two processes that share a network's weights, but not its latents, find what one process finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperprune import export_pruned
from tests.fsdp_worker import GENERATORS, hyperized

ROOT = Path(__file__).parent.parent
States = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> States:
    """The state after a search: of two ranks, gathered whole (they refuse sharded latents first), and of one."""
    out = tmp_path_factory.mktemp("fsdp")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for words in (torchrun, []):
        command = [sys.executable, *words, "-m", "tests.fsdp_worker", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: load_file(out / f"{name}.safetensors") for name in ("together", "alone")}


def test_sharded_weights_end_where_whole_ones_do(found: States) -> None:
    together, alone = found["together"], found["alone"]
    assert set(together) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_gathered_state_exports(found: States, kind: str) -> None:
    hyper = hyperized(kind)
    hyper.load_state_dict({n.removeprefix(f"{kind}."): v for n, v in found["together"].items() if n.startswith(kind)})
    x = torch.randn(2, 3, 8, 8)
    assert 0 < int(hyper.living().sum()) < hyper.coupling.units
    torch.testing.assert_close(export_pruned(hyper).eval()(x), hyper.eval()(x), rtol=1e-4, atol=1e-5)
