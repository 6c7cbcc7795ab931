"""Device memory by NVML: the real pynvml over a library whose figures the test writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from scheduler.memory.nvml import ENUMERATE_EVERY, REOPEN_PERIOD_NS, NvmlSource
from scheduler.memory.nvml_events import EVENTS_AT_ONCE
from scheduler.memory.source import DeviceReading, ProcessMemory, SourceAbsent, SourceError
from tests.nvml import figures as nvml
from tests.nvml.figures import gpu
from tests.nvml.loaded import load, unload

GIB = 2**30
SECOND_NS = 1_000_000_000


class Clock:
    """Time that goes when the test says so."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(clock: Clock) -> NvmlSource:
    return NvmlSource(clock_ns=clock)


def by_key(readings: list[DeviceReading]) -> dict[str, DeviceReading]:
    return {reading.key: reading for reading in readings}


def test_tells_total_free_used_and_reserved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    figures = load(
        monkeypatch, tmp_path, [gpu("GPU-a", 16 * GIB, reserved_bytes=GIB), gpu("GPU-b", 8 * GIB)]
    )
    figures.devices[0].other_bytes = 5 * GIB
    found = source.poll()
    assert [(r.key, r.ordinal) for r in found] == [("GPU-a", 0), ("GPU-b", 1)]
    first = found[0]
    assert (first.total_bytes, first.free_bytes) == (16 * GIB, 10 * GIB)
    assert (first.used_bytes, first.reserved_bytes) == (5 * GIB, GIB)
    assert first.measured_at_ns == clock.now_ns
    clock.pass_s(1)
    source.poll()
    assert source.poll()[0].name == "Test GPU"
    figures.devices[0].other_bytes = 9 * GIB
    assert source.poll()[0].free_bytes == 6 * GIB


def test_an_older_driver_has_the_first_version_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a", 16 * GIB, reserved_bytes=GIB)], old=True)
    figures.set_process(0, 77, 2 * GIB)
    (first,) = source.poll()
    assert (first.free_bytes, first.used_bytes) == (13 * GIB, 3 * GIB)
    clock.pass_s(1)
    source.poll()
    (later,) = source.poll()
    assert later.processes == ()  # this driver does not tell them in a way that pynvml reads
    calls = figures.devices[0].calls
    source.poll()
    assert figures.devices[0].calls - calls == 1


def test_mig_instances_are_devices_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource
) -> None:
    load(
        monkeypatch,
        tmp_path,
        [
            gpu("GPU-a", 80 * GIB, divided=1),
            gpu("MIG-1", 10 * GIB, gpu=0),
            gpu("MIG-2", 20 * GIB, gpu=0, other_bytes=GIB),
            gpu("GPU-b", 16 * GIB),
        ],
    )
    found = source.poll()
    assert [(r.key, r.ordinal, r.mig) for r in found] == [
        ("MIG-1", 0, True),
        ("MIG-2", 0, True),
        ("GPU-b", 1, False),
    ]
    assert found[1].free_bytes == 19 * GIB


def test_a_divided_gpu_that_is_hot_slows_all_its_instances(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    instances = [gpu(f"MIG-{n}", 10 * GIB, gpu=0) for n in (1, 2)]
    figures = load(
        monkeypatch, tmp_path, [gpu("GPU-a", 80 * GIB, divided=1), *instances, gpu("GPU-b")]
    )
    source.poll()
    figures.devices[0].slowdowns = nvml.HEAT
    clock.pass_s(1)
    source.poll()
    assert [(r.key, r.slowed_by_heat) for r in source.poll()] == [
        ("MIG-1", True),
        ("MIG-2", True),
        ("GPU-b", False),
    ]


def test_processes_heat_and_events_are_seen_within_a_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a", ecc_errors=3)])
    source.poll()
    clock.pass_s(1)
    source.poll()
    figures.set_process(0, os.getpid(), GIB)
    figures.devices[0].slowdowns = nvml.HEAT
    figures.devices[0].ecc_errors = 5
    figures.happen(0, nvml.XID, 63)
    figures.happen(0, nvml.XID, 63)
    clock.pass_s(1)
    source.poll()
    (seen,) = source.poll()
    assert seen.processes == (ProcessMemory(os.getpid(), GIB),)
    assert seen.slowed_by_heat
    assert seen.events == {"xid 63": 2, "ecc uncorrected": 2}


def test_no_library(monkeypatch: pytest.MonkeyPatch, source: NvmlSource) -> None:
    unload(monkeypatch)
    with pytest.raises(SourceAbsent, match=r"libnvidia-ml\.so\.1 is not on this host"):
        source.poll()


def test_a_library_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource
) -> None:
    import ctypes

    import pynvml

    load(monkeypatch, tmp_path, [])
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(None))
    with pytest.raises(SourceError, match="Function Not Found"):
        source.poll()


def test_a_library_that_raises_anything_else_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource
) -> None:
    load(monkeypatch, tmp_path, [gpu("GPU-a", GIB)])

    def broken() -> int:
        raise ValueError("no number")

    with monkeypatch.context() as patch:
        patch.setattr(pynvml, "nvmlDeviceGetCount", broken)
        with pytest.raises(ValueError, match="no number"):
            source.poll()
    assert [reading.key for reading in source.poll()] == ["GPU-a"]


