"""The control plane's end of the steering socket, by a clock that only plays."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.control import steering
from scheduler.control.steering import SteeringClient
from scheduler.control.unloading import drained
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.residency.virtual_time import run_virtually

DRAIN_TIMEOUT_S = 0.3
LONG_S = 60.0
BUSY = pb.FromDataPlane(snapshot=pb.Snapshot(models=[pb.ModelSnapshot(queued_requests=1)]))


class DataPlane:
    """Has a request for the model 0 that never ends. It answers the first question at `first_s` by
    the clock of the loop, all others at once."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.reader = asyncio.StreamReader()

    def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(max(self.first_s, loop.time()), self._tell, BUSY)

    def _tell(self, message: pb.FromDataPlane) -> None:
        payload = message.SerializeToString()
        self.reader.feed_data(struct.pack("<I", len(payload)) + payload)

    def close(self) -> None:
        pass


def run_connected(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    async def scenario() -> None:
        data_plane = DataPlane()

        async def open_steering(path: Path) -> tuple[Any, Any, pb.Hello]:
            return data_plane.reader, data_plane, pb.Hello(interface_version=1, pid=1)

        monkeypatch.setattr(steering, "open_steering", open_steering)
        client = SteeringClient(Path("none"), lambda event: None)
        running = asyncio.create_task(client.run())
        while not client.connected:
            await asyncio.sleep(0)
        await work(client, data_plane)
        running.cancel()

    run_virtually(scenario(), monkeypatch)


def test_a_drain_ends_in_time_though_an_answer_comes_just_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters: Any = SimpleNamespace(valid=False)

    async def work(client: SteeringClient, data_plane: DataPlane) -> None:
        data_plane.first_s = asyncio.get_running_loop().time() + DRAIN_TIMEOUT_S
        draining = asyncio.create_task(drained(client, counters, [0], DRAIN_TIMEOUT_S))
        await asyncio.wait({draining}, timeout=LONG_S)
        assert draining.done(), "its work does not end, and the time-out was forgotten"
        assert isinstance(draining.exception(), asyncio.TimeoutError)

    run_connected(monkeypatch, work)
