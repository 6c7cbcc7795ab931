"""Counters, the ledger, and the saved state."""

from __future__ import annotations

import sys

import pytest

from scheduler._native.engine import Engine
from tests.unit.engine.driver import MS, US, Driver


def loaded_driver(driver: Driver) -> Driver:
    """A driver whose engine was loaded from the state of another one."""
    twin = Driver(0)
    twin.engine = Engine()
    assert twin.engine.load(driver.engine.save())
    twin.now = driver.now
    return twin


def busy_driver() -> Driver:
    """Queues, batches out and staged, a group to be sent again, averages and suspects."""
    driver = Driver([(0, 1, True), (1, 2, True)], rows_max=4, queue_delay_max_ns=5 * MS)
    driver.submit_many(range(8), rows=2, deadline=driver.now + 80 * MS)
    first, second, *_ = driver.step()
    driver.after(MS).complete(first)
    driver.fail(second, "rejected")
    driver.submit_many(range(20, 30), signature=3)
    driver.submit(40, signature=4)
    driver.submit(41, pinned_backend=1, rows=9)
    driver.submit(42, mergeable=False)
    driver.step()
    driver.submit(43)
    return driver


def test_a_loaded_engine_acts_as_the_saved_one() -> None:
    driver = busy_driver()
    twin = loaded_driver(driver)
    driver.actions.clear()
    for engine_driver in (driver, twin):
        for _ in range(12):
            for batch in engine_driver.step():
                engine_driver.after(MS // 2).complete(batch)
            engine_driver.after(2 * MS).submit(60, signature=4)
        engine_driver.after(80 * MS).step()
    assert driver.actions == twin.actions
    assert driver.engine.counters(0) == twin.engine.counters(0)
    assert driver.engine.save() == twin.engine.save()


def test_a_loaded_engine_knows_the_handles_of_the_saved_one() -> None:
    driver = Driver(rows_max=1)
    queued, gone = driver.submit_many([1, 2])
    driver.cancel(gone)
    twin = loaded_driver(driver)
    twin.cancel(gone)
    assert twin.answers() == {}
    twin.cancel(queued)
    assert twin.answers() == {1: ("cancelled", "client_cancelled")}


def test_equal_events_give_equal_states() -> None:
    assert busy_driver().engine.save() == busy_driver().engine.save()


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_bytes_that_are_no_state_are_refused(cut: int) -> None:
    state = busy_driver().engine.save()
    assert not Engine().load(state[:cut])
    assert not Engine().load(state + b"\0")


def test_a_damaged_state_is_refused() -> None:
    state = busy_driver().engine.save()
    for offset in range(0, len(state), 97):
        damaged = bytearray(state)
        damaged[offset] ^= 0x40
        assert not Engine().load(bytes(damaged))


def checksum(archive: bytes) -> bytes:
    value = 0xCBF29CE484222325
    for byte in archive:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value.to_bytes(8, sys.byteorder)


def test_a_state_of_an_older_layout_is_refused_and_nothing_of_it_is_taken() -> None:
    state = busy_driver().engine.save()
    assert state[-8:] == checksum(state[:-8])
    older = b"engine5\0" + state[8:-8]
    engine = Engine()
    fresh = engine.save()
    assert not engine.load(older + checksum(older))
    assert engine.save() == fresh
    engine.check_invariants()


def test_the_ledger_is_exact_in_every_state() -> None:
    driver = Driver(rows_max=2, queue_requests_max=3)
    driver.submit_many([1, 2, 3])
    (batch,) = driver.step()
    driver.submit(4, deadline=driver.now + MS)
    last = driver.submit(5)
    assert driver.refusal() == "queue_full"
    driver.after(MS).step()
    driver.cancel(last)
    driver.fail(batch, "final", 3)
    counters = driver.engine.counters(0)
    names = ("admitted", "completed", "expired", "cancelled", "failed", "in_flight", "refused")
    assert [counters[name] for name in names] == [5, 0, 1, 1, 2, 1, 1]
    assert counters["outcomes"] == {
        ("expired", "expired_in_queue"): 1,
        ("cancelled", "client_cancelled"): 1,
        ("failed", "backend_error"): 2,
        ("refused", "queue_full"): 1,
    }


def test_gauges_show_the_queue_and_the_slots() -> None:
    driver = Driver(rows_max=4, staged_batches_max=0)
    driver.submit_many([1, 2], rows=4, bytes=10)
    oldest = driver.now
    driver.after(MS).submit(3, rows=3, bytes=7)
    driver.step()
    counters = driver.engine.counters(0)
    names = ("queued_requests", "queued_rows", "queued_bytes", "oldest_arrival_ns")
    assert [counters[name] for name in names] == [2, 7, 17, oldest]
    assert (counters["inflight_batches"], counters["batch_rows_capacity"]) == (1, 4)
    backend = driver.engine.backend_counters(0)
    assert (backend["inflight_batches"], backend["inflight_rows"]) == (1, 4)
    assert driver.engine.queue_status(0).oldest_arrival == oldest


@pytest.mark.parametrize(
    ("duration", "bucket"), [(0, 0), (50 * US, 0), (50 * US + 1, 1), (100 * US, 1), (200 * US, 2)]
)
def test_duration_buckets_include_their_upper_bound(duration: int, bucket: int) -> None:
    driver = Driver()
    driver.submit(1)
    (batch,) = driver.step()
    driver.after(duration).complete(batch)
    histogram = driver.engine.counters(0)["backend_time"]
    assert (histogram["counts"][bucket], histogram["sum"]) == (1, duration)


@pytest.mark.parametrize(("rows", "bucket"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)])
def test_row_buckets_include_their_upper_bound(rows: int, bucket: int) -> None:
    driver = Driver(rows_max=64)
    driver.submit(1, rows=rows)
    driver.step()
    histogram = driver.engine.counters(0)["batch_rows"]
    assert (histogram["counts"][bucket], histogram["sum"]) == (1, rows)


def test_good_requests_are_those_answered_in_time() -> None:
    driver = Driver(slo_ns=10 * MS, rows_max=1)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    driver.after(10 * MS).complete(batch)
    driver.step()
    counters = driver.engine.counters(0)
    assert (counters["slo_total"], counters["slo_good"]) == (2, 1)


def test_what_is_refused_was_not_in_time() -> None:
    driver = Driver(slo_ns=10 * MS, rows_max=1, priority_levels=2, queue_requests_max=1)
    driver.submit(1, priority=2)
    assert driver.refusal(priority=2) == "queue_full"
    assert driver.refusal(priority=1, deadline=driver.now - 1) == "deadline_infeasible"
    counters = driver.engine.counters(0)
    assert counters["levels"] == {1: (1, 0), 2: (1, 0)}
    assert counters["slo_total"] == 2
    unhurried = Driver(rows_max=1, queue_requests_max=1)
    unhurried.submit(1)
    assert unhurried.refusal() == "queue_full"
    assert unhurried.engine.counters(0)["slo_total"] == 0


def test_signatures_that_passed_leave_nothing_behind() -> None:
    driver = Driver(rows_max=4)
    for signature in range(500):
        # The driver checks the invariants after every event: empty groups are bounded.
        driver.cancel(driver.submit(1, signature=signature))
    handles = [driver.submit(1, signature=signature) for signature in range(500)]
    for handle in reversed(handles):
        driver.cancel(handle)
    assert driver.step() == []
