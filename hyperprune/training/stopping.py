"""Ctrl-C: the first one asks to stop after the present step, a second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hyperprune.training.screen import Screen

Item = TypeVar("Item")


@dataclass
class Stop:
    """Whether the user has asked to stop."""

    requested: bool = False

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items for as long as nobody asks to stop.

        Raises:
            KeyboardInterrupt: somebody did.
        """
        for item in items:
            if self.requested:
                raise KeyboardInterrupt
            yield item


@contextmanager
def stoppable(screen: Screen) -> Iterator[Stop]:
    """Let Ctrl-C ask, while the block runs (in the main thread; elsewhere signals do not arrive)."""
    stop = Stop()

    def ask(*_: Any) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        screen.warn("stopping after this step; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
