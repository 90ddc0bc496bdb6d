"""Times of many candidates, taken in turns so that whatever else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[], object]
Clock = Callable[[], int]


@dataclass(frozen=True)
class Stopwatch:
    """Times calls in rounds: every call once a round, every other round backwards, until time or rounds are up.

    Attributes:
        device: where the calls run; on an accelerator each is waited for.
        warmups: rounds before the first that counts.
        fewest: rounds that are timed at least.
        most: rounds that are timed at most.
        seconds: after which no further round begins.
        clock: what is read before and after a call, in nanoseconds.

    Example:
        >>> fast, slow = Stopwatch(torch.device("cpu")).medians([lambda: sum(range(9)), lambda: sum(range(9999))])
        >>> fast < slow
        True
    """

    device: torch.device
    warmups: int = 1
    fewest: int = 7
    most: int = 31
    seconds: float = 1.0
    clock: Clock = time.perf_counter_ns

    def medians(self, calls: Sequence[Call]) -> list[float]:
        """Return the median nanoseconds of every call. Random state comes back."""
        return [float(median(times)) for times in self._times_aside(calls)]

    def ratio(self, of: Call, to: Call) -> float:
        """Return how long a call takes as a share of another: the median over the rounds, so a drift hits both alike.

        Example:
            >>> Stopwatch(torch.device("cpu")).ratio(lambda: sum(range(9)), to=lambda: sum(range(9999))) < 1
            True
        """
        pairs = zip(*self._times_aside([of, to]), strict=True)
        return float(median(one / max(other, 1) for one, other in pairs))

    def times(self, calls: Sequence[Call]) -> list[list[int]]:
        """Return the nanoseconds of every call in every round; the first rounds only warm up.

        Example:
            >>> order = []
            >>> watch = Stopwatch(torch.device("cpu"), fewest=2, most=2)
            >>> times = watch.times([lambda: order.append("a"), lambda: order.append("b")])
            >>> "".join(order), [len(t) for t in times]
            ('abbaab', [2, 2])
        """
        times: list[list[int]] = [[] for _ in calls]
        for _ in range(self.warmups):
            for call in calls:
                self._time(call)
        end = time.perf_counter() + self.seconds
        for turn in range(self.most):
            if turn >= self.fewest and time.perf_counter() > end:
                break
            for at in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
                times[at].append(self._time(calls[at]))
        return times

    @torch.no_grad()
    def _times_aside(self, calls: Sequence[Call]) -> list[list[int]]:
        """Time without gradients, and give the random state back."""
        with torch.random.fork_rng(devices=[]):
            return self.times(calls)

    def _time(self, call: Call) -> int:
        self._wait()
        started = self.clock()
        call()
        self._wait()
        return self.clock() - started

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
