"""A backend that comes (back) is brought to what clients registered; a fake Triton has regions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.probe import RpcError
from scheduler.control.cold import region_sync
from scheduler.control.cold.region_sync import RegionSync
from scheduler.control.cold.regions import Regions

ADDRESS, OTHER = "127.0.0.1:8001", "127.0.0.1:8003"


class Triton:
    """Its regions by name; it lets go of those in use when it was asked once more than `in_use`."""

    def __init__(self) -> None:
        self.regions: dict[str, Any] = {}
        self.in_use: dict[str, int] = {}
        self.silent: dict[str, int] = {}  # how often by method
        self.gone: set[str] = set()  # keys of memory
        self.called: list[str] = []

    async def rpc(self, method: str, request: Any, _timeout_s: float) -> Any:
        self.called.append(method)
        if self.silent.get(method, 0) > 0:
            self.silent[method] -= 1
            raise RpcError(ADDRESS, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        kind = "Cuda" if method.startswith("Cuda") else "System"
        if method.endswith("Status"):
            return self._status(kind)
        if method.endswith("Unregister"):
            return self._unregister(kind, request.name)
        if request.name in self.regions:
            raise RpcError(ADDRESS, grpc.StatusCode.ALREADY_EXISTS, "already in manager")
        if getattr(request, "key", "") in self.gone:
            raise RpcError(ADDRESS, grpc.StatusCode.INTERNAL, "Unable to open")
        self.regions[request.name] = request
        return None

    def _unregister(self, kind: str, name: str) -> None:
        known = self.regions.get(name)
        if known is None or not type(known).__name__.startswith(kind):
            return
        if self.in_use.get(name, 0) > 0:
            self.in_use[name] -= 1
            raise RpcError(ADDRESS, grpc.StatusCode.INTERNAL, "it is currently in use")
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

            sync = RegionSync(self.pool, self.regions, changed, self._tell)
            sync.look_at(ADDRESS)
            while not settled.is_set() or sync._tasks:
                await asyncio.sleep(0)
            await sync.close()

        asyncio.run(asyncio.wait_for(look(), 60))

    async def _tell(self) -> None:
        having = {n for n, r in self.regions.by_name.items() if ADDRESS in r.backends}
        self.told.append(having)

    def backends(self, name: str) -> set[str]:
        return self.regions.by_name[name].backends


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(region_sync, "RETRY_PAUSE_S", 0.0)
    return World(tmp_path)


def test_a_cuda_region_of_a_backend_that_was_away_is_registered_anew(world: World) -> None:
    """Its Status does not tell which memory it is."""
    world.triton.regions["c"] = cuda("c", b"old")
    world.regions.add("Cuda", cuda("c", b"old"), [ADDRESS])
    world.regions.lost(ADDRESS)
    world.regions.remove(["c"])
    world.regions.add("Cuda", cuda("c", b"new"), [OTHER])
    world.come_back()
    assert world.triton.regions["c"].raw_handle == b"new"
    assert world.backends("c") == {OTHER, ADDRESS}


def test_a_cuda_region_in_use_stays_as_it_is_under_a_new_control_plane(world: World) -> None:
    world.triton.regions["c"] = cuda("c", b"same")
    world.regions.add("Cuda", cuda("c", b"same"), [ADDRESS])
    world.come_back()
    assert {method[-6:] for method in world.triton.called} == {"Status"}
    assert world.backends("c") == {ADDRESS}


def test_a_region_of_the_other_kind_makes_room(world: World) -> None:
    world.triton.regions["r"] = cuda("r", b"old")
    world.regions.add("System", system("r", "/new"), [OTHER])
    world.come_back()
    assert world.triton.regions == {"r": system("r", "/new")}
    assert world.backends("r") == {OTHER, ADDRESS}


@pytest.mark.parametrize("key", ["/old", "/new"], ids=["the key stays", "another key"])
def test_a_region_that_a_request_uses_is_replaced_when_it_is_let_go(world: World, key: str) -> None:
    world.regions.add("System", system("r", "/old"), [ADDRESS])
    world.triton.regions["r"] = system("r", "/old")
    world.triton.in_use["r"] = 3
    world.regions.lost(ADDRESS)
    world.regions.remove(["r"])
    world.regions.add("System", system("r", key), [OTHER])
    world.come_back()
    assert world.triton.in_use["r"] == 0
    assert world.triton.regions["r"] == system("r", key)
    assert "SystemSharedMemoryRegister" in world.triton.called
    assert world.backends("r") == {OTHER, ADDRESS}
    assert not world.regions.leftovers


def test_the_data_plane_leaves_a_region_before_it_is_replaced(world: World) -> None:
    """A backend that was said to have it has another by its name."""
    world.regions.add("System", system("r", "/mine"), [ADDRESS])
    world.triton.regions["r"] = system("r", "/other")
    world.come_back()
    assert world.told == [set()]
    assert world.triton.regions["r"] == system("r", "/mine")


def test_a_backend_that_does_not_answer_is_asked_again(world: World) -> None:
    world.regions.add("System", system("r", "/new"), [OTHER])
    world.triton.silent = {"SystemSharedMemoryStatus": 2}
    world.come_back()
    assert world.backends("r") == {OTHER, ADDRESS}


def test_one_that_never_tells_is_left_alone_where_nothing_is_due(world: World) -> None:
    world.triton.silent = {"SystemSharedMemoryStatus": 1}
    world.come_back()
    assert world.triton.called == ["SystemSharedMemoryStatus"]


def test_what_no_backend_has_and_none_can_get_is_forgotten(world: World) -> None:
    world.regions.add("System", system("r", "/gone"), [ADDRESS])
    world.regions.lost(ADDRESS)
    world.triton.gone.add("/gone")
    world.come_back()
    assert not world.regions.by_name


def test_a_found_region_follows_its_backend(world: World, tmp_path: Path) -> None:
    """It is others': neither enforced nor kept when it has gone there."""
    world.triton.regions["r"] = system("r", "/one")
    world.come_back()
    assert world.backends("r") == {ADDRESS}
    world.triton.regions["r"] = system("r", "/two")
    world.regions.lost(ADDRESS)
    world.come_back()
    assert world.triton.regions["r"] == system("r", "/two")
    assert world.regions.by_name["r"].request == system("r", "/two")
    assert Regions(tmp_path).by_name["r"].adopted
    world.triton.regions.clear()
    world.regions.lost(ADDRESS)
    world.come_back()
    assert not world.regions.by_name
    assert "SystemSharedMemoryRegister" not in world.triton.called


def test_regions_of_data_planes_are_not_found(world: World) -> None:
    world.triton.regions["infersched-payload-1"] = system("infersched-payload-1", "/any")
    world.triton.regions["theirs"] = system("theirs", "/infersched-payload-2")
    world.come_back()
    assert not world.regions.by_name


def test_a_region_that_one_refuses_to_let_go_stays_there_alone(world: World) -> None:
    world.regions.add("System", system("r", "/key"), [ADDRESS, OTHER])
    region = world.regions.by_name["r"]
    world.regions.remove(["r"])
    assert world.regions.leftovers == {ADDRESS: {"r"}, OTHER: {"r"}}
    world.regions.cleared("r", OTHER)
    world.regions.restore(region, {ADDRESS})
    assert (region.backends, region.unsure) == ({ADDRESS}, set())
    assert not world.regions.leftovers
    assert world.backends("r") == {ADDRESS}
