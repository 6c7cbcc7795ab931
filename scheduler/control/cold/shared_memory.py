"""System- and CudaSharedMemoryRegister, -Unregister and -Status.

A region is memory of one host: it is registered with every backend on the scheduler's host and with
no other, or with none at all. The data plane sends requests that name it only there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.local import is_local
from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.fan_out import READ_TIMEOUT_S, UPDATE_TIMEOUT_S, Outcome, ask_all
from scheduler.control.cold.regions import Kind
from scheduler.control.payload_memory import PREFIX, is_payload_key, is_payload_region
from scheduler.control.plane import ControlPlane
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


class SharedMemory:
    """Registers regions with the local backends, and again with one that comes back."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._regions = plane.regions
        # Regions change one after the other, and not while a backend is told of them.
        self._turn = asyncio.Lock()
        plane.on_rejoin.append(self._rejoined)

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
        async with self._turn:
            if request.name in self._regions.by_name:
                raise ColdError(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"shared memory region '{request.name}' already in manager",
                )
            watches = await self._reachable()
            method = f"{kind}SharedMemoryRegister"
            outcome = await ask_all(self._plane.pool, watches, method, request)
            if outcome.failures:
                await self._roll_back(kind, request.name, watches, outcome)
                Outcome({}, outcome.failures, outcome.named).raise_failures()
            self._regions.add(kind, request, outcome.answers)
            await self._tell_data_plane()
        return getattr(service_pb2, f"{method}Response")()

    async def unregister(self, kind: Kind, request: Any) -> Any:
        """One region, or all of the kind where no name is given. Raises ColdError."""
        method = f"{kind}SharedMemoryUnregister"
        async with self._turn:
            removed = {
                name: region
                for name, region in self._regions.by_name.items()
                if region.kind == kind and request.name in ("", name)
            }
            self._regions.remove(removed)
            await self._tell_data_plane()
            watches = [watch for watch in await self._local() if watch.takes_calls]
            outcome = await self._unregister_at(kind, request, watches)
            for region in removed.values() if outcome.failures else ():
                left = {failure.address for failure in outcome.failures}
                self._regions.add(kind, region.request, region.backends & left)
            await self._tell_data_plane()
            outcome.raise_failures()
        return getattr(service_pb2, f"{method}Response")()

    async def status(self, kind: Kind, request: Any) -> Any:
        """What the local backends have. Raises ColdError."""
        method = f"{kind}SharedMemoryStatus"
        merged = getattr(service_pb2, f"{method}Response")()
        watches = [watch for watch in await self._local() if watch.takes_calls]
        outcome = await ask_all(self._plane.pool, watches, method, request, READ_TIMEOUT_S)
        for answer in outcome.answers.values():
            for name, region in answer.regions.items():
                if not is_payload_region(name):
                    merged.regions[name].CopyFrom(region)
        if watches:
            outcome.raise_unless_answered()
        elif request.name:
            raise ColdError(
                grpc.StatusCode.NOT_FOUND,
                f"Unable to find {kind.lower()} shared memory region: '{request.name}'",
            )
        return merged

    async def _unregister_at(
        self, kind: Kind, request: Any, watches: list[BackendWatch]
    ) -> Outcome:
        """As asked; all of a kind are all but those of the data plane itself."""
        method = f"{kind}SharedMemoryUnregister"
        if request.name or kind != "System":
            return await ask_all(self._plane.pool, watches, method, request)
        asked = service_pb2.SystemSharedMemoryStatusRequest()
        outcome = await ask_all(
            self._plane.pool, watches, "SystemSharedMemoryStatus", asked, READ_TIMEOUT_S
        )
        failures = list(outcome.failures)
        names = {name for answer in outcome.answers.values() for name in answer.regions}
        for name in sorted(names):
            if not is_payload_region(name):
                one = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
                failures += (await ask_all(self._plane.pool, watches, method, one)).failures
        return Outcome(outcome.answers, tuple(failures), outcome.named)

    async def _roll_back(
        self, kind: Kind, name: str, watches: list[BackendWatch], outcome: Outcome
    ) -> None:
        told = [watch for watch in watches if watch.address in outcome.answers]
        request = getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name=name)
        undone = await ask_all(self._plane.pool, told, f"{kind}SharedMemoryUnregister", request)
        for failure in undone.failures:
            log(logger, logging.WARNING, "a region stays registered that others refused",
                region=name, reason=failure)  # fmt: skip

    async def _rejoined(self, address: str) -> None:
        """The backend came (back), perhaps as another process."""
        async with self._turn:
            watch = self._plane.pool.watches.get(address)
            if watch is None or not self._regions.by_name or watch not in await self._local():
                return
            for name, region in list(self._regions.by_name.items()):
                method = f"{region.kind}SharedMemoryRegister"
                try:
                    await watch.calls.rpc(method, region.request, UPDATE_TIMEOUT_S)
                except RpcError as error:
                    if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                        log(logger, logging.WARNING, "a region cannot be registered again",
                            region=name, backend=address, reason=error.text)  # fmt: skip
                        continue
                self._regions.gained(name, address)
            self._plane.refresh_state()

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
