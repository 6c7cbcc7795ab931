"""Wishes of clients at a Triton that came back, where what it is asked first gets lost."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.backends.probe import TritonCalls
from tests.unit.control.cold.test_repository_operations import HERE, World, files_of
from tests.wire.control_plane.words import START_TIMEOUT_S

pytestmark = pytest.mark.e2e
CONFIG = {
    "backend": "python",
    "max_batch_size": 4,
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "instance_group": [{"kind": "KIND_CPU", "count": 1}],
}


class Calls(TritonCalls):
    """Those of a Triton that is slow to tell what it serves, and what it was told to do."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.silences = 0
        self.told: list[str] = []

    async def served(self, name: str) -> list[tuple[str, str]] | None:
        if self.silences:
            self.silences -= 1
            return None
        return await super().served(name)

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        if method in ("RepositoryModelLoad", "RepositoryModelUnload") and request.model_name:
            self.told.append(method)
        return await super().rpc(method, request, timeout_s)

    async def unload(self, name: str) -> None:
        """By somebody of whom the scheduler knows nothing."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        await super().rpc("RepositoryModelUnload", request, START_TIMEOUT_S)
        while await super().served(name):
            pass


@pytest.fixture(autouse=True)
def _as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is; what does not end fails by the time-out of the test."""
    monkeypatch.setattr("scheduler.control.cold.repository.READ_TIMEOUT_S", math.inf)


Scenario = Callable[[World, Calls], Coroutine[Any, Any, None]]


def carried_out(folder: Path, triton: EmbeddedTriton, scenario: Scenario) -> list[str]:
    """Before a Triton that was sent a model with its files; what it was told of that model."""

    async def run() -> list[str]:
        calls = Calls(triton.grpc_address)
        world = World(folder, here=calls)
        code = (triton.model_repository / "identity" / "1" / "model.py").read_bytes()
        request = files_of("sent", code)
        request.parameters["config"].string_param = json.dumps({**CONFIG, "name": "sent"})
        try:
            await world.read()
            await world.repository.load(request)
            assert world.pool.versions("sent")
            await scenario(world, calls)
            return calls.told
        finally:
            await calls.unload("sent")
            await calls.close()

    return asyncio.run(asyncio.wait_for(run(), START_TIMEOUT_S))


@pytest.fixture
def triton(pair: object, explicit_pair: tuple[EmbeddedTriton, EmbeddedTriton]) -> EmbeddedTriton:
    return explicit_pair[0]


def test_files_are_sent_to_no_triton_that_has_them(tmp_path: Path, triton: EmbeddedTriton) -> None:
    async def scenario(world: World, calls: Calls) -> None:
        calls.silences = 3
        await world.rejoin(HERE)

    assert carried_out(tmp_path, triton, scenario) == ["RepositoryModelLoad"]


def test_files_are_sent_to_a_triton_that_lost_them(tmp_path: Path, triton: EmbeddedTriton) -> None:
    async def scenario(world: World, calls: Calls) -> None:
        await calls.unload("sent")
        calls.silences = 3
        await world.rejoin(HERE)
        assert await calls.served("sent") == [("sent", "1")]
        assert world.pool.versions("sent")

    assert carried_out(tmp_path, triton, scenario) == ["RepositoryModelLoad"] * 2


def test_an_unload_that_was_missed_is_made_up_for(tmp_path: Path, triton: EmbeddedTriton) -> None:
    async def scenario(world: World, calls: Calls) -> None:
        world.loads.unloaded("sent")
        calls.silences = 3
        await world.rejoin(HERE)
        assert await calls.served("sent") == []
        assert not world.pool.versions("sent")

    told = carried_out(tmp_path, triton, scenario)
    assert told == ["RepositoryModelLoad", "RepositoryModelUnload"]


def test_an_unload_is_seen_though_the_triton_is_slow_to_tell(
    tmp_path: Path, triton: EmbeddedTriton
) -> None:
    async def scenario(world: World, calls: Calls) -> None:
        calls.silences = 3
        await world.unload("sent")
        assert not world.pool.versions("sent")

    told = carried_out(tmp_path, triton, scenario)
    assert told == ["RepositoryModelLoad", "RepositoryModelUnload"]


def test_a_triton_whose_statistics_are_restricted_is_served_by_its_index(
    tmp_path: Path, explicit_pair: tuple[EmbeddedTriton, EmbeddedTriton]
) -> None:
    """It never tells: that is no word that a model is not served, and holds up no listed one."""

    async def scenario(address: str) -> None:
        calls = Calls(address)
        world = World(tmp_path, here=calls)
        try:
            assert await calls.served("") is None
            assert await calls.served("identity") is None
            await world.read()
            assert await world.pool.watches[HERE].refresh_within(math.inf, ["identity"])
            assert world.pool.versions("identity")
            assert not await world.pool.watches[HERE].refresh_within(0.0, ["nope"])
            world.loads.unloaded("identity")
            await world.rejoin(HERE)
        finally:
            await calls.close()
        assert calls.told == ["RepositoryModelUnload"]

    restricted = ["--load-model=identity", "--grpc-restricted-protocol=statistics:key=value"]
    repository = explicit_pair[0].model_repository
    with EmbeddedTriton(
        repository, model_control_mode="explicit", extra_arguments=restricted
    ) as triton:
        asyncio.run(asyncio.wait_for(scenario(triton.grpc_address), START_TIMEOUT_S))
