"""Slots, staging, the choice of a backend, and backends that come and go."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import MS, SECOND, Dispatch, Driver, users


def run_batch(driver: Driver, duration: int, rows: int) -> Dispatch:
    """Sends one batch through and lets it take `duration`."""
    driver.submit(10_000, rows=rows)
    (batch,) = driver.step()
    driver.after(duration).complete(batch)
    return batch


def test_a_batch_is_formed_only_when_a_slot_is_free() -> None:
    driver = Driver([(0, 2, True)], rows_max=2, staged_batches_max=0)
    driver.submit_many(range(5))
    first, second = driver.step()
    assert driver.step() == []
    driver.submit(99, deadline=driver.now + MS)  # still comes before those that wait
    driver.complete(second)
    (third,) = driver.step()
    assert users(third) == [99, 4]
    assert users(first) == [0, 1]


def test_nothing_is_staged_before_the_time_of_a_batch_is_known() -> None:
    driver = Driver(rows_max=1, staged_batches_max=3)
    driver.submit_many(range(5))
    assert len(driver.step()) == 1


@pytest.mark.parametrize("staged_max", [0, 1, 3])
def test_full_batches_of_a_fast_model_are_staged_up_to_the_bound(staged_max: int) -> None:
    driver = Driver(rows_max=2, staged_batches_max=staged_max)
    run_batch(driver, MS // 4, rows=2)
    driver.submit_many(range(20))
    assert len(driver.step()) == 1 + staged_max


def test_staged_batches_start_within_two_milliseconds() -> None:
    driver = Driver(rows_max=2, staged_batches_max=8)
    run_batch(driver, MS, rows=2)
    driver.submit_many(range(40))
    # The running one ends after 1 ms, the first staged one after 2 ms.
    assert len(driver.step()) == 3


def test_a_slow_model_is_staged_two_milliseconds_before_its_batch_ends() -> None:
    driver = Driver(rows_max=2, staged_batches_max=8)
    run_batch(driver, 10 * MS, rows=2)
    driver.submit_many(range(8))
    assert len(driver.step()) == 1
    assert driver.wakes()[-1] == driver.now + 8 * MS
    assert driver.after(8 * MS - 1).step() == []
    assert len(driver.after(1).step()) == 1
    assert driver.step() == []


def test_a_small_batch_is_not_staged_but_grows() -> None:
    driver = Driver(rows_max=8, staged_batches_max=2)
    run_batch(driver, MS, rows=8)
    driver.submit_many(range(4))
    (running,) = driver.step()
    driver.submit_many(range(10, 13))
    assert driver.step() == []
    driver.complete(running)
    (gathered,) = driver.step()
    assert users(gathered) == [10, 11, 12]


def test_half_a_batch_is_staged_when_it_is_as_large_as_all_that_is_out() -> None:
    driver = Driver(rows_max=8, staged_batches_max=2)
    run_batch(driver, MS, rows=8)
    driver.submit_many(range(4))
    driver.step()
    driver.submit_many(range(10, 14))
    (staged,) = driver.step()
    assert users(staged) == [10, 11, 12, 13]
    driver.submit_many(range(20, 27))
    assert driver.step() == []


def test_the_time_of_a_staged_batch_counts_from_its_start() -> None:
    driver = Driver(rows_max=1, staged_batches_max=1)
    run_batch(driver, 2 * MS, rows=1)
    driver.submit_many(range(3))
    first, second = driver.step()
    driver.after(2 * MS).complete(first)
    driver.after(2 * MS).complete(second)
    driver.submit_many(range(3))
    # Still 2 ms a batch: one may be staged at once, a second one only later.
    assert len(driver.step()) == 2


def test_two_replies_that_are_read_at_one_moment_are_one_observation() -> None:
    """A host that was busy reads them together: no batch takes no time."""
    driver = Driver(rows_max=1, staged_batches_max=1, load_aware=True)
    for _ in range(3):
        run_batch(driver, 2 * MS, rows=1)
    driver.submit_many(range(2))
    first, second = driver.step()
    driver.after(2 * MS).complete(first)
    driver.complete(second)
    status = driver.engine.latency_status(0, 0)
    assert status.observations == 4
    assert status.sizes[0][2] == pytest.approx(2 * MS, rel=0.01)


def test_the_backend_of_least_expected_completion_is_chosen() -> None:
    driver = Driver([(0, 2, True), (1, 2, True)], rows_max=1, staged_batches_max=0)
    driver.submit_many([1, 2])
    slow, fast = driver.step()
    assert (slow.backend, fast.backend) == (0, 1)
    driver.after(MS).complete(fast)
    driver.after(3 * MS).complete(slow)
    driver.submit_many(range(4))
    # 1 ms a row against 4 ms: the second row of the fast one ends before the first of the slow one.
    assert [b.backend for b in driver.step()] == [1, 1, 0, 0]


def test_more_instances_make_a_backend_faster() -> None:
    driver = Driver([(0, 4, True), (1, 1, True), (2, 4, True)], rows_max=1)
    driver.submit_many([1, 2, 3])
    first_round = driver.step()
    driver.after(4 * MS)
    for batch in first_round:
        driver.complete(batch)
    driver.submit_many(range(6))
    assert [b.backend for b in driver.step()] == [0, 2, 0, 2, 0, 2]


def test_an_unknown_backend_is_tried_first_and_ties_go_by_rows_then_order() -> None:
    driver = Driver([(7, 2, True), (3, 2, True)], rows_max=1)
    driver.submit_many(range(4))
    assert [b.backend for b in driver.step()] == [7, 3, 7, 3]


def test_a_backend_that_is_not_ready_or_not_available_gets_nothing() -> None:
    driver = Driver([(0, 1, False), (1, 1, True), (2, 1, True)], rows_max=1)
    driver.engine.set_backend(1, False, driver.now)
    driver.submit_many(range(3))
    assert [b.backend for b in driver.step()] == [2]


def test_queued_work_goes_to_the_backend_that_comes_back() -> None:
    driver = Driver(1)
    driver.engine.set_backend(0, False, driver.now)
    driver.submit(1)
    assert driver.step() == []
    driver.engine.set_backend(0, True, driver.now)
    assert [users(b) for b in driver.step()] == [[1]]


def test_queued_work_is_failed_after_five_seconds_without_a_backend() -> None:
    driver = Driver(1)
    driver.submit(1)
    driver.engine.set_backend(0, False, driver.now)
    driver.step()
    assert driver.wakes()[-1] == driver.now + 5 * SECOND
    driver.after(5 * SECOND - 1).step()
    assert driver.answers() == {}
    driver.after(1).step()
    assert driver.answers() == {1: ("failed", "no_backend")}
    assert [a.code for a in driver.actions if hasattr(a, "code")] == [14]


def test_a_removed_model_fails_its_queue_and_still_waits_for_its_batches() -> None:
    driver = Driver(rows_max=1)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    driver.configure([], in_use=False)
    driver.step()
    assert driver.answers() == {2: ("failed", "no_backend")}
    driver.complete(batch)
    assert driver.answers()[1] == ("completed", "none")


def test_a_removed_placement_gets_nothing_new_and_keeps_its_batches() -> None:
    driver = Driver(2, rows_max=1, staged_batches_max=0)
    driver.submit_many([1, 2, 3])
    first, second = driver.step()
    driver.configure([(1, 1, True)])
    assert len(driver.complete(first)) == 1
    assert driver.step() == []
    driver.complete(second)
    (third,) = driver.step()
    assert third.backend == 1


def test_a_pinned_request_goes_to_its_backend_and_blocks_nobody() -> None:
    driver = Driver(2, rows_max=1, staged_batches_max=0)
    driver.submit(1, pinned_backend=1)
    driver.submit(2, pinned_backend=1)
    driver.submit(3)
    assert [(users(b), b.backend) for b in driver.step()] == [([1], 1), ([3], 0)]


def test_pinned_requests_fail_with_their_placement() -> None:
    driver = Driver(2, rows_max=1)
    driver.submit_many([1, 2], pinned_backend=1)
    driver.step()
    driver.configure([(0, 1, True)])
    driver.step()
    assert driver.answers() == {2: ("failed", "no_backend")}


def test_slots_belong_to_a_model() -> None:
    driver = Driver(rows_max=1)
    driver.engine.configure_model(1, [(0, 1, True)], driver.now, rows_max=1)
    driver.submit(1)
    driver.submit(2, model=1)
    assert [(b.model, b.backend) for b in driver.step()] == [(0, 0), (1, 0)]
