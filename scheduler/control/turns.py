"""Operations that must not run side by side, by the names of what they change."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

SPANS_MAX = 64
# What a backend moves for longer is stuck there: it takes no memory any more, and gives none.
MOVES_MAX_NS = 600_000_000_000


class Turns:
    """One operation on a name at a time, in the order of their coming; keeps no idle name."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}
        self._running_since_ns: list[int] = []
        self._spans_ns: deque[tuple[int, int]] = deque(maxlen=SPANS_MAX)  # of those that have ended
        self._others = 0  # that run now
        self._others_begun = 0
        self.moving_since_ns: tuple[int, ...] = ()  # models that backends load and unload
        self.surprises = 0  # how often something was noticed that nobody had told before

    @property
    def names(self) -> list[str]:
        """Those with an operation that runs or waits."""
        return list(self._locks)

    @property
    def others(self) -> tuple[int, int]:
        """How many run that residency does not do, and how many have begun: the same again says
        that none began or ended meanwhile."""
        return self._others, self._others_begun

    def ran_between(self, from_ns: int, to_ns: int) -> bool:
        """Whether one ran at some time of these, which are not long ago."""
        return (
            any(began <= to_ns for began in self._running_since_ns)
            or any(began <= to_ns and ended >= from_ns for began, ended in self._spans_ns)
            or any(began <= to_ns <= began + MOVES_MAX_NS for began in self.moving_since_ns)
        )

    def noticed(self, began_ns: int) -> None:
        """Something like an operation has happened since then: it may be told by nobody."""
        self.surprises += 1
        self._spans_ns.append((began_ns, time.monotonic_ns()))

    @asynccontextmanager
    async def of(self, names: Iterable[str], residency: bool = False) -> AsyncIterator[None]:
        """Holds all these names; they are taken in order, against deadlocks."""
        taken: list[asyncio.Lock] = []
        began_ns = 0
        wanted = sorted(set(names))
        for name in wanted:
            self._users[name] = self._users.get(name, 0) + 1
            self._locks.setdefault(name, asyncio.Lock())
        try:
            for name in wanted:
                await self._locks[name].acquire()
                taken.append(self._locks[name])
            began_ns = time.monotonic_ns()
            self._running_since_ns.append(began_ns)
            if residency:
                yield
                return
            self._others += 1
            self._others_begun += 1
            try:
                yield
            finally:
                self._others -= 1
        finally:
            if began_ns:
                self._running_since_ns.remove(began_ns)
                self._spans_ns.append((began_ns, time.monotonic_ns()))
            for lock in taken:
                lock.release()
            for name in wanted:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name], self._locks[name]