def test_the_driver_goes_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource
) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a")])
    source.poll()
    for error, text in (
        (nvml.LIBRARY_DRIVER_MISMATCH, "different versions"),
        (nvml.DRIVER_NOT_LOADED, "driver is not loaded"),
    ):
        figures.fail(error)
        for _ in range(2):
            with pytest.raises(SourceError, match=text):
                source.poll()
        figures.fail(0)
        assert [r.key for r in source.poll()] == ["GPU-a"]


def test_a_lost_gpu_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a"), gpu("GPU-b")])
    source.poll()
    figures.devices[0].error = nvml.GPU_IS_LOST
    clock.pass_s(0.1)
    seen = by_key(source.poll())
    assert "fallen off the bus" in seen["GPU-a"].problem
    assert seen["GPU-b"].problem == ""
    clock.pass_s(1)
    source.poll()
    assert [r.key for r in source.poll()] == ["GPU-b"]
    figures.devices[0].error = 0
    clock.pass_s(REOPEN_PERIOD_NS / SECOND_NS)
    assert [r.key for r in source.poll()] == ["GPU-a", "GPU-b"]


def test_mig_divided_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource, clock: Clock
) -> None:
    figures = load(
        monkeypatch, tmp_path, [gpu("GPU-a", divided=1), gpu("MIG-1", gpu=0), gpu("MIG-2", gpu=0)]
    )
    source.poll()
    figures.devices[1].present = figures.devices[2].present = 0
    figures.put(3, gpu("MIG-3", 40 * GIB, gpu=0))
    clock.pass_s(1)
    assert all(reading.problem for reading in source.poll())
    assert [r.key for r in source.poll()] == ["MIG-3"]


def test_a_lying_driver_is_a_problem_of_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: NvmlSource
) -> None:
    load(monkeypatch, tmp_path, [gpu("GPU-a", GIB, told_free_bytes=2 * GIB), gpu("GPU-b", GIB)])
    seen = by_key(source.poll())
    assert "above its total" in seen["GPU-a"].problem
    assert seen["GPU-b"].free_bytes == GIB


def test_what_the_backends_use_is_told_beside_what_all_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    figures = load(monkeypatch, tmp_path, [gpu("GPU-a", 16 * GIB)])
    source = NvmlSource(clock_ns=clock, is_own={5, 6}.__contains__)

    def own() -> tuple[int, int]:
        (reading,) = source.poll()
        return reading.own_bytes, reading.own_measured_at_ns

    clock.pass_s(1)
    figures.set_process(0, 7, 3 * GIB)
    assert own() == (0, 0)  # none is a backend's
    figures.set_process(0, 5, 2 * GIB)
    figures.set_process(0, 6, GIB)
    clock.pass_s(1)
    asked_ns = clock.now_ns
    assert own() == (3 * GIB, asked_ns)
    figures.set_process(0, 5, 4 * GIB)
    clock.pass_s(0.1)
    assert own() == (3 * GIB, asked_ns)  # as old as it says
    clock.pass_s(1)
    assert own() == (5 * GIB, clock.now_ns)
    figures.set_process(0, 5, nvml.NOT_TOLD)
    clock.pass_s(1)
    assert own() == (0, 0)


@pytest.mark.parametrize("is_own", [None, {5, 6}.__contains__], ids=["", "own"])
@pytest.mark.parametrize("period_s", [0.08, 0.1, 0.2])
def test_at_most_twenty_calls_a_second_and_device(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clock: Clock,
    period_s: float,
    is_own: Callable[[int], bool] | None,
) -> None:
    source = NvmlSource(clock_ns=clock, is_own=is_own)
    devices = [gpu("GPU-a"), gpu("GPU-b", divided=1)]
    devices += [gpu(f"MIG-{n}", gpu=1) for n in range(7)]
    figures = load(monkeypatch, tmp_path, devices)
    figures.set_process(0, 5, GIB)
    figures.set_process(3, 6, GIB)
    for _ in range(EVENTS_AT_ONCE):
        figures.happen(0, nvml.XID, 63)
    looked: list[tuple[int, list[int]]] = []
    waited: list[int] = []  # calls of no device, which the event set takes
    clock.pass_s(100)  # the first look is not soon after the clock's begin
    while clock.now_ns < (2 * ENUMERATE_EVERY + 102) * SECOND_NS:
        without = source.calls[""]
        source.poll()
        waited.append(source.calls[""] - without)
        looked.append((clock.now_ns, [device.calls for device in figures.devices]))
        clock.pass_s(period_s)
    for at_ns, calls in looked:
        before = [c for t, c in looked if t <= at_ns - SECOND_NS]
        earlier = before[-1] if before else [0] * len(calls)
        assert max(now - then for now, then in zip(calls, earlier, strict=True)) <= 20
    # Those of the event set, once a second.
    assert max(waited[1:]) <= EVENTS_AT_ONCE
