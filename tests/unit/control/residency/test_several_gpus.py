"""Models on demand on a host with several GPUs, where nothing says which of them a model takes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler.config import Backend
from scheduler.control.device_memory.places import Places, places_of
from scheduler.memory.source import DeviceReading
from scheduler.memory.table import DeviceMemory
from tests.unit.control.residency.world import GIB, GROUP, HEADROOM, ONE, FakeDevices, World

A, B = "GPU-a", "GPU-b"


class TwoGpus(FakeDevices):
    """All that the Triton loads is on the first; where that is, the product finds out itself."""

    @property
    def current(self) -> dict[str, DeviceMemory]:
        (triton,) = self._tritons.values()
        free = {A: triton.free, B: triton.total}
        return {
            key: DeviceMemory(key, True, "nvml", "", 0, HEADROOM, reading)
            for ordinal, key in enumerate(free)
            for reading in [
                DeviceReading(
                    key,
                    time.monotonic_ns(),
                    total_bytes=triton.total,
                    free_bytes=free[key],
                    ordinal=ordinal,
                )
            ]
        }

    def places(self, backend: Backend, spec: Any) -> Places:
        return places_of(backend, spec, (), [d.reading for d in self.current.values()], ())


def world(folder: Path, names: str, **residency: Any) -> World:
    made = World(
        folder,
        (ONE, dict.fromkeys(names, GROUP)),
        total=2 * GIB + 2 * HEADROOM,
        residency={"min_residency": "0s", **residency},
    )
    made.plane.devices = TwoGpus(made.tritons, figures=True)
    return made


@pytest.mark.parametrize(
    ("residency", "there"), [({}, {"b", "c"}), ({"budget": "1GiB"}, {"c"})], ids=["full", "budget"]
)
def test_the_oldest_leaves(tmp_path: Path, residency: dict[str, str], there: set[str]) -> None:
    made = world(tmp_path, "abc", **residency)

    async def scenario() -> None:
        await made.start()
        for name in "abc":
            await made.load(name)
        await made.until(lambda: made.tritons[ONE].loaded == there, "the others left")

    asyncio.run(scenario())


def test_loads_wait_for_each_other_and_are_weighed_alone(tmp_path: Path) -> None:
    made = world(tmp_path, "ab")

    async def scenario() -> None:
        await made.start()
        made.loader.want("a")
        made.loader.want("b")
        weight = made.loader.learned.weight
        await made.until(lambda: all(weight(n, ONE, A)[0] for n in "ab"), "both are weighed")
        assert [weight(n, ONE, A)[0] for n in "ab"] == [GIB, GIB]

    asyncio.run(scenario())
