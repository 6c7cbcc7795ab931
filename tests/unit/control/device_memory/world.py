"""Devices over pools that tests describe, and a data plane that notes what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.pool import BackendPool
from scheduler.config import Settings
from scheduler.control.device_memory.devices import Devices
from scheduler.memory.sharers import Sharers
from scheduler.memory.source import DeviceReading
from scheduler.memory.table import DeviceMemory
from scheduler.v1 import dataplane_pb2 as pb
from tests.nvml.figures import Figures, gpu
from tests.nvml.loaded import load

GIB = 2**30
GPU_0 = "instance_group { kind: KIND_GPU count: 2 gpus: 0 }"
GPU_1 = "instance_group { kind: KIND_GPU count: 1 gpus: 1 }"
BOTH = "instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }"
CPU = "instance_group { kind: KIND_CPU count: 4 }"
UNSAID = "instance_group { kind: KIND_MODEL count: 1 }"
ENSEMBLE = "ensemble_scheduling { step { model_name: 'a' } }"

A, B = DeviceReading("GPU-a", 1, ordinal=0), DeviceReading("GPU-b", 1, ordinal=1)


class World:
    """Devices over a pool that a test describes."""

    def __init__(
        self,
        folder: Path,
        pool: BackendPool,
        settings: dict[str, Any],
        metrics_ports: Mapping[str, int] | None = None,
        sharers: Sharers | None = None,
    ) -> None:
        self.pool = pool
        self.settings = Settings.model_validate(settings)
        self.looks = self.moves = 0
        self.devices = Devices(
            folder,
            folder,
            pool,
            lambda: self.settings,
            lambda: True,
            self._looked,
            self._moved,
            metrics_ports,
            sharers,
        )

    def _looked(self) -> None:
        self.looks += 1

    def _moved(self) -> None:
        self.moves += 1

    def hears_all(self) -> bool:
        """Whether a first state may be built, with all that sources tell."""
        return self.devices.ready and self.devices.heard

    def configure(self, settings: dict[str, Any]) -> None:
        self.settings = Settings.model_validate(settings)
        self.devices.look()

    def find_hosts(self) -> None:
        """Which backends are of this host, as `run` does it."""

        async def scenario() -> None:
            self.devices._find_local_hosts()
            hosts = {backend.address.host for backend in self.pool.backends.values()}
            await self.until(lambda: hosts <= self.devices._local.known.keys(), "the hosts")

        asyncio.run(scenario())

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"waited in vain: {what}: {self.devices.current}")


@contextlib.asynccontextmanager
async def world(folder: Path, pool: BackendPool, **settings: Any) -> AsyncIterator[World]:
    made = World(folder, pool, {"device_memory": settings})
    task = asyncio.create_task(made.devices.run())
    try:
        yield made
    finally:
        task.cancel()
        made.devices.stop()


LOCAL = {"address": "127.0.0.1:1"}
REMOTE = {"address": "192.0.2.1:1", "metrics": "off"}


def two_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Figures:
    return load(monkeypatch, folder, [gpu("GPU-a", 16 * GIB), gpu("GPU-b", 8 * GIB)])


class DataPlane:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.there = True
        self.told: list[dict[int, tuple[bool, int]]] = []

    def send(self, readings: pb.MemoryReadings) -> bool:
        if self.there:
            self.told.append({d.index: (d.known, d.free_bytes) for d in readings.devices})
        return self.there


def device(free_bytes: int, at_ns: int = 1, known: bool = True) -> DeviceMemory:
    reading = DeviceReading("GPU-a", at_ns, total_bytes=16 * GIB, free_bytes=free_bytes)
    return DeviceMemory("GPU-a", known, "nvml", "", 0, GIB, reading)
