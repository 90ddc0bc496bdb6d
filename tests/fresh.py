"""Fresh processes that start fast: forked from a server that has imported torch, and nothing of ours."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "torch.export", "torch.export._trace"])


def in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:
    """Return what a function of some module returns in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(work, *args).result(timeout=200)


def exit_code_of(work: Callable[..., Any], *args: Any) -> int | None:
    """Run a function in a process of its own, and return how that ended: 0, or minus the signal that killed it."""
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    process.join(200)
    process.kill()
    return process.exitcode
