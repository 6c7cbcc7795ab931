"""Whether batches run, by the counters that the data plane keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from scheduler._native.counters import CountersPage

# One counts for this long after its end: a look that shows what it took comes meanwhile.
LASTS_S = 1.0


class Activity:
    """May be asked from any thread."""

    def __init__(self, counters: CountersPage, backends: Callable[[], Iterable[int]]) -> None:
        """`backends` has their numbers on the page."""
        self._counters = counters
        self._backends = backends
        self._batches = 0
        self._busy_until_s = float("-inf")

    def busy(self) -> bool:
        found = [self._counters.backend(index) for index in list(self._backends())]
        known = [counters for counters in found if counters is not None]
        batches = sum(counters["batches"] for counters in known)
        in_flight = any(counters["inflight_batches"] for counters in known)
        if batches != self._batches or in_flight:
            self._batches = batches
            self._busy_until_s = time.monotonic() + LASTS_S
        return time.monotonic() < self._busy_until_s
