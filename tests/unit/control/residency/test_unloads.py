"""A model leaves, and its Triton or what is heard of it fails in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends import watch as watch_module
from scheduler.backends.pool import BackendPool
from scheduler.backends.probe import Answer, ProbeResult, RpcError
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config import Settings
from scheduler.config.schema import Discovery
from scheduler.control import unloading
from scheduler.control.residency import unloads as unloads_module
from scheduler.control.residency.policy import Resident
from scheduler.control.residency.unloads import UnloadError, Unloads
from scheduler.control.turns import Turns
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.triton_answers import ScriptedCalls

ADDRESS = "127.0.0.1:1"
MODEL = ("a", "1")
VICTIM = Resident("a", ADDRESS, {ADDRESS: 1})
LATE, TIMEOUT = ProbeResult(Answer.LATE), ProbeResult(Answer.TIMEOUT)
BOUND_S = 60


class Triton(ScriptedCalls):
    """Unloads at once; the faults of each call are taken in turn."""

    def __init__(self) -> None:
        super().__init__(a='name: "a"', b='name: "b"')
        self.index_faults: list[Exception] = []
        self.unload_faults: list[Exception] = []
        self.probes_to_come: list[ProbeResult] = []
        self.takes_unloads = True
        self.on_probe: Callable[[], None] = lambda: None

    async def ready(self, timeout_s: float) -> ProbeResult:
        self.on_probe()
        return self.probes_to_come.pop(0) if self.probes_to_come else await super().ready(timeout_s)

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        if method == "RepositoryIndex":
            if self.index_faults:
                raise self.index_faults.pop(0)
            return await self.index()
        assert method == "RepositoryModelUnload"
        if self.takes_unloads:
            self.states[request.model_name, "1"] = "UNAVAILABLE"
        if self.unload_faults:
            raise self.unload_faults.pop(0)
        return service_pb2.RepositoryModelUnloadResponse()


class DataPlane:
    """Nothing runs, and it has no counters."""

    valid = False

    async def settled(self, timeout_s: float) -> None:
        pass

    async def snapshot(self) -> pb.Snapshot:
        return pb.Snapshot()


class World:
    def __init__(self) -> None:
        self.triton = Triton()
        calls: Any = self.triton
        self.watch = BackendWatch(ADDRESS, Discovery(), lambda: None, calls=calls)
        self.watch.take_probe(self.triton.answer)
        self.pool = BackendPool(lambda: None)
        self.pool.watches[ADDRESS] = self.watch
        plane: Any = SimpleNamespace(
            pool=self.pool,
            settings=Settings.model_validate({"residency": {"mode": "on_demand"}}),
            steering=DataPlane(),
            counters=DataPlane(),
            desired=SimpleNamespace(model_index={MODEL: 0}, backend_index={ADDRESS: 0}),
            turns=Turns(),
            refresh_state=lambda: None,
        )
        self.residents: Any = SimpleNamespace(protected_until_s={}, immovable=set())
        self.unloaded: list[Resident] = []
        # Whether the data plane might send something to a model that is not there.
        self.not_unloaded: list[Resident] = []
        self.unloads = Unloads(
            plane, self.residents, self.unloaded.append, self.not_unloaded.append, self._changed
        )
        self.served_what_is_gone = False

    def _changed(self) -> None:
        gone = self.triton.states[MODEL] != "READY"
        told = self.watch.model_ready(MODEL) and not self.unloads.leaving
        self.served_what_is_gone |= gone and told

    def unload(self) -> None:
        async def scenario() -> None:
            await self.watch.refresh()
            await asyncio.wait_for(self.unloads.unload(VICTIM, "makes room"), BOUND_S)

        asyncio.run(scenario())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for module in (watch_module, unloading):
        name = "RETRY_PERIOD_S" if module is watch_module else "POLL_PERIOD_S"
        monkeypatch.setattr(module, name, 0.001)
    monkeypatch.setattr(unloads_module, "POLL_PERIOD_S", 0.001)
    return World()


def lost(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> RpcError:
    return RpcError(ADDRESS, code, "lost")


def test_it_leaves_and_the_catalog_says_so(world: World) -> None:
    world.unload()
    assert world.unloaded == [VICTIM]
    assert world.watch.absent == {"a"}
    assert not world.unloads.leaving


def test_a_step_that_its_triton_keeps_is_not_waited_for(world: World) -> None:
    """It was loaded by itself."""
    victim = Resident("a", ADDRESS, {ADDRESS: 1}, steps=("b",))

    async def scenario() -> None:
        await world.watch.refresh()
        await asyncio.wait_for(world.unloads.unload(victim, "makes room"), BOUND_S)

    asyncio.run(scenario())
    assert world.unloaded == [victim]
    assert world.watch.ready_models == {("b", "1")}


@pytest.mark.parametrize("probe", [LATE, TIMEOUT])
def test_until_the_catalog_was_read_nothing_is_sent_there(world: World, probe: ProbeResult) -> None:
    # The first is of the refresh before it.
    world.triton.probes_to_come = [world.triton.answer, probe]
    world.unload()
    assert world.unloaded == [VICTIM]
    assert world.watch.absent == {"a"}
    assert not world.served_what_is_gone


def test_the_catalog_is_asked_for_longer_than_one_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unloads_module, "REFRESH_MAX_S", 0.0)
    world.triton.probes_to_come = [world.triton.answer, *[LATE] * 20]
    world.unload()
    assert world.watch.absent == {"a"}
    assert not world.served_what_is_gone


def test_an_index_that_is_lost_once_does_not_end_the_unload(world: World) -> None:
    world.triton.index_faults = [lost(), lost(grpc.StatusCode.DEADLINE_EXCEEDED)]
    world.unload()
    assert world.unloaded == [VICTIM]
    assert not world.served_what_is_gone


def test_an_unload_whose_answer_is_lost_was_taken_all_the_same(world: World) -> None:
    world.triton.unload_faults = [lost(grpc.StatusCode.DEADLINE_EXCEEDED)]
    world.unload()
    assert world.unloaded == [VICTIM]
    assert not world.served_what_is_gone


def test_an_unload_that_is_refused_leaves_the_model_where_it_is(world: World) -> None:
    world.triton.takes_unloads = False
    world.triton.unload_faults = [lost(grpc.StatusCode.INVALID_ARGUMENT)]
    with pytest.raises(UnloadError) as raised:
        world.unload()
    assert not {ADDRESS, "lost"} & set(str(raised.value).split()), "clients read it"
    assert world.unloaded == []
    assert world.watch.model_ready(MODEL)
    assert not world.unloads.leaving
    assert world.residents.protected_until_s


def test_a_backend_that_dies_meanwhile_is_not_waited_for(world: World) -> None:
    died = ProbeResult(Answer.UNREACHABLE)
    world.triton.probes_to_come = [world.triton.answer, LATE, died]
    world.unload()
    assert world.watch.status is BackendStatus.DOWN
    assert not world.unloads.leaving
    assert not world.watch.model_ready(MODEL)


def test_a_backend_that_the_configuration_drops_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unloads_module, "REFRESH_MAX_S", 0.0)
    world.triton.probes_to_come = [world.triton.answer, *[LATE] * 10_000]

    def drop() -> None:
        if len(world.triton.probes_to_come) < 9_990:
            world.pool.watches.clear()

    world.triton.on_probe = drop
    world.unload()
    assert not world.unloads.leaving
