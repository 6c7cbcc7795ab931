"""Clients register regions and take them away, while backends or clients are not there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.region_sync import RegionSync
from scheduler.control.cold.shared_memory import SharedMemory
from tests.unit.control.cold.region_world import ADDRESS, OTHER, Triton, World, system

REGISTER, UNREGISTER = "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"


class SlowTriton(Triton):
    """It takes in a call of `held`, and answers when the gate is open."""

    held = ""

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        answer = await super().rpc(method, request, timeout_s)
        if method == self.held:
            self.taken.set()
            await self.gate.wait()
        return answer

    def hold(self, method: str) -> None:
        self.held, self.taken, self.gate = method, asyncio.Event(), asyncio.Event()


class Plane(World):
    """Two backends on this host; `asked` is what the first was called for before it was looked at
    anew."""

    asked: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.triton = self.watch.calls = SlowTriton()
        self.other = Triton(OTHER)
        self.pool.watches[OTHER] = SimpleNamespace(
            address=OTHER, takes_calls=True, calls=self.other
        )
        self.pool.backends[OTHER] = self.pool.backends[ADDRESS]
        self.sync = RegionSync(self.pool, self.regions, lambda: None, self.tell)
        plane: Any = SimpleNamespace(
            pool=self.pool,
            regions=self.regions,
            region_sync=SimpleNamespace(turn=self.sync.turn, look_at=self._look_at),
            refresh_state=lambda: None,
            confirmed=self.tell,
        )
        self.shared_memory = SharedMemory(plane)

    def _look_at(self, address: str) -> None:
        if address == ADDRESS:
            self.asked = tuple(self.triton.called)
        self.sync.look_at(address)

    async def register(self, name: str) -> None:
        await self.shared_memory.register("System", system(name, f"/{name}"))

    async def unregister(self, name: str = "") -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        await self.shared_memory.unregister("System", request)

    async def client_goes(self, operation: Coroutine[Any, Any, None], method: str) -> None:
        """Between what a backend did and its answer; returns when all is at its end."""
        self.triton.hold(method)
        client = asyncio.create_task(operation)
        await self.triton.taken.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        self.triton.gate.set()
        self.triton.held = ""
        async with self.sync.turn:
            pass

    async def looked(self) -> None:
        await asyncio.gather(*self.sync._tasks.values())


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_one_that_hangs_is_waited_for_once_when_all_are_taken_away(plane: Plane) -> None:
    names = [f"r{number}" for number in range(5)]

    async def scenario() -> None:
        for name in names:
            await plane.register(name)
        plane.triton.called.clear()
        plane.triton.silent = {UNREGISTER: 1}
        with pytest.raises(ColdError, match="Deadline Exceeded") as caught:
            await plane.unregister()
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert plane.asked == ("SystemSharedMemoryStatus", UNREGISTER)
        assert not plane.other.regions
        await plane.looked()
        assert not plane.triton.regions
        assert not plane.regions.leftovers

    run(scenario())


def test_one_that_does_not_tell_what_it_has_is_asked_no_more(plane: Plane) -> None:
    async def scenario() -> None:
        await plane.register("r")
        plane.triton.called.clear()
        plane.triton.silent = {"SystemSharedMemoryStatus": 1}
        with pytest.raises(ColdError, match="Deadline Exceeded"):
            await plane.unregister()
        assert plane.asked == ("SystemSharedMemoryStatus",)
        assert not plane.other.regions
        await plane.looked()
        assert not plane.triton.regions

    run(scenario())


def test_a_registration_goes_to_its_end_when_its_client_is_gone(plane: Plane) -> None:
    async def scenario() -> None:
        await plane.client_goes(plane.register("r"), REGISTER)
        assert plane.backends("r") == {ADDRESS, OTHER}

    run(scenario())


def test_a_region_is_taken_away_to_the_end_when_its_client_is_gone(plane: Plane) -> None:
    async def scenario() -> None:
        await plane.register("a")
        await plane.register("b")
        await plane.client_goes(plane.unregister(), UNREGISTER)
        assert not plane.triton.regions
        assert not plane.other.regions
        assert not plane.regions.leftovers

    run(scenario())


def test_a_client_that_goes_before_its_turn_changes_nothing(plane: Plane) -> None:
    async def scenario() -> None:
        async with plane.sync.turn:
            client = asyncio.create_task(plane.register("r"))
            await asyncio.sleep(0)
            client.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client
        await plane.unregister("other")
        assert not plane.regions.by_name
        assert REGISTER not in plane.triton.called

    run(scenario())


def test_a_leftover_that_a_client_frees_is_forgotten(plane: Plane) -> None:
    async def scenario() -> None:
        await plane.register("r")
        plane.regions.remove(["r"])
        await plane.unregister("r")
        await plane.looked()
        assert not plane.triton.regions
        assert not plane.regions.leftovers

    run(scenario())


def test_a_backend_that_was_configured_away_holds_no_name(plane: Plane) -> None:
    async def scenario() -> None:
        await plane.register("r")
        plane.triton.regions.clear()
        del plane.pool.watches[OTHER], plane.pool.backends[OTHER]
        await plane.register("r")
        assert plane.backends("r") == {ADDRESS}
        with pytest.raises(ColdError, match="already in manager"):
            await plane.register("r")

    run(scenario())
