"""Deadlines and cancels: who is answered when, and what is freed."""

from __future__ import annotations

from scheduler._native.engine import NEVER
from tests.unit.engine.driver import MS, Driver, users


def test_a_queued_request_expires_at_its_deadline_and_not_before() -> None:
    driver = Driver()
    driver.submit(1)
    driver.step()
    driver.submit(2, deadline=driver.now + 5 * MS)
    driver.after(5 * MS - 1).step()
    assert driver.answers() == {}
    driver.after(1).step()
    assert driver.answers() == {2: ("expired", "expired_in_queue")}
    assert driver.engine.queue_status(0).requests == 0


def test_an_expired_answer_tells_how_long_it_was_there() -> None:
    driver = Driver()
    driver.submit_many([1, 2], deadline=driver.now + 5 * MS, arrival=driver.now - MS)
    driver.after(5 * MS).step()
    assert [a.queued_ns for a in driver.actions if hasattr(a, "queued_ns")] == [6 * MS, 6 * MS]
    assert all(a.code == 4 for a in driver.actions if hasattr(a, "code"))


def test_a_request_in_flight_expires_and_its_batch_keeps_the_slot() -> None:
    driver = Driver(rows_max=2)
    driver.submit(1, deadline=driver.now + 5 * MS)
    driver.submit(2)
    (batch,) = driver.step()
    driver.submit(3)
    assert driver.after(5 * MS).step() == []
    assert driver.answers() == {1: ("expired", "expired_in_flight")}
    driver.complete(batch)
    assert driver.answers()[2] == ("completed", "none")
    (following,) = driver.step()
    assert users(following) == [3]


def test_a_reply_that_comes_before_the_step_still_completes() -> None:
    driver = Driver()
    driver.submit(1, deadline=driver.now + 5 * MS)
    (batch,) = driver.step()
    driver.after(5 * MS + 1).complete(batch)
    assert driver.answers() == {1: ("completed", "none")}
    counters = driver.engine.counters(0)
    assert (counters["slo_total"], counters["slo_good"]) == (1, 0)


def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    driver = Driver(rows_max=4)
    handles = driver.submit_many([1, 2], rows=2, bytes=10)
    driver.cancel(handles[0])
    assert driver.engine.queue_status(0)[:3] == (1, 2, 10)
    (batch,) = driver.step()
    assert users(batch) == [2]


def test_a_stale_handle_is_a_no_op() -> None:
    driver = Driver()
    handle = driver.submit(1)
    driver.cancel(handle)
    driver.submit(2)  # takes the same slot
    driver.cancel(handle)
    (batch,) = driver.step()
    driver.complete(batch)
    driver.complete(batch)
    driver.fail(batch, "final")
    assert driver.answers() == {1: ("cancelled", "client_cancelled"), 2: ("completed", "none")}


def test_a_running_batch_is_not_abandoned() -> None:
    driver = Driver()
    handle = driver.submit(1)
    (batch,) = driver.step()
    driver.cancel(handle)
    driver.submit(2)
    assert driver.step() == []
    assert driver.abandoned() == []
    assert driver.complete(batch) == []
    assert len(driver.step()) == 1


def test_a_cancellable_batch_is_abandoned_with_its_last_member_and_frees_its_slot() -> None:
    driver = Driver(rows_max=2, cancellable=True)
    first, second = driver.submit_many([1, 2])
    (batch,) = driver.step()
    driver.cancel(first)
    assert driver.abandoned() == []
    driver.cancel(second)
    assert driver.abandoned() == [batch.batch]
    driver.submit(3)
    assert len(driver.step()) == 1
    assert driver.complete(batch) == []  # stale


def test_the_wake_is_the_next_deadline_and_moves_only_when_it_must() -> None:
    driver = Driver()
    start = driver.now
    driver.submit(1, deadline=start + 9 * MS)
    driver.step()
    handle = driver.submit(2, deadline=start + 5 * MS)
    driver.step()
    assert driver.wakes() == [start + 9 * MS, start + 5 * MS]
    driver.cancel(handle)
    driver.step()
    assert len(driver.wakes()) == 2  # waking early is harmless
    driver.after(5 * MS).step()
    assert driver.wakes()[2:] == [start + 9 * MS]
    driver.after(4 * MS).step()
    assert driver.wakes()[3:] == [NEVER]


def test_the_queue_delay_wakes() -> None:
    driver = Driver(rows_max=4, queue_delay_max_ns=5 * MS)
    driver.submit(1)
    driver.step()
    assert driver.wakes() == [driver.now + 5 * MS]


def test_an_idle_engine_asks_for_no_wake() -> None:
    driver = Driver()
    driver.submit(1)
    (batch,) = driver.step()
    driver.complete(batch)
    driver.step()
    assert driver.wakes() == []
