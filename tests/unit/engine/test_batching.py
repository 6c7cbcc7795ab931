"""Which requests share a batch, in which order, and how large it is."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import MS, Driver, users


def test_requests_of_one_signature_share_a_batch_up_to_rows_max() -> None:
    driver = Driver(rows_max=4)
    driver.submit_many(range(5))
    (batch,) = driver.step()
    assert (users(batch), batch.rows) == ([0, 1, 2, 3], 4)


def test_the_limit_is_in_rows_not_requests() -> None:
    driver = Driver(rows_max=4)
    driver.submit_many(range(3), rows=2)
    (batch,) = driver.step()
    assert (users(batch), batch.rows) == ([0, 1], 4)


def test_the_earliest_deadline_goes_first_and_equal_ones_by_arrival() -> None:
    driver = Driver(rows_max=1, staged_batches_max=0)
    for user, budget in enumerate([9, 5, 7, 5]):
        driver.submit(user, deadline=driver.now + budget * MS)
    driver.submit(4)
    order = []
    for _ in range(5):
        (batch,) = driver.step()
        order += users(batch)
        driver.complete(batch)
    assert order == [1, 3, 2, 0, 4]


def test_a_higher_level_goes_before_an_earlier_deadline() -> None:
    driver = Driver(rows_max=1, priority_levels=2, default_priority=2)
    driver.submit(1, deadline=driver.now + MS)
    driver.submit(2, priority=1)
    (batch,) = driver.step()
    assert users(batch) == [2]


def test_a_batch_is_filled_with_lower_levels_of_the_same_signature() -> None:
    driver = Driver(rows_max=3, priority_levels=3, default_priority=3)
    driver.submit(3, priority=3)
    driver.submit(2, priority=2)
    driver.submit(9, priority=1, signature=9)
    driver.submit(1, priority=1)
    first, *_ = driver.step()
    assert users(first) == [9]
    driver.complete(first)
    (second,) = driver.step()
    assert users(second) == [1, 2, 3]


@pytest.mark.parametrize("priority", [0, 3, 1 << 63])
def test_an_absent_or_too_large_priority_is_the_default_one(priority: int) -> None:
    driver = Driver(rows_max=1, priority_levels=2, default_priority=1)
    driver.submit(2, priority=2)
    driver.submit(1, priority=priority)
    (batch,) = driver.step()
    assert users(batch) == [1]


def test_another_signature_neither_joins_nor_blocks() -> None:
    driver = Driver(rows_max=4)
    driver.submit_many([1, 2], signature=1)
    driver.submit(3, signature=2)
    driver.submit(4, signature=1)
    (first,) = driver.step()
    driver.complete(first)
    (second,) = driver.step()
    assert (users(first), users(second)) == ([1, 2, 4], [3])


def test_unmergeable_requests_and_those_without_rows_go_alone() -> None:
    driver = Driver([(0, 4, True)], rows_max=8)
    driver.submit(1, mergeable=False)
    driver.submit(2, mergeable=False)
    driver.submit(3, rows=0)
    driver.submit(4)
    assert [users(batch) for batch in driver.step()] == [[1], [2], [3], [4]]


def test_a_model_that_does_not_merge_sends_every_request_whole() -> None:
    driver = Driver([(0, 2, True)], merge=False, rows_max=1)
    driver.submit(1, rows=5)
    driver.submit(2)
    assert [(users(b), b.rows) for b in driver.step()] == [([1], 5), ([2], 1)]


def test_what_does_not_fit_is_passed_over_for_smaller_ones() -> None:
    driver = Driver(rows_max=4)
    for user, rows in enumerate([3, 2, 1]):
        driver.submit(user, rows=rows)
    (batch,) = driver.step()
    assert users(batch) == [0, 2]


@pytest.mark.parametrize(("passed_over", "filled"), [(8, True), (9, False)])
def test_at_most_eight_are_passed_over(passed_over: int, filled: bool) -> None:
    driver = Driver(rows_max=4)
    driver.submit(100, rows=3)
    driver.submit_many(range(passed_over), rows=2)
    driver.submit(200, rows=1)
    (batch,) = driver.step()
    assert users(batch) == ([100, 200] if filled else [100])


@pytest.mark.parametrize(("queued", "sent"), [(1, 1), (3, 3), (4, 4), (7, 4), (8, 8), (15, 8)])
def test_the_largest_preferred_size_that_is_filled_ends_the_batch(queued: int, sent: int) -> None:
    driver = Driver(rows_max=16, preferred_rows=[8, 4])
    driver.submit_many(range(queued))
    (batch,) = driver.step()
    assert batch.rows == sent


def test_a_lead_larger_than_the_preferred_size_is_not_cut() -> None:
    driver = Driver(rows_max=8, preferred_rows=[4])
    driver.submit(1, rows=6)
    (batch,) = driver.step()
    assert (batch.rows, users(batch)) == (6, [1])


@pytest.mark.parametrize(
    ("queued", "sent", "padded"), [(1, 1, 4), (4, 4, 4), (7, 4, 4), (8, 8, 8), (20, 16, 16)]
)
def test_mandatory_sizes_are_filled_or_padded(queued: int, sent: int, padded: int) -> None:
    driver = Driver(rows_max=20, mandatory_rows=[4, 8, 16])
    driver.submit_many(range(queued))
    (batch,) = driver.step()
    assert (batch.rows, batch.rows_padded) == (sent, padded)


def test_a_mandatory_size_that_whole_requests_miss_is_padded() -> None:
    driver = Driver(rows_max=8, mandatory_rows=[4, 8])
    driver.submit_many([1, 2], rows=3)
    (batch,) = driver.step()
    assert (users(batch), batch.rows_padded) == ([1], 4)


def test_an_unmergeable_request_is_not_padded() -> None:
    driver = Driver(rows_max=8, mandatory_rows=[4])
    driver.submit(rows=3, mergeable=False)
    (batch,) = driver.step()
    assert batch.rows_padded == 3


def test_a_batch_waits_for_rows_until_its_oldest_member_waited_the_delay() -> None:
    driver = Driver(rows_max=4, queue_delay_max_ns=5 * MS)
    driver.submit(1)
    assert driver.step() == []
    driver.after(3 * MS).submit(2)
    assert driver.step() == []
    assert driver.after(2 * MS - 1).step() == []
    (batch,) = driver.after(1).step()
    assert users(batch) == [1, 2]


def test_a_full_batch_does_not_wait() -> None:
    driver = Driver(rows_max=3, queue_delay_max_ns=5 * MS)
    driver.submit_many(range(2))
    assert driver.step() == []
    driver.submit(2)
    (batch,) = driver.step()
    assert batch.rows == 3


def test_a_preferred_size_ends_the_wait() -> None:
    driver = Driver(rows_max=8, preferred_rows=[2], queue_delay_max_ns=5 * MS)
    driver.submit(1)
    assert driver.step() == []
    driver.submit(2)
    (batch,) = driver.step()
    assert users(batch) == [1, 2]


def test_the_rest_of_a_cut_queue_waits_its_own_delay() -> None:
    driver = Driver([(0, 2, True)], rows_max=2, queue_delay_max_ns=5 * MS)
    driver.submit_many([1, 2])
    driver.after(MS).submit(3)
    (batch,) = driver.step()
    assert users(batch) == [1, 2]
    (batch,) = driver.after(5 * MS).step()
    assert users(batch) == [3]


@pytest.mark.parametrize(
    ("batch_ms", "waits_ms"),
    [(8, 10), (12, 5), (1, 17)],  # a quarter of margin, at least 2 ms
)
def test_the_deadline_shortens_the_wait_by_the_time_a_batch_takes(
    batch_ms: int, waits_ms: int
) -> None:
    driver = Driver(rows_max=4, queue_delay_max_ns=50 * MS)
    driver.submit(0)
    (batch,) = driver.after(50 * MS).step()
    driver.after(batch_ms * MS).complete(batch)
    driver.submit(1, deadline=driver.now + 20 * MS)
    assert driver.after(waits_ms * MS - 1).step() == []
    (batch,) = driver.after(1).step()
    assert users(batch) == [1]


def test_waiting_for_rows_does_not_hold_up_another_signature() -> None:
    driver = Driver(rows_max=2, queue_delay_max_ns=5 * MS)
    driver.submit(1, signature=1)
    driver.submit_many([2, 3], signature=2)
    (batch,) = driver.step()
    assert users(batch) == [2, 3]


def test_a_dispatch_carries_the_latest_deadline_of_its_members() -> None:
    driver = Driver(rows_max=4)
    driver.submit(1, deadline=driver.now + 5 * MS)
    driver.submit(2, deadline=driver.now + 9 * MS)
    (batch,) = driver.step()
    assert batch.deadline_ns == driver.now + 9 * MS
