"""Brings a backend that came (back) to the regions that clients registered.

It may be another process, which has none, or the one that was out of reach, which has what it had
then: a region that was taken away or given to other memory since must not be read there. Requests
that name a region go to no backend that is not known to have it, and are refused where none is:
the other requests need not wait for this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.local import told_local
from scheduler.backends.pool import BackendPool
from scheduler.backends.probe import RpcError
from scheduler.backends.waiting import set_within
from scheduler.backends.watch import BackendWatch
from scheduler.control.cold.fan_out import PASSING, READ_TIMEOUT_S, UPDATE_TIMEOUT_S
from scheduler.control.cold.regions import Kind, Region, Regions
from scheduler.control.payload_memory import is_payload_key, is_payload_region
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("System", "Cuda")
# Triton's words of a call that --grpc-restricted-protocol keeps for others.
RESTRICTED = "This protocol is restricted"
# Between tries; a request may use a region for long, and Triton keeps it for so long.
RETRY_PAUSE_S = 1.0
RETRY_PAUSE_MAX_S = 32.0
# The data plane waits this long for the regions of the backends that are there at the start.
START_WAIT_S = 5.0
# What a backend tells of, by name; the regions of data planes left out.
Found = dict[Kind, dict[str, Any]]


class RegionSync:
    """Looks at one backend after the other. Never raises.

    `tell` returns when the data plane serves by the regions as they are; `on_change` waits for
    nothing.
    """

    def __init__(
        self,
        pool: BackendPool,
        regions: Regions,
        on_change: Callable[[], None],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._regions = regions
        self._on_change = on_change
        self._tell = tell
        # Regions change one after the other, and not while a backend is told of them.
        self.turn = asyncio.Lock()
        self._seen: set[str] = set()
        self._due: dict[str, asyncio.Event] = {}
        self._first: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def settled(self) -> bool:
        """Whether every backend that came was looked at once, or hangs."""
        return not self._first

    def look_at(self, address: str) -> None:
        """The backend came (back), or did not answer a call about a region."""
        self._due.setdefault(address, asyncio.Event()).set()
        if address not in self._seen:
            self._first.add(address)
        self._seen.add(address)
        if address not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._look(address))
            self._tasks[address] = task

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, address: str) -> None:
        timer = asyncio.get_running_loop().call_later(START_WAIT_S, self._looked, address)
        due, pause_s = self._due[address], RETRY_PAUSE_S
        try:
            while due.is_set():
                due.clear()
                if await self._brought(address):
                    continue
                self._looked(address)
                if await set_within(due, pause_s):  # it may be another process by now
                    pause_s = RETRY_PAUSE_S
                else:
                    pause_s = min(2 * pause_s, RETRY_PAUSE_MAX_S)
                    due.set()
        finally:
            timer.cancel()
            del self._tasks[address]
        self._looked(address)

    def _looked(self, address: str) -> None:
        self._first.discard(address)
        self._on_change()

    async def _brought(self, address: str) -> bool:
        """False: to be tried again."""
        try:
            backend = self._pool.backends.get(address)
            if backend is None:
                return True
            local = await told_local(backend.address.host)
            if not local:
                return local is not None  # a name server may be away for now
            async with self.turn:
                watch = self._pool.watches.get(address)
                # One that is down is looked at when it is back.
                return watch is None or not watch.takes_calls or await self._bring(watch)
        except Exception as error:
            log(logger, logging.ERROR, "regions of a backend cannot be looked at",
                backend=address, reason=repr(error))  # fmt: skip
            return False

    async def _bring(self, watch: BackendWatch) -> bool:
        try:
            return await self._bring_by(watch, await _ask(watch))
        except RpcError as error:
            log(logger, logging.DEBUG, "a backend does not answer about its regions",
                backend=watch.address, reason=error.text)  # fmt: skip
            if not is_restricted(error):
                return False
            # It refuses all such calls, which is no matter where none is due.
            registered = (not region.adopted for region in self._regions.by_name.values())
            return not self._regions.left_at(watch.address) and not any(registered)

    async def _bring_by(self, watch: BackendWatch, found: Found) -> bool:
        address = watch.address
        await self._compare(address, found)
        if self._regions.left_at(address):
            found = await self._clear(watch, found)
        left = self._regions.left_at(address)
        for name, listed in found["System"].items():
            if name not in self._regions.by_name and name not in left:
                self._adopt(listed, address)
        done = not left
        for name, region in list(self._regions.by_name.items()):
            if name in left:
                continue
            if _is_same(region, found, sure=True):  # what was not is a leftover
                self._regions.gained(name, address)
            elif region.adopted:
                self._regions.absent(name, address)
            else:
                done &= await self._register(watch, name, region)
        return done

    async def _compare(self, address: str, found: Found) -> None:
        """What is there by our names and is not ours becomes a leftover."""
        used = False
        for name, region in list(self._regions.by_name.items()):
            sure = address in region.backends
            listed = any(name in found[kind] for kind in KINDS)
            if listed and _is_same(region, found, sure):
                continue
            if region.adopted and name in found["System"]:
                self._readopt(name, address, found["System"][name])
            elif listed and not region.adopted:
                self._regions.leave(name, address)
            elif sure:
                self._regions.doubt(name, address)
            used |= sure
        if used:
            await self._tell()

    async def _clear(self, watch: BackendWatch, found: Found) -> Found:
        """Takes the leftovers away; what a request uses may stay for now."""
        address = watch.address
        for name in sorted(self._regions.left_at(address)):
            for kind in KINDS:
                if name in found[kind]:
                    await unregister_leftover(watch, kind, name)
        found = await _ask(watch)
        for name in self._regions.left_at(address):
            if not any(name in found[kind] for kind in KINDS):
                self._regions.cleared(name, address)
        return found

    async def _register(self, watch: BackendWatch, name: str, region: Region) -> bool:
        method = f"{region.kind}SharedMemoryRegister"
        try:
            await watch.calls.rpc(method, region.request, UPDATE_TIMEOUT_S)
        except RpcError as error:
            log(logger, logging.WARNING, "a region cannot be registered again",
                region=name, backend=watch.address, reason=error.text)  # fmt: skip
            if error.code in PASSING:
                raise
            if error.code is grpc.StatusCode.ALREADY_EXISTS:
                return False
            self._regions.absent(name, watch.address)
            return True
        self._regions.gained(name, watch.address)
        return True

    def _adopt(self, listed: Any, address: str) -> None:
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=listed.name, key=listed.key, offset=listed.offset, byte_size=listed.byte_size
        )
        self._regions.add("System", request, [address], adopted=True)
        log(logger, logging.INFO, "a region is used as it was found", region=listed.name,
            key=listed.key, backend=address)  # fmt: skip

    def _readopt(self, name: str, address: str, listed: Any) -> None:
        """Another's region is what its backends say, if they agree."""
        self._regions.absent(name, address)
        if name not in self._regions.by_name:
            self._adopt(listed, address)
        else:
            log(logger, logging.WARNING, "a region is not used where it is other memory than "
                "elsewhere", region=name, key=listed.key, backend=address)  # fmt: skip


