"""Regions of shared memory, and a fake Triton that has some."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.probe import RpcError
from scheduler.control.cold.region_sync import RegionSync
from scheduler.control.cold.regions import Regions

ADDRESS, OTHER = "127.0.0.1:8001", "127.0.0.1:8003"


class Triton:
    """Its regions by name; it lets go of those in use when it was asked once more than `in_use`."""

    def __init__(self, address: str = ADDRESS) -> None:
        self.address = address
        self.regions: dict[str, Any] = {}
        self.in_use: dict[str, int] = {}
        self.silent: dict[str, int] = {}  # how often by method
        self.silence = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self.gone: set[str] = set()  # keys of memory
        self.called: list[str] = []

    async def rpc(self, method: str, request: Any, _timeout_s: float) -> Any:
        self.called.append(method)
        if self.silent.get(method, 0) > 0:
            self.silent[method] -= 1
            raise RpcError(self.address, *self.silence)
        kind = "Cuda" if method.startswith("Cuda") else "System"
        if method.endswith("Status"):
            return self._status(kind)
        if method.endswith("Unregister"):
            return self._unregister(kind, request.name)
        if request.name in self.regions:
            raise RpcError(self.address, grpc.StatusCode.ALREADY_EXISTS, "already in manager")
        if getattr(request, "key", "") in self.gone:
            raise RpcError(self.address, grpc.StatusCode.INTERNAL, "Unable to open")
        self.regions[request.name] = request
        return None

    def _unregister(self, kind: str, name: str) -> None:
        known = self.regions.get(name)
        if known is None or not type(known).__name__.startswith(kind):
            return
        if self.in_use.get(name, 0) > 0:
            self.in_use[name] -= 1
            raise RpcError(self.address, grpc.StatusCode.INTERNAL, "it is currently in use")
        del self.regions[name]

    def _status(self, kind: str) -> Any:
        answer = getattr(service_pb2, f"{kind}SharedMemoryStatusResponse")()
        for name, request in self.regions.items():
            if type(request).__name__.startswith(kind):
                fields = {"name": name, "byte_size": request.byte_size}
                if kind == "System":
                    fields |= {"key": request.key, "offset": request.offset}
                else:
                    fields["device_id"] = request.device_id
                answer.regions[name].CopyFrom(type(answer).RegionStatus(**fields))
        return answer


def system(name: str, key: str) -> Any:
    return service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=64)


def cuda(name: str, handle: bytes) -> Any:
    return service_pb2.CudaSharedMemoryRegisterRequest(
        name=name, raw_handle=handle, device_id=1, byte_size=64
    )


class World:
    """Regions, and one backend that is there."""

    def __init__(self, directory: Path) -> None:
        self.regions, self.triton = Regions(directory), Triton()
        self.watch = SimpleNamespace(address=ADDRESS, takes_calls=True, calls=self.triton)
        backend = SimpleNamespace(address=SimpleNamespace(host="127.0.0.1"))
        self.pool: Any = SimpleNamespace(watches={ADDRESS: self.watch}, backends={ADDRESS: backend})
        # What the data plane was told while the backend still had its regions.
        self.told: list[set[str]] = []

    def come_back(self) -> None:
        async def look() -> None:
            settled = asyncio.Event()

            def changed() -> None:
                if sync.settled:
                    settled.set()

            sync = RegionSync(self.pool, self.regions, changed, self.tell)
            sync.look_at(ADDRESS)
            while not settled.is_set() or sync._tasks:
                await asyncio.sleep(0)
            await sync.close()

        asyncio.run(asyncio.wait_for(look(), 60))

    async def tell(self) -> None:
        having = {n for n, r in self.regions.by_name.items() if ADDRESS in r.backends}
        self.told.append(having)

    def backends(self, name: str) -> set[str]:
        return self.regions.by_name[name].backends
