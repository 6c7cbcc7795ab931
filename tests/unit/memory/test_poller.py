"""Looks from a thread: how often, and what becomes of a source that fails or hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from scheduler.memory.nvml import NvmlSource
from scheduler.memory.poller import MOVING_S, Pace, Poller
from scheduler.memory.source import DeviceReading, SourceError
from tests.control_plane import wait_until
from tests.nvml import figures as nvml
from tests.nvml.figures import gpu
from tests.nvml.loaded import load

GIB = 2**30
Look = tuple[Sequence[DeviceReading], SourceError | None]


class Scripted:
    """Tells what the test sets; counts."""

    name = "scripted"
    retry_period_s = 0.01

    def __init__(self) -> None:
        self.free_bytes = GIB
        self.failure: Exception | None = None
        self.looks = 0
        self.closed = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def poll(self) -> list[DeviceReading]:
        self.looks += 1
        self.may_go_on.wait()
        if self.failure is not None:
            raise self.failure
        return [DeviceReading("GPU-a", 1, total_bytes=8 * GIB, free_bytes=self.free_bytes)]

    def close(self) -> None:
        self.closed.set()


@contextmanager
def polled(
    source: Scripted | NvmlSource, pace: Pace, busy: Callable[[], bool] = lambda: False
) -> Iterator[list[Look]]:
    looks: list[Look] = []
    poller = Poller(source, pace, busy, lambda readings, error: looks.append((readings, error)))
    poller.start()
    try:
        yield looks
    finally:
        poller.stop()
        poller.join(60)


class Clock:
    """Stands still but for what a test or a look takes."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def still(source: Scripted, clock: Clock, busy: Callable[[], bool] = lambda: False) -> Poller:
    """A poller without its thread: the test looks."""
    return Poller(source, Pace(1.0, 8.0), busy, lambda readings, error: None, clock)


def test_slow_at_rest_and_fast_while_batches_run() -> None:
    busy = threading.Event()
    poller = still(Scripted(), Clock(), busy.is_set)
    assert [poller.look(), poller.look()] == [8.0, 8.0]
    busy.set()
    assert [poller.look(), poller.look()] == [1.0, 1.0]
    busy.clear()
    assert poller.look() == 8.0


def test_fast_while_memory_moves() -> None:
    source, clock = Scripted(), Clock()
    poller = still(source, clock)
    assert [poller.look(), poller.look()] == [8.0, 8.0]
    source.free_bytes -= GIB // 2
    assert poller.look() == 1.0
    clock.now_s += MOVING_S / 2
    assert poller.look() == 1.0
    clock.now_s += MOVING_S
    assert poller.look() == 8.0


def test_a_look_that_takes_long_shortens_the_rest_after_it() -> None:
    source, clock = Scripted(), Clock()
    took_s = 3.0

    def slow() -> list[DeviceReading]:
        clock.now_s += took_s
        return []

    source.poll = slow  # type: ignore[method-assign]
    poller = still(source, clock)
    assert poller.look() == 5.0
    took_s = 9.0
    assert poller.look() == 2.0  # some rest there always is


def test_failures_are_told_and_end() -> None:
    source = Scripted()
    with polled(source, Pace(0.001, 0.001)) as looks:
        source.failure = SourceError("gone")
        wait_until(lambda: any(str(error) == "gone" for _, error in looks), "the failure")
        source.failure = ZeroDivisionError("a bug")
        wait_until(lambda: any("a bug" in str(error) for _, error in looks), "the exception")
        source.failure = None
        wait_until(lambda: looks[-1][1] is None, "figures again")
    assert source.closed.is_set()


def test_a_look_that_hangs_tells_nothing_after_the_end() -> None:
    source = Scripted()
    looks: list[object] = []
    poller = Poller(source, Pace(0.001, 0.001), lambda: False, lambda *look: looks.append(look))
    poller.start()
    wait_until(lambda: looks, "a look")
    source.may_go_on.clear()
    looked = source.looks
    wait_until(lambda: source.looks > looked, "a look that hangs")
    told = len(looks)
    poller.stop()
    source.may_go_on.set()
    poller.join(60)
    assert len(looks) == told
    assert source.closed.is_set()


def test_nvml_is_looked_at_and_recovers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a", 8 * GIB)])
    with polled(NvmlSource(retry_period_s=0.01), Pace(0.01, 0.01)) as looks:
        wait_until(lambda: looks and looks[-1][0], "figures")
        figures.devices[0].other_bytes = 3 * GIB
        wait_until(lambda: looks[-1][0][0].free_bytes == 5 * GIB, "what the other tenant took")
        figures.fail(nvml.UNKNOWN)
        wait_until(lambda: looks[-1][1] or looks[-1][0][0].problem, "the failure")
        figures.fail(0)
        wait_until(lambda: looks[-1][0] and not looks[-1][0][0].problem, "figures again")
