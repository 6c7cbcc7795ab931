"""Which hosts of backends are this one. Each is found out by itself: a name server that is slow to
tell one of them holds up no other. One that cannot tell is asked again: a host may get its name
after its backend is configured."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from scheduler.backends.local import told_local
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

AGAIN_S = 10.0


class LocalHosts:
    """`on_found` is called after each answer that is news."""

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
        while True:
            told = await _told(host)
            local = bool(told)
            if self.known.get(host) is not local:
                self.known[host] = local
                self._on_found()
            if told is not None:
                break
            await asyncio.sleep(AGAIN_S)
        del self._asking[host]


async def _told(host: str) -> bool | None:
    try:
        return await told_local(host)
    except Exception as error:  # or it would never be asked again
        log(logger, logging.ERROR, "cannot find out whether a host is this one", host=host,
            reason=repr(error))  # fmt: skip
        return None
