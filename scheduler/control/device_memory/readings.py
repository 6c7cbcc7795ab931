"""What the data plane is told of device memory, and when.

Every look while batches run, because one that has ended is shown by figures that are younger only;
at rest what has changed, so that nobody is woken for nothing, and now and then what still holds: a
control plane that is silent may hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from scheduler.control.device_memory.load_marks import LoadMarks
from scheduler.control.turns import Turns
from scheduler.memory.headroom import Ages
from scheduler.memory.table import DeviceMemory
from scheduler.v1 import dataplane_pb2 as pb

# Of free bytes and headroom.
CHANGE_BYTES = 2**20
# A control plane that is busy otherwise is not taken for one that hangs.
SILENCE = Ages(stale_after_ns=1_000_000_000, lost_after_ns=5_000_000_000)
REPEAT_S = 0.4


class DeviceReadings:
    """`send` returns whether there is a data plane that it went to. `inherited` are numbers that
    the data plane may know of a control plane before this one."""

    def __init__(
        self,
        send: Callable[[pb.MemoryReadings], bool],
        busy: Callable[[], bool],
        inherited: Iterable[int] = (),
        turns: Turns | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._busy = busy
        self._loads = LoadMarks(turns or Turns())
        self._clock_s = clock_s
        self._told: dict[int, pb.DeviceMemory] = {}
        self._told_all_at_s = float("-inf")
        # Whatever data plane there is: this one has not been told anything else of them.
        self._may_know = set(inherited)

    def forget(self) -> None:
        """The data plane is away: another one has been told nothing."""
        self._told.clear()

    def tell(
        self, devices: Mapping[str, DeviceMemory], numbers: Mapping[str, int], heard: bool = True
    ) -> None:
        """The figures as of now, of the devices that have a number. `heard`: every source has
        told; the numbers that a data plane may know from before are no devices' else."""
        self._loads.keep(devices)
        now = {
            numbers[key]: message(numbers[key], device, self._loads.of(key, device))
            for key, device in devices.items()
            if key in numbers
        }
        gone = self._told.keys() | (self._may_know if heard else set())
        for number in gone - now.keys():
            now[number] = pb.DeviceMemory(index=number)
        busy = self._busy()
        now_s = self._clock_s()
        again = now_s - self._told_all_at_s >= REPEAT_S
        news = [
            m
            for n, m in sorted(now.items())
            if self._is_news(n, m, busy) or (again and m.known and not m.fixed)
        ]
        if news and self._send(_told(news)):
            if again:
                self._told_all_at_s = now_s
            self._told.update((m.index, m) for m in news)
            self._may_know.update(m.index for m in news)

    def _is_news(self, number: int, now: pb.DeviceMemory, busy: bool) -> bool:
        told = self._told.get(number)
        if told is None:
            return now.known or number in self._may_know
        return _differs(told, now, busy)


def message(number: int, device: DeviceMemory, loads: int = 0) -> pb.DeviceMemory:
    """One that is not known has no figures; fixed ones are of no time."""
    reading = device.reading
    if not device.known:
        return pb.DeviceMemory(index=number)
    return pb.DeviceMemory(
        index=number,
        known=True,
        free_bytes=reading.free_bytes,
        total_bytes=reading.total_bytes,
        headroom_bytes=device.headroom_bytes,
        schedulers=device.schedulers,
        measured_at_ns=reading.measured_at_ns,
        fixed=reading.measured_at_ns == 0,
        own_bytes=reading.own_bytes,
        own_measured_at_ns=reading.own_measured_at_ns,
        loads=loads,
    )


def _told(devices: list[pb.DeviceMemory]) -> pb.MemoryReadings:
    return pb.MemoryReadings(
        devices=devices,
        stale_after_ns=SILENCE.stale_after_ns,
        lost_after_ns=SILENCE.lost_after_ns,
    )


def _differs(told: pb.DeviceMemory, now: pb.DeviceMemory, busy: bool) -> bool:
    if told.schedulers != now.schedulers:
        return True
    if (told.known, told.fixed, told.total_bytes) != (now.known, now.fixed, now.total_bytes):
        return True
    if busy and told.measured_at_ns != now.measured_at_ns:
        return True
    return (
        abs(told.free_bytes - now.free_bytes) >= CHANGE_BYTES
        or abs(told.headroom_bytes - now.headroom_bytes) >= CHANGE_BYTES
    )
