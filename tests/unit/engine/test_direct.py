"""Direct models, models that are unloaded, and batch formation that is held for a test."""

from __future__ import annotations

from tests.unit.engine.driver import MS, Driver, users


def test_a_direct_model_sends_requests_alone_and_as_they_come() -> None:
    driver = Driver([(0, 1, True), (1, 4, True)], rows_max=8, direct_max=3)
    driver.submit_many(range(7), rows=2)
    batches = driver.step()
    assert [(users(b), b.backend) for b in batches] == [
        ([0], 0), ([1], 1), ([2], 0), ([3], 1), ([4], 0), ([5], 1)
    ]  # fmt: skip
    assert driver.engine.queue_status(0).requests == 1
    driver.complete(batches[3])
    assert [(users(b), b.backend) for b in driver.step()] == [([6], 1)]


def test_a_direct_model_is_not_split_and_not_staged() -> None:
    driver = Driver(1, rows_max=2, direct_max=1, staged_batches_max=4)
    driver.submit_many([1, 2, 3], rows=5)
    for user in (1, 2, 3):
        (batch,) = driver.step()
        assert (users(batch), batch.rows) == ([user], 5)
        driver.after(MS).complete(batch)


def test_a_direct_model_keeps_the_queue_bounds_and_pins() -> None:
    driver = Driver(2, direct_max=1, queue_requests_max=1)
    driver.submit(1, pinned_backend=1)
    (pinned,) = driver.step()
    assert pinned.backend == 1
    driver.submit(2, pinned_backend=1)
    assert driver.step() == []
    assert driver.refusal() == "queue_full"
    driver.complete(pinned)
    assert [b.backend for b in driver.step()] == [1]


def test_more_in_flight_are_allowed_with_the_next_policy() -> None:
    driver = Driver(1, direct_max=1)
    driver.submit_many(range(3))
    assert len(driver.step()) == 1
    driver.configure(direct_max=3)
    assert len(driver.step()) == 2


def test_an_unloading_model_refuses_and_finishes_what_it_has() -> None:
    driver = Driver(1)
    driver.submit_many([1, 2])
    (first,) = driver.step()
    driver.configure(admitting=False)
    assert driver.refusal() == "unloading"
    driver.complete(first)
    (second,) = driver.step()
    status = driver.engine.queue_status(0)
    assert (status.requests, status.inflight_batches) == (0, 1)
    driver.complete(second)
    assert driver.engine.queue_status(0).inflight_batches == 0
    assert driver.engine.counters(0)["outcomes"]["refused", "unloading"] == 1
    driver.configure(admitting=True)
    driver.submit(3)


def test_batches_are_held_once_until_enough_requests_are_queued() -> None:
    driver = Driver(1, rows_max=8, hold_requests=3)
    driver.submit_many([1, 2])
    assert driver.step() == []
    driver.submit(3)
    (batch,) = driver.step()
    assert users(batch) == [1, 2, 3]
    driver.complete(batch)
    driver.submit(4)
    assert len(driver.step()) == 1


def test_held_requests_expire_and_a_changed_policy_does_not_hold_again() -> None:
    driver = Driver(1, rows_max=8, hold_requests=2)
    driver.submit(1, deadline=driver.now + MS)
    driver.after(MS).step()
    assert driver.answers() == {1: ("expired", "expired_in_queue")}
    driver.submit_many([2, 3])
    (batch,) = driver.step()
    driver.complete(batch)
    driver.configure(rows_max=4)
    driver.submit(4)
    assert len(driver.step()) == 1


def test_a_model_that_is_loaded_again_holds_again() -> None:
    driver = Driver(1, rows_max=8, hold_requests=2)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    driver.complete(batch)
    driver.configure(in_use=False)
    driver.configure(in_use=True)
    driver.submit(3)
    assert driver.step() == []
