"""Which hosts of backends are this one. Each is found out by itself: a name server that is slow to
tell one of them holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from scheduler.backends.local import is_local


class LocalHosts:
    """`on_found` is called after each answer."""

    def __init__(self, on_found: Callable[[], None]) -> None:
        self.known: dict[str, bool] = {}
        self._on_found = on_found
        self._asking: dict[str, asyncio.Task[None]] = {}

    def look(self, hosts: Collection[str]) -> None:
        """These are all there are: asks for the new ones."""
        self.known = {host: local for host, local in self.known.items() if host in hosts}
        for gone in self._asking.keys() - set(hosts):
            self._asking.pop(gone).cancel()
        for host in hosts:
            if host not in self.known and host not in self._asking:
                self._asking[host] = asyncio.create_task(self._ask(host))

    def stop(self) -> None:
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    async def _ask(self, host: str) -> None:
        local = await is_local(host)
        self.known[host] = local
        del self._asking[host]
        self._on_found()
