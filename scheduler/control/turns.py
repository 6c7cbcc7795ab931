"""Operations that must not run side by side, by the names of what they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


class Turns:
    """One operation on a name at a time, in the order of their coming; keeps no idle name."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}
        self._others = 0  # that run now
        self._others_begun = 0

    @property
    def names(self) -> list[str]:
        """Those with an operation that runs or waits."""
        return list(self._locks)

    @property
    def others(self) -> tuple[int, int]:
        """How many run that residency does not do, and how many have begun: the same again says
        that none began or ended meanwhile."""
        return self._others, self._others_begun

    @asynccontextmanager
    async def of(self, names: Iterable[str], residency: bool = False) -> AsyncIterator[None]:
        """Holds all these names; they are taken in order, against deadlocks."""
        taken: list[asyncio.Lock] = []
        wanted = sorted(set(names))
        for name in wanted:
            self._users[name] = self._users.get(name, 0) + 1
            self._locks.setdefault(name, asyncio.Lock())
        try:
            for name in wanted:
                await self._locks[name].acquire()
                taken.append(self._locks[name])
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
            for lock in taken:
                lock.release()
            for name in wanted:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name], self._locks[name]
