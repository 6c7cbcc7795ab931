"""Readings between which models came or went, by whomever, are told apart."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from scheduler.control.device_memory.readings import DeviceReadings
from scheduler.control.turns import MOVES_MAX_NS, SPANS_MAX, Turns
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.device_memory.world import GIB, device
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import GROUP, ONE, World


class DataPlane:
    def __init__(self, turns: Turns) -> None:
        self.marks: list[int] = []
        self._readings = DeviceReadings(self._send, lambda: True, (), turns)

    def _send(self, readings: pb.MemoryReadings) -> bool:
        self.marks += [told.loads for told in readings.devices]
        return True

    def reads_all(self, world: World) -> int:
        """Returns the mark that is told."""
        devices = world.plane.devices.current
        self._readings.tell(devices, {key: n for n, key in enumerate(sorted(devices))})
        return self.marks[-1]

    def reads(self, free_bytes: int, other_bytes: int = 8 * GIB) -> None:
        now_ns = time.monotonic_ns()
        devices = {"GPU-a": device(free_bytes, now_ns), "GPU-b": device(other_bytes, now_ns)}
        self._readings.tell(devices, {"GPU-a": 0, "GPU-b": 1})


def test_only_what_moved_while_models_came_or_went_is_marked() -> None:
    async def scenario() -> None:
        turns = Turns()
        plane = DataPlane(turns)
        plane.reads(8 * GIB)
        plane.reads(7 * GIB)  # of a batch
        assert plane.marks == [0, 0, 0, 0]
        async with turns.of(["m"], residency=True):
            plane.reads(6 * GIB)
            assert plane.marks[-2:] == [1, 0]
            plane.reads(5 * GIB)
            assert plane.marks[-2:] == [2, 0]
        plane.reads(5 * GIB)
        plane.reads(4 * GIB, 7 * GIB)  # of batches again
        assert plane.marks[-2:] == [2, 0]
        async with turns.of(["m"]):
            pass  # as fast as that
        plane.reads(6 * GIB, 7 * GIB)
        assert plane.marks[-2:] == [3, 0]
        for _ in range(2 * SPANS_MAX):
            async with turns.of(["m"]):
                pass
        plane.reads(4 * GIB, 7 * GIB)
        assert plane.marks[-2:] == [4, 0]

    asyncio.run(scenario())


def test_what_is_noticed_after_its_readings_were_told_is_marked() -> None:
    turns = Turns()
    plane = DataPlane(turns)
    plane.reads(8 * GIB)
    plane.reads(6 * GIB)
    turns.noticed(time.monotonic_ns())
    plane.reads(6 * GIB)
    assert plane.marks == [0, 0, 0, 0, 1, 1]


LOOK_S, LOOKS = 0.08, 60


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("from_before", [True, False])
def test_a_load_by_somebody_else_is_marked_from_when_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool, from_before: bool
) -> None:
    """By a control plane before this one, too, and whether models are loaded on demand or not."""
    residency = {} if on else {"mode": "off"}
    world = World(tmp_path, (ONE, {"a": GROUP}), total=8 * GIB, residency=residency)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        if from_before:
            triton.states["a", "1"] = "LOADING"
        await world.start()
        plane = DataPlane(world.plane.turns)
        before = plane.reads_all(world)
        await asyncio.sleep(LOOK_S)
        assert plane.reads_all(world) == before, "nothing has moved"
        triton.states["a", "1"] = "LOADING"
        await world.pool.watches[ONE].refresh()
        for _ in range(LOOKS):
            triton.taken += GIB // LOOKS
            await asyncio.sleep(LOOK_S)
            assert plane.reads_all(world) > before, "its memory is not a batch's"
            before = plane.marks[-1]
        triton.taken -= LOOKS * (GIB // LOOKS)
        triton.states["a", "1"] = "READY"
        await asyncio.sleep(LOOK_S)
        await world.pool.watches[ONE].refresh()
        assert plane.reads_all(world) > before
        await asyncio.sleep(LOOK_S)
        before = plane.reads_all(world)
        triton.taken += GIB
        await asyncio.sleep(LOOK_S)
        assert plane.reads_all(world) == before, "of a batch again"

    run_virtually(scenario(), monkeypatch)


def test_a_load_as_fast_as_between_two_looks_is_marked_when_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}), total=8 * GIB)

    async def scenario() -> None:
        await world.start()
        plane = DataPlane(world.plane.turns)
        before = plane.reads_all(world)
        world.tritons[ONE].states["a", "1"] = "READY"
        plane.reads_all(world)
        await asyncio.sleep(LOOK_S)
        plane.reads_all(world)
        await world.pool.watches[ONE].refresh()
        assert plane.reads_all(world) > before

    run_virtually(scenario(), monkeypatch)


def test_one_that_is_stuck_for_long_is_no_reason_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}), total=8 * GIB)
    triton = world.tritons[ONE]
    triton.states["a", "1"] = "UNLOADING"

    async def scenario() -> None:
        await world.start()
        plane = DataPlane(world.plane.turns)
        before = plane.reads_all(world)
        triton.taken += GIB
        assert plane.reads_all(world) > before
        await asyncio.sleep(MOVES_MAX_NS / 1e9)
        before = plane.reads_all(world)
        triton.taken -= GIB
        await asyncio.sleep(LOOK_S)
        assert plane.reads_all(world) == before

    run_virtually(scenario(), monkeypatch)
