"""What the figures of devices are worth: age, headroom, lost and found devices, said once."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from scheduler.memory.headroom import Ages, Headroom, widened_bytes
from scheduler.memory.source import DeviceReading, SourceAbsent, SourceError
from scheduler.memory.table import GONE_MAX, SAY_PERIOD_S, DeviceTable, fixed_reading

MIB, GIB = 2**20, 2**30
MS = 1_000_000
AGES = Ages(stale_after_ns=500 * MS, lost_after_ns=5_000 * MS)


def reading(key: str = "GPU-a", at_ms: int = 1000, **more: Any) -> DeviceReading:
    figures = {"total_bytes": 16 * GIB, "free_bytes": 10 * GIB, "used_bytes": 6 * GIB, **more}
    return DeviceReading(key, at_ms * MS, **figures)


def broken(key: str = "GPU-a", problem: str = "the GPU is lost") -> DeviceReading:
    return DeviceReading(key, 1, problem=problem)


@pytest.fixture
def table() -> DeviceTable:
    return DeviceTable(lambda key: Headroom())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("total", "headroom"),
    [(16 * GIB, 16 * GIB // 20), (4 * GIB, 256 * MIB), (5120 * MIB, 256 * MIB)],
)
def test_headroom_is_a_part_or_a_number_of_bytes(total: int, headroom: int) -> None:
    assert Headroom().bytes_of(total) == headroom


def test_headroom_widens_with_the_age_of_the_figures() -> None:
    assert widened_bytes(1000, 0, AGES) == 1000
    assert widened_bytes(1000, 500 * MS, AGES) == 1000
    assert widened_bytes(1000, 750 * MS, AGES) == 1500
    assert widened_bytes(1000, 4_000 * MS, AGES) == 8000


def test_a_device_is_known_until_its_figures_are_too_old(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table.take("nvml", 0, AGES, [reading(at_ms=1000)])
    young, stale, lost = (table.devices(ms * MS)["GPU-a"] for ms in (1500, 2000, 6000))
    assert (young.known, young.headroom_bytes) == (True, 16 * GIB // 20)
    assert (stale.known, stale.headroom_bytes) == (True, 16 * GIB // 20 * 2)
    assert stale.age_ns == 1000 * MS
    assert not lost.known
    assert "older than 5s: nvml hangs" in lost.problem
    for _ in range(3):
        table.say_ages(6000 * MS)
    assert len(warnings(caplog)) == 1
    table.take("nvml", 0, AGES, [reading(at_ms=6000)])
    assert table.devices(6000 * MS)["GPU-a"].known
    assert "known again" in caplog.text


def test_fixed_figures_do_not_age(table: DeviceTable) -> None:
    table.take("config", 2, AGES, [fixed_reading("left", 8 * GIB, GIB)])
    device = table.devices(10**15)["left"]
    assert (device.known, device.reading.free_bytes, device.age_ns) == (True, 7 * GIB, 0)


def test_a_lost_device_is_said_once_and_so_is_its_return(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table.take("nvml", 0, AGES, [reading(), reading("GPU-b")])
    for _ in range(3):
        table.take("nvml", 0, AGES, [broken(), reading("GPU-b")])
    now = table.devices(1000 * MS)
    assert (now["GPU-a"].known, now["GPU-b"].known) == (False, True)
    assert now["GPU-a"].reading.total_bytes == 16 * GIB  # what it was
    (said,) = warnings(caplog)
    assert "the GPU is lost" in said
    assert "learned from out-of-memory replies only" in said
    table.take("nvml", 0, AGES, [reading(at_ms=1100), reading("GPU-b")])
    assert table.devices(1100 * MS)["GPU-a"].known
    assert "known again" in caplog.messages[-1]


def test_a_device_that_vanished(table: DeviceTable, caplog: pytest.LogCaptureFixture) -> None:
    table.take("nvml", 0, AGES, [reading("MIG-1"), reading("MIG-2")])
    for _ in range(2):
        table.take("nvml", 0, AGES, [reading("MIG-3")])
    now = table.devices(1000 * MS)
    assert {key: device.known for key, device in now.items()} == {
        "MIG-1": False,
        "MIG-2": False,
        "MIG-3": True,
    }
    assert len(warnings(caplog)) == 2
    assert "divided anew" in now["MIG-1"].problem


def test_a_lost_source_is_said_once_and_not_for_each_device(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table.take("nvml", 0, AGES, [reading(), reading("GPU-b")])
    for _ in range(3):
        table.take("nvml", 0, AGES, [], SourceError("the driver has gone"))
    assert all(device.known for device in table.devices(3000 * MS).values())  # it ages
    late = table.devices(6000 * MS)
    assert not any(device.known for device in late.values())
    assert late["GPU-a"].problem == "its figures are older than 5s: the driver has gone"
    table.say_ages(6000 * MS)
    assert len(warnings(caplog)) == 1
    assert table.source_errors == {"nvml": 3}
    assert table.source_problems == {"nvml": "the driver has gone"}
    table.take("nvml", 0, AGES, [reading(), reading("GPU-b")])
    assert all(device.known for device in table.devices(1000 * MS).values())
    assert [m for m in caplog.messages if "again" in m] == ["device memory is known by nvml again"]


def test_what_comes_and_goes_is_said_once_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    table = DeviceTable(lambda key: Headroom(), clock_s=lambda: now_s)
    caplog.set_level(logging.INFO)
    for _ in range(5):
        table.take("nvml", 0, AGES, [reading()])
        table.take("nvml", 0, AGES, [broken()])
        table.take("nvml", 0, AGES, [], SourceError("the driver has gone"))
    assert len(warnings(caplog)) == 2
    assert len(caplog.messages) == 4  # each with its end
    now_s += SAY_PERIOD_S
    table.take("nvml", 0, AGES, [reading()])
    table.take("nvml", 0, AGES, [broken()])
    assert len(warnings(caplog)) == 3


def test_a_source_that_fails_for_good_soon_after_a_failure_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    table = DeviceTable(lambda key: Headroom(), clock_s=lambda: now_s)
    for error in (SourceError("it is away"), None, SourceError("it is gone")):
        table.take("nvml", 0, AGES, [], error)
    assert len(warnings(caplog)) == 1
    for _ in range(3):
        now_s += SAY_PERIOD_S
        table.take("nvml", 0, AGES, [], SourceError("it is gone"))
    assert len(warnings(caplog)) == 2
    assert "it is gone" in warnings(caplog)[-1]


def test_what_changes_in_a_problem_is_no_news(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        table.take("nvml", 0, AGES, [broken(problem=f"its free memory is -{number} bytes")])
    assert len(warnings(caplog)) == 1
    assert table.devices(0)["GPU-a"].problem == "its free memory is -2 bytes"


def test_a_host_without_gpus_is_no_reason_to_warn(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    table.take("nvml", 0, AGES, [], SourceAbsent("no library"))
    assert warnings(caplog) == []
    assert table.source_problems == {"nvml": "no library"}
    assert table.source_errors == {}  # nobody is to be woken for it


def test_a_driver_that_leaves_with_its_devices_is_a_problem(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    table.take("nvml", 0, AGES, [reading()])
    table.take("nvml", 0, AGES, [], SourceAbsent("the driver is not loaded"))
    assert "the driver is not loaded" in warnings(caplog)[0]
    assert table.source_errors == {"nvml": 1}


def test_old_figures_are_told_apart(table: DeviceTable) -> None:
    table.take("nvml", 0, AGES, [reading()])
    stale_ns = AGES.stale_after_ns
    old = [table.devices(reading().measured_at_ns + age)["GPU-a"].old for age in (0, stale_ns + 1)]
    assert old == [False, True]
    lost = table.devices(reading().measured_at_ns + AGES.lost_after_ns)["GPU-a"]
    assert (lost.known, lost.old) == (False, False)


def test_of_two_sources_the_nearer_one_counts(table: DeviceTable) -> None:
    table.take("metrics of b:8002", 1, AGES, [reading(free_bytes=GIB)])
    table.take("nvml", 0, AGES, [reading(free_bytes=2 * GIB)])
    table.take("metrics of b:8002", 1, AGES, [reading(free_bytes=3 * GIB)])
    assert table.devices(1000 * MS)["GPU-a"].reading.free_bytes == 2 * GIB
    table.take("nvml", 0, AGES, [], SourceError("gone"))
    table.take("metrics of b:8002", 1, AGES, [reading(free_bytes=4 * GIB)])
    device = table.devices(1000 * MS)["GPU-a"]
    assert (device.known, device.reading.free_bytes) == (True, 4 * GIB)
    table.take("nvml", 0, AGES, [reading(free_bytes=5 * GIB)])
    assert table.devices(1000 * MS)["GPU-a"].source == "nvml"


def test_a_source_that_left_the_configuration_takes_its_devices_along(table: DeviceTable) -> None:
    table.take("metrics of b:8002", 1, AGES, [reading()])
    table.take("nvml", 0, AGES, [reading("GPU-b")])
    table.drop_source("metrics of b:8002")
    assert list(table.devices(0)) == ["GPU-b"]
    assert table.source_problems == {"nvml": ""}


def test_what_is_gone_is_bounded(table: DeviceTable) -> None:
    for number in range(GONE_MAX + 20):
        table.take("nvml", 0, AGES, [reading(f"MIG-{number}")])
    table.forget_gone({"MIG-0"})
    kept = table.devices(0)
    assert len(kept) == GONE_MAX + 2  # the one referred to and the one that is there
    assert "MIG-0" in kept
    assert "MIG-1" not in kept
