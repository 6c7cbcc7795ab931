"""The bound of a queue: what is of lower levels leaves the room of higher ones to them."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import Engine, Level, TritonBlock, TritonPolicy
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import Stream, learned, run

pytestmark = pytest.mark.native

THREE = {"priority_levels": 3, "default_priority": 3}


def room(driver: Driver, **request: Any) -> int:
    """How many more requests of a kind get in until one is told that the queue is full."""
    taken = 0
    while True:
        admitted = driver.engine.submit(driver.now, **request)
        if admitted.handle == 0:
            assert admitted.reason == "queue_full"
            return taken
        taken += 1


def test_a_level_has_all_of_the_bound_whatever_waits_below_it() -> None:
    driver = Driver(queue_requests_max=5, **THREE)
    assert [room(driver, priority=level) for level in (3, 2, 1)] == [5, 5, 5]
    assert driver.engine.queue_status(0).requests == 15
    driver.engine.check_invariants()


def test_what_waits_above_a_level_counts_against_it() -> None:
    driver = Driver(queue_requests_max=5, **THREE)
    driver.submit_many(range(2), priority=1)
    driver.submit_many(range(2), priority=3)
    assert room(driver, priority=2) == 3
    assert room(driver, priority=3) == 0
    assert room(driver, priority=1) == 3


def test_best_effort_is_below_all_levels_and_its_own_levels_are_told_apart() -> None:
    levels = [Level(), Level(best_effort=True), Level(best_effort=True)]
    driver = Driver(queue_requests_max=5, levels=levels, **THREE)
    assert [room(driver, priority=level) for level in (3, 2, 1)] == [5, 5, 5]
    driver = Driver(queue_requests_max=5, levels=levels[1:2], **THREE)
    assert [room(driver, priority=level) for level in (1, 3, 2)] == [5, 5, 5]
    driver = Driver(queue_requests_max=5, levels=levels[1:2], **THREE)
    driver.submit_many(range(3), priority=3)
    assert room(driver, priority=1) == 2


@pytest.mark.parametrize("leave", ["cancel", "expire", "send"])
def test_a_request_that_left_frees_the_place_of_its_level(leave: str) -> None:
    driver = Driver(queue_requests_max=1, priority_levels=2, staged_batches_max=0)
    driver.submit(0, priority=1)
    (running,) = driver.step()
    driver.submit(1, priority=2)
    top = driver.submit(2, priority=1, deadline=driver.now + 50 * MS)
    assert driver.refusal(priority=1) == driver.refusal(priority=2) == "queue_full"
    if leave == "cancel":
        driver.cancel(top)
    elif leave == "expire":
        driver.after(60 * MS).step()
    else:
        driver.complete(running)
        driver.step()
    assert driver.refusal(priority=2) == "queue_full"
    driver.submit(3, priority=1)
    assert driver.refusal(priority=1) == "queue_full"


def test_levels_that_are_taken_away_go_on_counting_what_waits_of_them() -> None:
    driver = Driver(queue_requests_max=4, **THREE)
    driver.submit_many(range(3), priority=3)
    driver.submit_many(range(2), priority=2)
    driver.configure(priority_levels=2, default_priority=2)
    assert room(driver, priority=2) == 2
    driver.configure(priority_levels=1, default_priority=1)
    assert room(driver) == 4
    driver.engine.check_invariants()


def test_a_saved_queue_is_as_full_when_it_is_loaded() -> None:
    driver = Driver(queue_requests_max=4, **THREE)
    for priority in (3, 2, 1):
        driver.submit_many(range(2), priority=priority)
    loaded = Engine()
    assert loaded.load(driver.engine.save())
    driver.engine = loaded
    assert [room(driver, priority=level) for level in (1, 2, 3)] == [2, 0, 0]


def test_of_a_sequence_what_waits_behind_others_counts_as_its_level() -> None:
    driver = Driver(queue_requests_max=3, direct_max=9, sequence_idle_ns=SECOND, **THREE)
    for user in range(3):
        driver.submit(user, sequence=1, start=user == 0, priority=3)
    assert driver.refusal(sequence=1, priority=3) == "queue_full"
    assert room(driver, priority=1) == 3


def test_a_request_is_told_to_come_again_when_what_is_above_it_is_done() -> None:
    """Not when all of a long backlog of lower levels is, for which it would not have to wait."""
    told = []
    for below in (0, 2_000):
        driver = learned(1, queue_requests_max=3_000, slo_ns=20 * SECOND, **THREE)
        driver.step()
        driver.submit_many(range(below), priority=3)
        driver.submit_many(range(3_000), priority=1)
        refused = driver.engine.submit(driver.now, priority=1)
        assert refused.reason == "queue_full"
        told.append(refused.retry_after_ns)
    assert 0 < told[1] <= told[0] + 100 * MS


def test_a_flood_of_best_effort_costs_the_top_level_nothing() -> None:
    levels = [Level(), Level(best_effort=True)]
    driver = learned(1, queue_requests_max=50, slo_ns=60 * MS, priority_levels=2, levels=levels)
    top, flood = Stream(50, {"priority": 1}, 60 * MS), Stream(3_000, {"priority": 2})
    run(driver, [top, flood], 2 * SECOND)
    assert top.in_time > 0.98, top.counts
    assert flood.counts["queue_full"] > 1_000


def triton(*limits: int, **policy: Any) -> Driver:
    levels = tuple(TritonPolicy(requests_max=limit) for limit in limits)
    block = TritonBlock(preferred_rows=(4,), levels=levels, default_level=1)
    return Driver([(0, 1, True)], rows_max=8, triton=block, **policy)


def test_as_triton_does_a_level_is_full_by_its_own_bound_alone() -> None:
    driver = triton(3, 4, 0, queue_requests_max=5)
    assert [room(driver, priority=level) for level in (3, 2, 1)] == [5, 4, 3]
    driver = triton(3, 4, 0, queue_requests_max=5)
    assert [room(driver, priority=level) for level in (1, 2, 3)] == [3, 2, 0]


def test_what_waits_is_counted_anew_where_tritons_levels_come_or_go() -> None:
    driver = Driver([(0, 1, True)], rows_max=8, queue_requests_max=4, **THREE)
    driver.submit_many(range(2), priority=3)
    block = TritonBlock(preferred_rows=(4,), levels=(TritonPolicy(),) * 2, default_level=1)
    driver.configure(triton=block)
    driver.engine.check_invariants()
    assert room(driver, priority=1) == 2
    driver.configure(triton=None)
    driver.engine.check_invariants()
    assert room(driver, priority=2) == 0


def test_bytes_of_lower_levels_take_no_room_from_those_above() -> None:
    driver = Driver(queue_bytes_max=100, **THREE)
    driver.submit(1, bytes=100, priority=3)
    driver.submit(2, bytes=70, priority=1)
    assert driver.refusal(bytes=31, priority=1) == "queue_full"
    assert driver.refusal(bytes=31, priority=2) == "queue_full"
    driver.submit(3, bytes=30, priority=2)
    assert driver.refusal(bytes=1, priority=2) == driver.refusal(bytes=1, priority=3)
    assert driver.refusal(bytes=1, priority=3) == "queue_full"
    driver.submit(4, bytes=30, priority=1)
    assert driver.refusal(bytes=101, priority=1) == "queue_full"
    assert driver.engine.queue_status(0).bytes == 230
    driver.engine.check_invariants()


def test_bytes_of_best_effort_refuse_nothing_that_has_an_objective() -> None:
    levels = [Level(best_effort=True)]
    driver = Driver(queue_bytes_max=100, levels=levels, **THREE)
    driver.submit(1, bytes=100, priority=1)
    driver.submit(2, bytes=100, priority=3)
    assert driver.refusal(bytes=1, priority=1) == "queue_full"


def test_bytes_that_left_a_level_are_room_there() -> None:
    driver = Driver(queue_bytes_max=100, staged_batches_max=0, **THREE)
    driver.submit(0)
    driver.step()
    driver.submit(1, bytes=100, priority=2)
    top = driver.submit(2, bytes=100, priority=1)
    driver.cancel(top)
    assert driver.refusal(bytes=1, priority=2) == "queue_full"
    driver.submit(3, bytes=100, priority=1)


def aged(**policy: Any) -> Driver:
    """One request runs; what comes waits."""
    driver = Driver(**{"queue_age_max_ns": 5 * MS, "staged_batches_max": 0} | THREE | policy)
    driver.submit(0)
    driver.step()
    return driver


def test_an_old_request_refuses_none_of_the_levels_above_it() -> None:
    driver = aged()
    driver.submit(1, priority=2)
    driver.after(6 * MS)
    assert driver.refusal(priority=2) == driver.refusal(priority=3) == "queue_age"
    driver.submit(2, priority=1)
    driver.after(6 * MS)
    assert driver.refusal(priority=1) == "queue_age"
    driver.engine.check_invariants()


def test_old_best_effort_refuses_nothing_that_has_an_objective() -> None:
    driver = aged(levels=[Level(best_effort=True)])
    driver.submit(1, priority=1)
    driver.after(6 * MS)
    assert driver.refusal(priority=1) == "queue_age"
    driver.submit(2, priority=3)


@pytest.mark.parametrize("leave", ["cancel", "expire", "send"])
def test_when_the_oldest_of_a_level_left_the_next_one_counts(leave: str) -> None:
    driver = Driver(queue_age_max_ns=5 * MS, staged_batches_max=0, **THREE)
    driver.submit(0)
    (running,) = driver.step()
    driver.submit(1, priority=3)
    until = driver.now + (6 if leave == "expire" else 60) * MS
    oldest = driver.submit(2, priority=1, deadline=until)
    driver.after(4 * MS).submit(3, priority=1)
    driver.after(2 * MS)
    assert leave == "expire" or driver.refusal(priority=1) == "queue_age"
    if leave == "cancel":
        driver.cancel(oldest)
    elif leave == "expire":
        driver.step()
    else:
        driver.complete(running)
        driver.step()
    driver.submit(4, priority=1)
    assert driver.refusal(priority=3) == "queue_age"
    driver.after(4 * MS)
    assert driver.refusal(priority=1) == "queue_age"


def test_a_bound_of_the_age_that_comes_later_counts_what_waits_already() -> None:
    driver = aged(queue_age_max_ns=0)
    driver.submit(1, priority=2)
    gone = driver.submit(2, priority=1)
    driver.after(6 * MS)
    driver.configure(queue_age_max_ns=5 * MS)
    driver.engine.check_invariants()
    assert driver.refusal(priority=1) == "queue_age"
    driver.cancel(gone)
    driver.submit(3, priority=1)
    assert driver.refusal(priority=2) == "queue_age"
    driver.configure(queue_age_max_ns=0)
    driver.engine.check_invariants()
    driver.submit(4, priority=2)


def test_a_saved_queue_is_as_old_when_it_is_loaded() -> None:
    driver = aged()
    driver.submit(1, priority=2)
    driver.after(6 * MS).submit(2, priority=1)
    loaded = Engine()
    assert loaded.load(driver.engine.save())
    driver.engine = loaded
    driver.engine.check_invariants()
    assert driver.refusal(priority=2) == "queue_age"
    driver.submit(3, priority=1)


def test_what_waits_is_as_old_where_tritons_levels_come_or_go() -> None:
    driver = Driver([(0, 1, True)], rows_max=8, queue_age_max_ns=5 * MS, **THREE)
    driver.submit(1, priority=3)
    driver.submit(2, priority=2)
    block = TritonBlock(preferred_rows=(4,), levels=(TritonPolicy(),) * 2, default_level=1)
    driver.configure(triton=block)
    driver.engine.check_invariants()
    driver.after(6 * MS)
    assert driver.refusal(priority=1) == "queue_age", "where the one of level 3 is now"
    driver.configure(triton=None)
    driver.engine.check_invariants()
    assert driver.refusal(priority=1) == "queue_age"
