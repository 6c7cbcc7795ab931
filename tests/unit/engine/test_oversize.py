"""Requests larger than the largest batch: admitted whole, sent in parts, answered once."""

from __future__ import annotations

from tests.unit.engine.driver import MS, Driver, users


def parts(batch: object) -> list[tuple[int, int, int]]:
    return [(m.user, m.row_begin, m.rows) for m in batch.members]  # type: ignore[attr-defined]


def test_an_oversize_request_is_counted_once_and_sent_in_order_to_several_backends() -> None:
    driver = Driver(3, rows_max=4)
    driver.submit(1, rows=10)
    assert driver.engine.queue_status(0)[:2] == (1, 10)
    batches = driver.step()
    assert [parts(b) for b in batches] == [[(1, 0, 4)], [(1, 4, 4)], [(1, 8, 2)]]
    assert [b.backend for b in batches] == [0, 1, 2]
    assert driver.engine.counters(0)["admitted"] == 1


def test_the_answer_comes_with_the_last_part_whatever_the_order_of_replies() -> None:
    driver = Driver(3, rows_max=4)
    driver.submit(1, rows=10)
    first, second, last = driver.step()
    assert driver.complete(last) == []
    assert driver.complete(first) == []
    (answer,) = driver.complete(second)
    assert (answer.outcome, answer.batch) == ("completed", second.batch)


def test_parts_that_wait_for_a_slot_keep_their_request_queued() -> None:
    driver = Driver(1, rows_max=4, staged_batches_max=0)
    driver.submit(1, rows=6)
    (first,) = driver.step()
    assert driver.engine.queue_status(0)[:2] == (1, 2)
    assert driver.complete(first) == []
    (second,) = driver.step()
    assert parts(second) == [(1, 4, 2)]
    assert len(driver.complete(second)) == 1


def test_the_last_part_shares_its_batch() -> None:
    driver = Driver(2, rows_max=4)
    driver.submit(1, rows=6)
    driver.submit(2, rows=2)
    first, second = driver.step()
    assert (parts(first), parts(second)) == ([(1, 0, 4)], [(1, 4, 2), (2, 0, 2)])


def test_an_ordinary_request_is_not_cut_to_fill_a_batch() -> None:
    driver = Driver(1, rows_max=4)
    driver.submit(1, rows=3)
    driver.submit(2, rows=4)
    (batch,) = driver.step()
    assert users(batch) == [1]


def test_the_first_failed_part_answers_and_drops_the_unsent_ones() -> None:
    driver = Driver(2, rows_max=4)
    driver.submit(1, rows=20)
    first, second = driver.step()
    (answer,) = driver.fail(first, "final", 3)
    assert (answer.outcome, answer.code) == ("failed", 3)
    assert driver.engine.queue_status(0).requests == 0
    assert driver.step() == []
    assert driver.complete(second) == []


def test_a_deadline_drops_the_unsent_parts() -> None:
    driver = Driver(1, rows_max=4)
    driver.submit(1, rows=20, deadline=driver.now + MS)
    driver.step()
    driver.after(MS).step()
    assert driver.answers() == {1: ("expired", "expired_in_flight")}
    assert driver.engine.queue_status(0)[:3] == (0, 0, 0)


def test_a_part_that_did_not_run_goes_again_alone() -> None:
    driver = Driver(2, rows_max=4)
    driver.submit(1, rows=8)
    first, second = driver.step()
    driver.complete(second)
    assert driver.fail(first, "nothing_ran") == []
    (again,) = driver.step()
    assert (parts(again), again.backend) == ([(1, 0, 4)], 1)
    assert len(driver.complete(again)) == 1


def test_parts_are_cut_at_the_largest_mandatory_size() -> None:
    driver = Driver(2, rows_max=10, mandatory_rows=[4, 8])
    driver.submit(1, rows=10)
    first, second = driver.step()
    assert (first.rows, second.rows, second.rows_padded) == (8, 2, 4)


def test_a_waiting_part_is_cut_again_when_the_limit_shrinks() -> None:
    driver = Driver(1, rows_max=4)
    driver.submit(1, rows=4)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    driver.configure([(0, 4, True)], rows_max=3)
    again = driver.after(10 * MS).step()
    assert [parts(b) for b in again] == [[(1, 0, 3)], [(1, 3, 1)]]
