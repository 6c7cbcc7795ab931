"""What the data plane's shell needs of a loop, for tests that play the loop themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Loop:
    """Runs what was called soon when the test says so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        due, self.soon = self.soon, []
        for callback in due:
            callback()


class Timer:
    def arm_ns(self, at: int) -> None: ...

    def fired(self) -> None: ...


class Transport:
    """Keeps what is written; counts pauses."""

    def __init__(self) -> None:
        self.written = b""
        self.paused = False
        self.pauses = 0

    def write(self, data: Any) -> None:
        self.written += bytes(memoryview(data))

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> None:
        return None
