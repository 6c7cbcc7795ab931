"""Makes the data plane's shared memory known to the Tritons of this host.

The data plane receives large tensors into a segment of its own; a Triton that has registered it
reads and writes them there. Only a backend at an address of this host is asked, and the name is
random: one that can open it sees the same memory. Where it cannot (another namespace, another user)
large tensors go by the wire, as they do to every other backend.

Regions have random names, too. When the data plane has lost a call it waits for a region of another
name, which it gets when Triton has let go of the former one: 2.51 refuses to unregister what a
request uses, later ones list it for so long.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.local import is_local
from scheduler.backends.pool import BackendPool
from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Of the names of segments (scheduler/dataplane/segment.py) and of regions.
PREFIX = "infersched-payload-"
RETRY_PERIOD_S = 1.0
CALL_TIMEOUT_S = 2.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# Tritons before this one unmap a region under the requests that use it.
UNREGISTERS_SAFELY = (2, 51)


class PayloadMemory:
    """By backend, the region as which it has the data plane's segment. Never raises."""

    def __init__(self, pool: BackendPool, on_change: Callable[[], None]) -> None:
        self._pool = pool
        self._on_change = on_change
        self.key = ""
        self._left = False
        self._bytes = 0
        self.regions: dict[str, str] = {}
        # Regions that the data plane uses no more, by backend.
        self._lost: dict[str, set[str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # The look to come, by backend.
        self._next: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: set[tuple[str, str]] = set()

    def segment(self, key: str, size: int) -> None:
        """The data plane has this memory now; an empty key: none."""
        if key == self.key or self._left:
            return
        self.key, self._bytes = key, size
        self.regions.clear()
        self._lost.clear()
        self.look_at_all()

    def look_at_all(self) -> None:
        """The configuration has changed, or the segment."""
        self._forget_others()
        for address in self._pool.watches:
            self.look_at(address)

    def look_at(self, address: str, after_s: float = 0.0) -> None:
        """The backend came, or came back."""
        pending = self._next.get(address)
        if pending is not None:
            if after_s > 0:
                return  # it comes sooner
            pending.cancel()
        task = asyncio.get_running_loop().create_task(self._look(address, after_s))
        self._next[address] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_others(self) -> None:
        """What is known of backends that are no more."""
        watches = self._pool.watches
        for address in [a for a in self._lost if a not in watches]:
            del self._lost[address]
        for address in [a for a, lock in self._locks.items() if a not in watches]:
            if not self._locks[address].locked():
                del self._locks[address]
        self._said = {said for said in self._said if said[0] in watches}

    def backend_gone(self, address: str) -> None:
        """The backend is down: its next process has no regions."""
        self.regions.pop(address, None)

    def lost(self, address: str, region: str) -> None:
        """The data plane uses the region no more."""
        self._lost.setdefault(address, set()).add(region)
        if self.regions.get(address) == region:
            del self.regions[address]
            self._on_change()
        self.look_at(address)

    async def leave(self) -> None:
        """The data plane needs the memory no more: the backends may let go of it."""
        self._left = True
        leaving, self.regions, self.key = self.regions, {}, ""
        watches = [(self._pool.watches.get(address), name) for address, name in leaving.items()]
        await asyncio.gather(*(_unregister(watch, name) for watch, name in watches if watch))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look(self, address: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._next.pop(address, None)  # what comes from now on is for another look
        if address not in self._pool.watches:
            return
        async with self._locks.setdefault(address, asyncio.Lock()):
            watch, key = self._pool.watches.get(address), self.key
            if watch is None or not key or not watch.takes_calls:
                return
            backend = self._pool.backends.get(address)
            wanted = backend is not None and backend.shared_memory == "auto"
            if backend is None or not await is_local(backend.address.host):
                return
            try:
                name = await self._ensure(watch, key, wanted)
            except RpcError as error:
                self._say(address, error.text)
                if error.code in _PASSING:
                    self.look_at(address, RETRY_PERIOD_S)
                return
            if key != self.key:
                return
            if name is None and wanted:
                self.look_at(address, RETRY_PERIOD_S)
            if name != self.regions.get(address):
                if name is None:
                    self.regions.pop(address, None)
                else:
                    self.regions[address] = name
                self._on_change()

    async def _ensure(self, watch: BackendWatch, key: str, wanted: bool) -> str | None:
        """The region of the segment at this backend, registered if need be; None: not now."""
        known = await _regions(watch)
        ours = [name for name, region in known.items() if region.key == key]
        lost = self._lost.get(watch.address, set())
        for name, region in known.items():
            if region.key != key and is_payload_key(region.key) and _is_abandoned(region.key):
                await _unregister(watch, name)
        if wanted:
            for name in ours:
                if name not in lost and self._is_whole_segment(known[name]):
                    return name
        if ours:
            for name in ours:
                await _unregister(watch, name)
            if any(region.key == key for region in (await _regions(watch)).values()):
                return None
        self._lost.pop(watch.address, None)
        if not wanted:
            return None
        name = PREFIX + secrets.token_hex(8)
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=0, byte_size=self._bytes
        )
        await watch.calls.rpc("SystemSharedMemoryRegister", request, CALL_TIMEOUT_S)
        log(logger, logging.INFO, "large tensors go through shared memory", backend=watch.address)
        return name

    def _is_whole_segment(self, region: Any) -> bool:
        """Whether this process registered it: another's may be a part of the memory."""
        whole = region.offset == 0 and region.byte_size == self._bytes
        return whole and is_payload_region(region.name)

    def _say(self, address: str, reason: str) -> None:
        if (address, reason) not in self._said:
            self._said.add((address, reason))
            log(logger, logging.INFO, "large tensors go by the wire: the backend does not take "
                "our shared memory", backend=address, reason=reason)  # fmt: skip


def is_payload_region(name: str) -> bool:
    """Whether a region at a Triton is one of ours, not of a client."""
    return name.startswith(PREFIX)


def is_payload_key(key: str) -> bool:
    """Whether it opens the segment of a data plane; shm_open skips slashes before the name."""
    return key.lstrip("/").startswith(PREFIX)


async def _regions(watch: BackendWatch) -> dict[str, Any]:
    """The system shared-memory regions that the backend has, by their names."""
    request = service_pb2.SystemSharedMemoryStatusRequest()
    answer = await watch.calls.rpc("SystemSharedMemoryStatus", request, CALL_TIMEOUT_S)
    return dict(answer.regions.items())


async def _unregister(watch: BackendWatch, name: str) -> None:
    """Where it can be done safely; one that is in use stays."""
    version = re.match(r"(\d+)\.(\d+)", watch.server.version if watch.server else "")
    if version is None or tuple(map(int, version.groups())) < UNREGISTERS_SAFELY:
        return
    request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
    try:
        await watch.calls.rpc("SystemSharedMemoryUnregister", request, CALL_TIMEOUT_S)
    except RpcError as error:
        log(logger, logging.DEBUG, "a region stays registered", region=name, reason=error.text)


def _is_abandoned(key: str) -> bool:
    """Whether its data plane is gone: the name is taken away, by itself or by its successor."""
    return not Path("/dev/shm", key.lstrip("/")).exists()
