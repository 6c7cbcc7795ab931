"""What the engine admits, and what it says to the rest."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import MS, SECOND, Driver


def test_the_last_place_of_the_queue_is_given_and_the_next_request_refused() -> None:
    driver = Driver(queue_requests_max=3)
    driver.submit_many(range(3))
    assert driver.refusal() == "queue_full"


def test_a_request_that_left_the_queue_frees_its_place() -> None:
    driver = Driver(queue_requests_max=1)
    driver.cancel(driver.submit())
    driver.submit()
    driver.step()
    driver.submit()
    assert driver.refusal() == "queue_full"


def test_queue_bytes_are_bounded_at_the_byte() -> None:
    driver = Driver(queue_bytes_max=100)
    driver.submit(bytes=60)
    assert driver.refusal(bytes=41) == "queue_full"
    driver.submit(bytes=40)
    assert driver.refusal(bytes=1) == "queue_full"
    driver.submit(bytes=0)


def test_a_request_larger_than_the_byte_bound_is_refused_by_an_empty_queue() -> None:
    assert Driver(queue_bytes_max=100).refusal(bytes=101) == "queue_full"


def test_queue_age_refuses_only_when_the_oldest_is_older_than_the_bound() -> None:
    driver = Driver(queue_age_max_ns=5 * MS)
    driver.submit()
    driver.after(5 * MS).submit()
    assert driver.after(1).refusal() == "queue_age"


def test_a_deadline_that_has_come_is_infeasible_and_one_nanosecond_is_not() -> None:
    driver = Driver()
    assert driver.refusal(deadline=driver.now) == "deadline_infeasible"
    driver.submit(deadline=driver.now + 1)


def test_the_objective_counts_from_the_arrival() -> None:
    driver = Driver(slo_ns=10 * MS)
    assert driver.refusal(arrival=driver.now - 10 * MS) == "deadline_infeasible"
    driver.submit(arrival=driver.now - 10 * MS + 1)


DAY = 24 * 3600 * SECOND


@pytest.mark.parametrize(
    ("arrival", "waited"),
    [(-(1 << 63), DAY), (-1, DAY), (100 * DAY, SECOND), ((1 << 63) - 1, 0)],
)
def test_an_arrival_in_the_future_or_days_ago_is_not_believed(arrival: int, waited: int) -> None:
    driver = Driver().after(100 * DAY)
    driver.submit(arrival=arrival)
    assert driver.engine.queue_status(0).oldest_arrival == driver.now - waited
    (batch,) = driver.step()
    driver.complete(batch)
    assert driver.engine.model_stats(0)["completed_ns"] == waited


def test_an_early_clock_takes_no_arrival_before_its_start() -> None:
    driver = Driver()
    driver.submit(arrival=-(1 << 63))
    assert driver.engine.queue_status(0).oldest_arrival == 0


def test_draining_refuses_and_finishes_what_was_admitted() -> None:
    driver = Driver()
    driver.submit(1)
    driver.engine.set_draining(True)
    assert driver.refusal() == "draining"
    (batch,) = driver.step()
    driver.complete(batch)
    assert driver.answers() == {1: ("completed", "none")}


def test_fail_all_answers_in_the_order_of_admission() -> None:
    driver = Driver(rows_max=2)
    driver.submit_many([5, 6, 7])
    driver.step()
    driver.engine.fail_all("draining", driver.now)
    driver.step()
    assert list(driver.answers().items()) == [(u, ("failed", "draining")) for u in (5, 6, 7)]
    assert driver.engine.requests_inflight == 0


def test_a_model_that_is_not_configured_is_unknown() -> None:
    driver = Driver()
    assert driver.refusal(model=1) == "unknown_model"
    driver.configure(in_use=False)
    assert driver.refusal() == "unknown_model"


@pytest.mark.parametrize("placements", [[], [(0, 1, False)]])
def test_without_a_ready_placement_a_model_refuses(placements: list[tuple[int, int, bool]]) -> None:
    assert Driver(placements).refusal() == "no_backend"


def test_a_pinned_request_needs_its_own_backend() -> None:
    driver = Driver(1)
    driver.submit(pinned_backend=0)
    assert driver.refusal(pinned_backend=1) == "no_backend"


def test_requests_are_admitted_for_a_second_after_the_last_backend_was_lost() -> None:
    driver = Driver()
    driver.engine.set_backend(0, False, driver.now)
    driver.after(SECOND - 1).submit()
    assert driver.after(1).refusal() == "no_backend"


def test_a_refusal_carries_a_retry_time_where_waiting_helps() -> None:
    driver = Driver(queue_requests_max=1)
    driver.submit()
    assert driver.engine.submit(driver.now).retry_after_ns == MS  # nothing is known of the rate
    infeasible = driver.engine.submit(driver.now, deadline=driver.now)
    assert infeasible.retry_after_ns == 0
    driver.engine.set_draining(True)
    assert driver.engine.submit(driver.now).retry_after_ns == SECOND


def test_the_retry_time_of_a_full_queue_follows_the_drain_rate() -> None:
    driver = Driver(queue_requests_max=4)
    driver.submit_many(range(4))
    for _ in range(3):
        (batch,) = driver.step()
        driver.after(7 * MS).complete(batch)
    driver.submit_many(range(3))
    assert driver.refusal() == "queue_full"
    assert driver.engine.submit(driver.now).retry_after_ns == 4 * 7 * MS


def test_a_refused_request_leaves_no_trace_but_its_counter() -> None:
    driver = Driver(queue_requests_max=0)
    assert driver.refusal() == "queue_full"
    counters = driver.engine.counters(0)
    assert (counters["admitted"], counters["refused"]) == (0, 1)
    assert counters["outcomes"] == {("refused", "queue_full"): 1}
    assert driver.step() == []
