"""System- and CudaSharedMemoryRegister, -Unregister and -Status.

A region is memory of one host: it is registered with every backend on the scheduler's host and with
no other, or with none at all. The data plane sends requests that name it only there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.local import is_local
from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.fan_out import PASSING, READ_TIMEOUT_S, Outcome, ask_all
from scheduler.control.cold.region_sync import KINDS, unregister_leftover
from scheduler.control.cold.regions import Kind
from scheduler.control.payload_memory import PREFIX, is_payload_key, is_payload_region
from scheduler.control.plane import ControlPlane
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


class SharedMemory:
    """Registers regions with the local backends; RegionSync does with one that comes back."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._regions = plane.regions
        self._sync = plane.region_sync
        self._operations: set[asyncio.Task[None]] = set()

    async def has_local_backend(self) -> bool:
        """Whether any backend runs on this host."""
        return bool(await self._local())

    async def register(self, kind: Kind, request: Any) -> Any:
        """Raises ColdError; then no backend has the region."""
        if is_payload_region(request.name) or is_payload_key(getattr(request, "key", "")):
            # A client that maps the data plane's segment sees the tensors of all others.
            raise ColdError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"failed to register shared memory region '{request.name}': names and keys that "
                f"begin with '{PREFIX}' are the scheduler's own",
            )
        await self._in_turn(lambda: self._register(kind, request))
        return getattr(service_pb2, f"{kind}SharedMemoryRegisterResponse")()

    async def unregister(self, kind: Kind, request: Any) -> Any:
        """One region, or all of the kind where no name is given. Raises ColdError."""
        await self._in_turn(lambda: self._unregister(kind, request.name))
        return getattr(service_pb2, f"{kind}SharedMemoryUnregisterResponse")()

    async def status(self, kind: Kind, request: Any) -> Any:
        """What the local backends have. Raises ColdError."""
        method = f"{kind}SharedMemoryStatus"
        merged = getattr(service_pb2, f"{method}Response")()
        watches = [watch for watch in await self._local() if watch.takes_calls]
        outcome = await ask_all(self._plane.pool, watches, method, request, READ_TIMEOUT_S)
        for address, answer in outcome.answers.items():
            for name, region in answer.regions.items():
                if not is_payload_region(name) and name not in self._regions.left_at(address):
                    merged.regions[name].CopyFrom(region)
        if watches:
            outcome.raise_unless_answered()
        if request.name and not merged.regions:
            raise ColdError(
                grpc.StatusCode.NOT_FOUND,
                f"Unable to find {kind.lower()} shared memory region: '{request.name}'",
            )
        return merged

    async def _in_turn(self, operation: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Once begun it goes on to its end, also where the client is gone: what backends have and
        what is known of it must agree."""
        await self._sync.turn.acquire()
        task = asyncio.create_task(operation())
        self._operations.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sync.turn.release()
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # fetched, for the client may not be there to get it

    async def _register(self, kind: Kind, request: Any) -> None:
        if await self._is_somewhere(request.name):
            raise ColdError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"shared memory region '{request.name}' already in manager",
            )
        watches = await self._reachable()
        await self._make_room(request.name, watches)
        method = f"{kind}SharedMemoryRegister"
        outcome = await ask_all(self._plane.pool, watches, method, request)
        if outcome.failures:
            await self._roll_back(kind, request.name, watches, outcome)
            Outcome({}, outcome.failures, outcome.named).raise_failures()
        self._regions.add(kind, request, outcome.answers)
        await self._tell_data_plane()

    async def _unregister(self, kind: Kind, only: str) -> None:
        removed = {
            name: region
            for name, region in self._regions.by_name.items()
            if region.kind == kind and only in ("", name)
        }
        self._regions.remove(removed)
        await self._tell_data_plane()
        watches = [watch for watch in await self._local() if watch.takes_calls]
        told = {watch.address for watch in watches}
        outcome, names = Outcome({}, (), named=False), {only}
        if not only:
            outcome, listed = await self._listed(kind, watches)
            names = listed | removed.keys()
        failures = list(outcome.failures)
        for name in sorted(names):
            outcome = await self._unregister_one(kind, name, _answering(watches, failures))
            failures += outcome.failures
            for address in outcome.answers if name in removed else ():
                self._regions.cleared(name, address)
            refusing = {f.address for f in outcome.failures if f.code not in PASSING}
            if name in removed and removed[name].backends & refusing:
                self._regions.restore(removed[name], removed[name].backends & refusing)
        await self._tell_data_plane()
        # One that answers may have let go of a leftover: its Status shows which kind that was.
        self._look_at_behind(told)
        Outcome(outcome.answers, tuple(failures), outcome.named).raise_failures()

    async def _listed(self, kind: Kind, watches: list[BackendWatch]) -> tuple[Outcome, set[str]]:
        """The names of all regions of the kind but those of data planes."""
        asked = getattr(service_pb2, f"{kind}SharedMemoryStatusRequest")()
        method = f"{kind}SharedMemoryStatus"
        outcome = await ask_all(self._plane.pool, watches, method, asked, READ_TIMEOUT_S)
        names = {name for answer in outcome.answers.values() for name in answer.regions}
        return outcome, {name for name in names if not is_payload_region(name)}

    async def _unregister_one(self, kind: Kind, name: str, watches: list[BackendWatch]) -> Outcome:
        request = getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name=name)
        method = f"{kind}SharedMemoryUnregister"
        return await ask_all(self._plane.pool, watches, method, request)

    async def _is_somewhere(self, name: str) -> bool:
        """Whether a backend has the remembered region; one that does not answer does."""
        region = self._regions.by_name.get(name)
        if region is None or not region.backends:
            return False
        # One that is no backend any more is asked nothing.
        having = [w for a, w in self._plane.pool.watches.items() if a in region.backends]
        watches = [watch for watch in having if watch.takes_calls]
        outcome, names = await self._listed(region.kind, watches)
        return name in names or bool(outcome.failures) or len(watches) < len(having)

    async def _make_room(self, name: str, watches: list[BackendWatch]) -> None:
        """Where something is left by this name; what stays makes the registration fail."""
        for watch in watches:
            if name in self._regions.left_at(watch.address):
                with contextlib.suppress(RpcError):
                    for kind in KINDS:
                        await unregister_leftover(watch, kind, name)

    async def _roll_back(
        self, kind: Kind, name: str, watches: list[BackendWatch], outcome: Outcome
    ) -> None:
        told = [watch for watch in watches if watch.address in outcome.answers]
        undone = await self._unregister_one(kind, name, told)
        for failure in undone.failures:
            log(logger, logging.WARNING, "a region stays registered that others refused",
                region=name, reason=failure)  # fmt: skip
        unknown = (failure for failure in outcome.failures if failure.code in PASSING)
        for failure in (*undone.failures, *unknown):
            self._regions.leave(name, failure.address)
        self._look_at_behind({f.address for f in (*undone.failures, *outcome.failures)})

    def _look_at_behind(self, addresses: set[str]) -> None:
        """What they missed they are told when they answer again."""
        for address in addresses:
            if self._regions.is_behind(address):
                self._sync.look_at(address)

    async def _local(self) -> list[BackendWatch]:
        pool = self._plane.pool
        addresses = [a for a in pool.watches if a in pool.backends]
        local = await asyncio.gather(*(is_local(pool.backends[a].address.host) for a in addresses))
        found = zip(addresses, local, strict=True)
        return [pool.watches[a] for a, here in found if here and a in pool.watches]

    async def _reachable(self) -> list[BackendWatch]:
        local = await self._local()
        if not local:
            raise ColdError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "shared memory needs a Triton on the scheduler's own host, and none of its "
                f"backends is: {', '.join(self._plane.pool.watches)}",
            )
        found = [watch for watch in local if watch.takes_calls]
        if not found:
            reasons = ", ".join(f"{watch.address} ({watch.reason})" for watch in local)
            raise ColdError(
                grpc.StatusCode.UNAVAILABLE,
                f"no backend on the scheduler's own host can be reached: {reasons}",
            )
        return found

    async def _tell_data_plane(self) -> None:
        self._plane.refresh_state()
        await self._plane.confirmed()


def _answering(watches: list[BackendWatch], failures: Iterable[RpcError]) -> list[BackendWatch]:
    """Without those that did not answer: each further call would wait for them anew."""
    silent = {failure.address for failure in failures if failure.code in PASSING}
    return [watch for watch in watches if watch.address not in silent]
