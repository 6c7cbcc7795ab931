"""What ModelStatistics shows, and executions that outlive their answer."""

from __future__ import annotations

from tests.unit.engine.driver import MS, SECOND, Driver, users

DEADLINE_EXCEEDED = 4


def test_every_member_pays_the_whole_time_of_its_batch() -> None:
    driver = Driver(1, rows_max=8)
    driver.submit(1, rows=2)
    driver.after(MS).submit(2, rows=3)
    (batch,) = driver.after(MS).step()
    driver.after(10 * MS).complete(batch)
    stats = driver.engine.model_stats(0)
    assert (stats["rows"], stats["batches"], stats["completed"]) == (5, 1, 2)
    assert stats["completed_ns"] == 12 * MS + 11 * MS
    assert (stats["queue_ns"], stats["backend_ns"]) == (3 * MS, 20 * MS)
    assert stats["last_answer"] == driver.now
    assert stats["batch_sizes"] == [(5, 1, 10 * MS)]


def test_a_staged_batch_queues_at_the_backend() -> None:
    driver = Driver(1, staged_batches_max=1)
    driver.submit(1)
    (batch,) = driver.step()
    driver.after(MS).complete(batch)
    driver.submit_many([2, 3])
    running, staged = driver.step()
    driver.after(MS).complete(running)
    driver.after(MS).complete(staged)
    stats = driver.engine.model_stats(0)
    assert (stats["queue_ns"], stats["backend_ns"]) == (MS, 3 * MS)


def test_other_endings_are_counted_apart() -> None:
    driver = Driver(1, queue_requests_max=3)
    driver.submit(1)
    (batch,) = driver.step()
    driver.submit(2, deadline=driver.now + 2 * MS)
    cancelled = driver.submit(3)
    driver.submit(4)
    assert driver.refusal() == "queue_full"
    driver.after(MS).cancel(cancelled)
    driver.after(MS).step()
    driver.fail(batch, "final")
    stats = driver.engine.model_stats(0)
    assert (stats["failed"], stats["failed_ns"]) == (1, 2 * MS)
    assert (stats["rejected"], stats["rejected_ns"]) == (2, 2 * MS)
    assert (stats["cancelled"], stats["cancelled_ns"]) == (1, MS)
    assert stats["completed"] == stats["batches"] == 0
    assert stats["batch_sizes"] == []


def test_expired_in_flight_is_a_failure_and_its_execution_counts() -> None:
    driver = Driver(1)
    driver.submit(1, deadline=driver.now + MS)
    (batch,) = driver.step()
    driver.after(MS).step()
    driver.after(MS).complete(batch)
    stats = driver.engine.model_stats(0)
    assert (stats["failed"], stats["failed_ns"]) == (1, MS)
    assert (stats["rows"], stats["batches"]) == (0, 1)


def test_sizes_are_told_apart_up_to_a_bound() -> None:
    driver = Driver(1, merge=False)
    for rows in (1, 4096, 4097, 1 << 31):
        driver.submit(rows=rows)
        (batch,) = driver.step()
        driver.complete(batch)
    sizes = driver.engine.model_stats(0)["batch_sizes"]
    assert [size[:2] for size in sizes] == [(1, 1), (4096, 3)]
    assert driver.engine.model_stats(0)["rows"] == 1 + 4096 + 4097 + (1 << 31)


def test_a_removed_model_begins_anew_and_an_unknown_one_is_empty() -> None:
    driver = Driver(1)
    driver.submit(1)
    (batch,) = driver.step()
    driver.complete(batch)
    assert driver.engine.model_stats(0)["completed"] == 1
    driver.configure(in_use=False)
    assert driver.engine.model_stats(0)["completed"] == 0
    assert driver.engine.model_stats(77)["batches"] == 0


def given_up(driver: Driver, batch_ns: int) -> None:
    """One batch of `batch_ns`, then one that its backend gave up after 1 ms."""
    driver.submit(1)
    (batch,) = driver.step()
    driver.after(batch_ns).complete(batch)
    driver.submit_many([2, 3])
    (batch,) = driver.step()
    (answer,) = driver.after(MS).fail(batch, "given_up", DEADLINE_EXCEEDED)
    assert (answer.user, answer.outcome, answer.code) == (2, "failed", DEADLINE_EXCEEDED)
    # Whatever comes for it later is stale.
    assert driver.complete(batch) == []
    assert driver.fail(batch, "connection") == []


def test_the_slot_of_a_batch_given_up_is_taken_until_its_predicted_end() -> None:
    driver = Driver(1, staged_batches_max=0)
    given_up(driver, 5 * MS)
    assert driver.step() == []
    assert driver.wakes()[-1] == driver.now + 4 * MS
    assert driver.engine.queue_status(0).inflight_batches == 1
    assert driver.engine.backend_counters(0)["inflight_batches"] == 1
    assert driver.after(4 * MS - 1).step() == []
    (batch,) = driver.after(1).step()
    assert users(batch) == [3]
    driver.complete(batch)
    assert driver.engine.counters(0)["inflight_batches"] == 0


def test_a_batch_given_up_late_keeps_its_slot_a_little() -> None:
    driver = Driver(1, staged_batches_max=0)
    given_up(driver, MS // 10)
    assert driver.after(MS - 1).step() == []
    assert len(driver.after(1).step()) == 1


def test_a_cancellable_model_gives_the_slot_back_at_once() -> None:
    driver = Driver(1, staged_batches_max=0, cancellable=True)
    given_up(driver, SECOND)
    assert len(driver.step()) == 1


def test_a_batch_given_up_is_released_after_save_and_load() -> None:
    driver = Driver(1, staged_batches_max=0)
    given_up(driver, 5 * MS)
    state = driver.engine.save()
    driver.engine = type(driver.engine)()
    assert driver.engine.load(state)
    assert driver.after(4 * MS - 1).step() == []
    assert len(driver.after(1).step()) == 1


def test_a_removed_placement_goes_with_its_last_batch_given_up() -> None:
    driver = Driver(1, staged_batches_max=0)
    given_up(driver, 5 * MS)
    driver.configure([])
    driver.after(5 * MS).step()
    assert driver.engine.queue_status(0).inflight_batches == 0
