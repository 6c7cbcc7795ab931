"""The data plane's figures of device memory, with a gateway and a clock that only play."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler.dataplane.device_figures import DeviceFigures
from scheduler.v1 import dataplane_pb2 as pb


class Gateway:
    """Keeps what it is told of every device."""

    generation = 0

    def __init__(self) -> None:
        self.told: list[pb.MemoryReadings] = []
        self.known: dict[int, pb.DeviceMemory] = {}

    def loading(self) -> list[tuple[str, int]]:
        return []

    def devices(self) -> list[tuple[int, bool]]:
        return [(index, found.known) for index, found in sorted(self.known.items())]

    def set_devices(self, message: pb.MemoryReadings) -> None:
        self.told.append(message)
        self.known.update((told.index, told) for told in message.devices)


class Loop:
    """A clock that only plays, and the one call that is due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        assert delay_s >= 0
        self.due.append((self.now_s + delay_s, call))
        return object()

    def advance(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.due and self.due[0][0] <= end_s:
            self.now_s, call = self.due.pop(0)
            call()
            assert len(self.due) <= 1
        self.now_s = end_s


def figures_of(gateway: Gateway) -> tuple[DeviceFigures, Loop]:
    loop = Loop()
    made: Any = DeviceFigures
    return made(lambda: gateway, lambda: loop), loop
