"""Readings between which models came or went are told apart."""

from __future__ import annotations

import asyncio
import time

from scheduler.control.device_memory.readings import DeviceReadings
from scheduler.control.turns import SPANS_MAX, Turns
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.devices_world import GIB, device


class DataPlane:
    def __init__(self, turns: Turns) -> None:
        self.marks: list[int] = []
        self._readings = DeviceReadings(self._send, lambda: True, (), turns.ran_between)

    def _send(self, readings: pb.MemoryReadings) -> bool:
        self.marks += [told.loads for told in readings.devices]
        return True

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


def test_what_is_noticed_late_is_marked() -> None:
    turns = Turns()
    plane = DataPlane(turns)
    plane.reads(8 * GIB)
    plane.reads(6 * GIB)
    turns.happened_since(time.monotonic_ns())
    plane.reads(5 * GIB)
    assert plane.marks[::2] == [0, 0, 1]
