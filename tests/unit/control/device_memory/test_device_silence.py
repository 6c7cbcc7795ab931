"""What figures of device memory are worth in the data plane while no control plane tells any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from scheduler.control.device_memory.readings import REPEAT_S, SILENCE, DeviceReadings
from scheduler.dataplane import steering
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.device_memory.data_plane_figures import Gateway, figures_of
from tests.unit.control.device_memory.world import GIB, device

SECOND = 1_000_000_000
LIMIT_S = 20.0


def readings(*devices: pb.DeviceMemory, stale_s: int = 1, lost_s: int = 5) -> pb.MemoryReadings:
    return pb.MemoryReadings(
        devices=devices, stale_after_ns=stale_s * SECOND, lost_after_ns=lost_s * SECOND
    )


def measured(index: int, fixed: bool = False) -> pb.DeviceMemory:
    return pb.DeviceMemory(
        index=index,
        known=True,
        free_bytes=8 * GIB,
        total_bytes=16 * GIB,
        headroom_bytes=GIB,
        fixed=fixed,
        measured_at_ns=1,
    )


async def until(holds: Callable[[], bool]) -> None:
    async def look() -> None:
        while not holds():
            await asyncio.sleep(0.0005)

    await asyncio.wait_for(look(), LIMIT_S)


def test_silence_widens_the_headroom_and_then_nothing_is_known() -> None:
    gateway = Gateway()
    figures, loop = figures_of(gateway)
    figures.take(readings(measured(3)))
    loop.advance(0.9)
    assert len(gateway.told) == 1
    headrooms = []
    for _ in range(3):
        loop.advance(1)
        headrooms.append(gateway.known[3].headroom_bytes)
    assert headrooms == [GIB, 2 * GIB, 3 * GIB]  # as of the last look, one a second
    figures.take(readings(measured(3)))
    assert gateway.known[3].headroom_bytes == GIB
    loop.advance(4.9)
    assert gateway.known[3].known
    loop.advance(0.2)
    assert not gateway.known[3].known
    assert not loop.due
    figures.take(readings(measured(3)))  # it is back
    assert (gateway.known[3].known, gateway.known[3].headroom_bytes) == (True, GIB)
    loop.advance(5)
    assert not gateway.known[3].known


def test_no_headroom_is_wider_than_the_device() -> None:
    gateway = Gateway()
    figures, loop = figures_of(gateway)
    figures.take(readings(measured(0), lost_s=1000))
    loop.advance(900)
    assert gateway.known[0].headroom_bytes == 16 * GIB


def test_fixed_figures_and_those_without_a_bound_do_not_age() -> None:
    gateway = Gateway()
    figures, loop = figures_of(gateway)
    figures.take(readings(measured(1, fixed=True), measured(2)))
    loop.advance(2)
    assert gateway.known[1].headroom_bytes == GIB < gateway.known[2].headroom_bytes
    figures.take(readings(measured(2), stale_s=0, lost_s=0))
    loop.advance(100)
    assert (gateway.known[2].known, gateway.known[2].headroom_bytes) == (True, GIB)


def test_figures_outlive_the_last_control_plane_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(steering, "OUTLIVE_S", 0.0)
        gateway = Gateway()
        gateway.known = {0: measured(0), 1: pb.DeviceMemory(index=1), 5: measured(5)}
        made = steering.Steering(lambda apply: None)
        made.attach(gateway)  # type: ignore[arg-type]
        first, second = made.protocol(), made.protocol()
        made.connected(first)
        made.disconnected(first)
        made.connected(second)  # in time
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gateway.told == []
        made.disconnected(second)
        await until(lambda: bool(gateway.told))
        assert [(d.index, d.known) for d in gateway.told[0].devices] == [(0, False), (5, False)]

    asyncio.run(scenario())


def test_a_control_plane_at_rest_says_that_its_figures_still_hold() -> None:
    now_s = 0.0
    sent: list[pb.MemoryReadings] = []

    def send(told: pb.MemoryReadings) -> bool:
        sent.append(told)
        return True

    made = DeviceReadings(send, busy=lambda: False, clock_s=lambda: now_s)
    for _ in range(12):
        made.tell({"GPU-a": device(4 * GIB)}, {"GPU-a": 7})
        now_s += REPEAT_S * 0.51
    assert len(sent) == 6
    assert {told.stale_after_ns for told in sent} == {SILENCE.stale_after_ns}
    assert SILENCE.stale_after_ns > 2 * REPEAT_S * 1e9