def is_restricted(error: RpcError) -> bool:
    """Whether Triton is set up to refuse such calls: the code alone is that of a lost one."""
    return error.code is grpc.StatusCode.UNAVAILABLE and RESTRICTED in error.text


async def unregister_leftover(watch: BackendWatch, kind: Kind, name: str) -> None:
    """Where the backend lets go of it; what it keeps, its Status shows. Raises RpcError where there
    is no answer."""
    request = getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name=name)
    try:
        await watch.calls.rpc(f"{kind}SharedMemoryUnregister", request, UPDATE_TIMEOUT_S)
    except RpcError as error:
        log(logger, logging.INFO, "a region that is no more stays at a backend for now",
            region=name, backend=watch.address, reason=error.text)  # fmt: skip
        if error.code in PASSING:
            raise


async def _ask(watch: BackendWatch) -> Found:
    """The regions that the backend has, but those of data planes; none where it cannot tell. Raises
    RpcError where there is no answer."""
    found: Found = {}
    for kind in KINDS:
        request = getattr(service_pb2, f"{kind}SharedMemoryStatusRequest")()
        try:
            answer = await watch.calls.rpc(f"{kind}SharedMemoryStatus", request, READ_TIMEOUT_S)
        except RpcError as error:
            if error.code in PASSING:
                raise
            found[kind] = {}
            continue
        found[kind] = {
            name: region
            for name, region in answer.regions.items()
            if not is_payload_region(name) and not is_payload_key(getattr(region, "key", ""))
        }
    return found


def _is_same(region: Region, found: Found, sure: bool) -> bool:
    """Whether the backend has this region and no other by its name."""
    wanted, listed = region.request, found[region.kind].get(region.request.name)
    if listed is None:
        return False
    if region.kind == "System":
        there = (listed.key, listed.offset, listed.byte_size)
        return there == (wanted.key, wanted.offset, wanted.byte_size)
    # Handles are not told: only one that nobody can have changed meanwhile is taken for ours.
    return sure and (listed.device_id, listed.byte_size) == (wanted.device_id, wanted.byte_size)
