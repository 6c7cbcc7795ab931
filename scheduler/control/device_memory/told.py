"""What the configuration says of devices: headroom, schedulers that share them, old figures."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.config import Settings
from scheduler.config.device_memory import Device
from scheduler.memory.headroom import Ages, Headroom
from scheduler.memory.sharers import Sharers
from scheduler.memory.triton_metrics import READING_PERIOD_NS


class ToldOfDevices:
    """`settings` is asked each time: they may be others. Without `sharers` no other scheduler of
    this host is seen."""

    def __init__(self, settings: Callable[[], Settings], sharers: Sharers | None) -> None:
        self._settings = settings
        self._sharers = sharers

    def headroom_of(self, key: str) -> Headroom:
        memory, own = self._settings().device_memory, self._own(key)
        part = own.headroom_part if own is not None else None
        bytes_min = own.headroom_min if own is not None else None
        return Headroom(
            memory.headroom_part if part is None else part,
            memory.headroom_min if bytes_min is None else bytes_min,
        )

    def schedulers_of(self, key: str) -> int:
        """How many use the device: as the configuration says, else as many as are seen."""
        own = self._own(key)
        told = (
            own.schedulers if own is not None else 0
        ) or self._settings().device_memory.schedulers
        return told or (self._sharers.count(key) if self._sharers is not None else 1)

    def ages(self, of_port: bool) -> Ages:
        """Of a source's figures; a metrics port has new ones less often."""
        memory = self._settings().device_memory
        if not of_port:
            return Ages(memory.stale_after, memory.lost_after)
        period = memory.metrics_poll_period
        return Ages(
            max(memory.stale_after, 3 * period) + READING_PERIOD_NS,
            max(memory.lost_after, 10 * period) + READING_PERIOD_NS,
        )

    def _own(self, key: str) -> Device | None:
        return self._settings().device_memory.devices.get(key)
