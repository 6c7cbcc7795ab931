"""A model is drained: by the counters, and by a snapshot where they do not tell."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler.control import unloading
from scheduler.control.unloading import drained
from scheduler.v1 import dataplane_pb2 as pb

BOUND_S = 60
LOOKS = 10  # until the work ends


class DataPlane:
    """Its requests end after some looks at the counters; then its batches, at the next snapshot."""

    def __init__(self, batches: int = 0, looks: int = LOOKS, valid: bool = True) -> None:
        self.valid = valid
        self.batches, self.looks = batches, looks
        self.snapshots = 0

    def model(self, index: int) -> dict[str, Any] | None:
        if index != 0:
            return None
        self.looks = max(self.looks - 1, 0)
        return {"in_flight": self.looks}

    async def settled(self, timeout_s: float) -> None:
        pass

    async def snapshot(self) -> pb.Snapshot:
        self.snapshots += 1
        found = pb.Snapshot()
        if not self.looks and self.snapshots > 1:
            self.batches = max(self.batches - 1, 0)
        found.models.add(index=0, queued_requests=self.looks, inflight_batches=self.batches)
        for _ in range(self.batches):
            found.batches.add(model_index=0, backend_index=1)
        return found


def drain(world: Any, backend: int | None = None) -> None:
    work = drained(world, world, [0, 7], BOUND_S, backend)
    asyncio.run(asyncio.wait_for(work, BOUND_S))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unloading, "POLL_PERIOD_S", 0.0001)
    monkeypatch.setattr(unloading, "SNAPSHOT_PERIOD_S", 3600.0)


def test_while_requests_are_out_the_data_plane_is_not_asked_again_and_again() -> None:
    world = DataPlane()
    drain(world)
    assert world.looks == 0
    assert world.snapshots <= 2


def test_a_batch_without_requests_is_waited_for() -> None:
    world = DataPlane(batches=3)
    drain(world)
    assert world.batches == 0


def test_what_is_out_elsewhere_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unloading, "SNAPSHOT_PERIOD_S", 0.0)
    world = DataPlane(batches=1, looks=10**9)
    drain(world, backend=0)
    assert world.looks > 0


def test_without_counters_the_data_plane_is_asked() -> None:
    class Waits(DataPlane):
        def model(self, index: int) -> dict[str, Any] | None:
            raise AssertionError("there are none")

        async def snapshot(self) -> pb.Snapshot:
            self.looks = max(self.looks - 1, 0)
            return await super().snapshot()

    world = Waits(valid=False)
    drain(world)
    assert world.looks == 0
