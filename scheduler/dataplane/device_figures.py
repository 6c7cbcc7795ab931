"""Figures of device memory, and what they are worth while nobody tells new ones.

A control plane that stops (a hung process, a machine that swaps) cannot say that its figures have
become old: their age counts here, too. Silence widens the headroom as that of a source that hangs
does (`scheduler/memory/headroom.py`), and in the end the devices are not known any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from scheduler._native.gateway import Gateway
from scheduler.v1 import dataplane_pb2 as pb

log = logging.getLogger("infersched.dataplane")

# How long figures count after the last control plane has gone.
OUTLIVE_S = 5.0


class DeviceFigures:
    """Hands them to the gateway; runs in the loop. `gateway` is asked once there is one."""

    def __init__(
        self,
        gateway: Callable[[], Gateway],
        loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
    ) -> None:
        self._gateway = gateway
        self._loop = loop
        self._told: dict[int, pb.DeviceMemory] = {}  # those that age
        self._heard_at_s = 0.0
        self._stale_after_s = self._lost_after_s = 0.0
        self._check: asyncio.TimerHandle | None = None

    def take(self, readings: pb.MemoryReadings) -> None:
        """What a control plane tells, and how long it may be silent after it."""
        self._tell(readings.devices, 0.0)
        self._stale_after_s = readings.stale_after_ns / 1e9
        self._lost_after_s = readings.lost_after_ns / 1e9
        for device in readings.devices:
            if device.known and not device.fixed:
                self._told[device.index] = device
            else:
                self._told.pop(device.index, None)
        loop = self._loop()
        self._heard_at_s = loop.time()
        if self._check is None and self._told and self._lost_after_s > 0:
            self._check = loop.call_later(self._stale_after_s, self._look)

    def forget(self, why: str) -> None:
        """Nothing is known of any device any more."""
        self._told.clear()
        known = [index for index, known, *_ in self._gateway().devices() if known]
        if known:
            log.warning("%s: the memory of devices is not known", why)
            unknown = [pb.DeviceMemory(index=index) for index in known]
            self._gateway().set_devices(pb.MemoryReadings(devices=unknown))

    def _look(self) -> None:
        self._check = None
        if not self._told or self._lost_after_s <= 0:
            return
        loop = self._loop()
        silent_s = loop.time() - self._heard_at_s
        if silent_s >= self._lost_after_s:
            self.forget(f"the control plane has told nothing for {silent_s:.1f} s")
            return
        wait_s = self._stale_after_s - silent_s
        if wait_s <= 0:
            self._tell(self._told.values(), silent_s)
            wait_s = self._stale_after_s
        self._check = loop.call_later(min(wait_s, self._lost_after_s - silent_s), self._look)

    def _tell(self, devices: Iterable[pb.DeviceMemory], silent_s: float) -> None:
        counted = [self._counted(device, silent_s) for device in devices]
        self._gateway().set_devices(pb.MemoryReadings(devices=counted))

    def _counted(self, device: pb.DeviceMemory, silent_s: float) -> pb.DeviceMemory:
        """As the gateway is to count with it."""
        headroom = device.headroom_bytes
        if silent_s > self._stale_after_s > 0:
            # The longer another tenant has had for it, the more it may have taken.
            headroom = min(int(headroom * silent_s / self._stale_after_s), device.total_bytes)
        headroom = with_share_of_others(headroom, device.free_bytes, device.schedulers)
        if headroom == device.headroom_bytes:
            return device
        counted = pb.DeviceMemory()
        counted.CopyFrom(device)
        counted.headroom_bytes = headroom
        return counted


def with_share_of_others(headroom_bytes: int, free_bytes: int, schedulers: int) -> int:
    """The headroom that leaves each of several schedulers its part of what is free.

    They look at the same figures, and none knows what another is about to send: all together they
    take no more than there is. What batches have taken is in the figures of the next look, so what
    one of them does not need comes to the others.
    """
    usable_bytes = max(free_bytes - headroom_bytes, 0)
    return headroom_bytes + usable_bytes - usable_bytes // max(schedulers, 1)
