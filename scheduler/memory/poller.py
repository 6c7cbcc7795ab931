"""Looks at one source again and again, from a thread of its own.

Faster while batches run or memory moves, slower at rest. A look that hangs (a driver, a socket)
holds up nothing but itself: the figures it should have brought grow old, which shows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.memory.source import DeviceReading, MemorySource, SourceAbsent, SourceError

logger = logging.getLogger(__name__)

# Of the source's retry period, where there is nothing to ask.
ABSENT_PERIODS = 60
# Memory that moved by this part of the whole is worth looking at closely ...
MOVE_PART = 1 / 1024
# ... for this long.
MOVING_S = 2.0


@dataclass(frozen=True)
class Pace:
    """Seconds between the beginnings of two looks."""

    busy_s: float
    idle_s: float


class Poller:
    """`on_look(readings, error)` is called from the thread; `busy` is asked there."""

    def __init__(
        self,
        source: MemorySource,
        pace: Pace,
        busy: Callable[[], bool],
        on_look: Callable[[Sequence[DeviceReading], SourceError | None], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._pace = pace
        self._busy = busy
        self._on_look = on_look
        self._clock_s = clock_s
        self._stop = threading.Event()
        self._free: dict[str, int] = {}
        self._moved_at_s = float("-inf")
        self._thread = threading.Thread(
            target=self._run, name=f"memory {source.name}"[:15], daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The thread ends after its look; one that hangs is left to itself."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self.look())
        self.source.close()

    def look(self) -> float:
        """One look; returns the seconds until the next one."""
        began_s = self._clock_s()
        period_s = self._look() or self._period_s(began_s)
        return max(began_s + period_s - self._clock_s(), period_s / 4)

    def _look(self) -> float:
        """Returns the time to the next one where it failed, else 0."""
        readings: Sequence[DeviceReading] = ()
        error: SourceError | None = None
        try:
            readings = self.source.poll()
            self._note_moves(readings)
        except SourceError as failure:
            error = failure
        except Exception as failure:  # of a library that is not as it should be
            error = SourceError(f"it fails: {failure!r}")
            logger.debug("a source of device memory raised", exc_info=True)
        if not self._stop.is_set():
            self._on_look(readings, error)
        if error is None:
            return 0.0
        periods = ABSENT_PERIODS if isinstance(error, SourceAbsent) else 1
        return self.source.retry_period_s * periods

    def _note_moves(self, readings: Sequence[DeviceReading]) -> None:
        now = {r.key: r.free_bytes for r in readings if not r.problem}
        for reading in readings:
            before = self._free.get(reading.key)
            if before is not None and reading.key in now:
                moved = abs(now[reading.key] - before)
                if moved > reading.total_bytes * MOVE_PART:
                    self._moved_at_s = self._clock_s()
        self._free = now

    def _period_s(self, now_s: float) -> float:
        moving = now_s - self._moved_at_s < MOVING_S
        return self._pace.busy_s if moving or self._busy() else self._pace.idle_s
