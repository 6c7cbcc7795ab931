"""Requests of a sequence: one backend, the order of admission, what loses the state."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import NEVER
from tests.unit.engine.driver import MS, SECOND, Dispatch, Driver, users

IDLE = 10 * SECOND
LOST = ("failed", "sequence_lost")
UNAVAILABLE, INTERNAL = 14, 13


def sequencer(backends: Any = 2, **policy: Any) -> Driver:
    return Driver(backends, **{"direct_max": 100, "sequence_idle_ns": IDLE} | policy)


def sent(batches: list[Dispatch]) -> list[tuple[int, int]]:
    """(user, backend) of dispatches of one request each."""
    assert all(len(batch.members) == 1 for batch in batches)
    return [(users(batch)[0], batch.backend) for batch in batches]


def begin(driver: Driver, user: int, sequence: int, **request: Any) -> int:
    """Starts a sequence and answers its start. Returns its backend."""
    driver.submit(user, sequence=sequence, start=True, **request)
    (batch,) = driver.step()
    assert users(batch) == [user]
    driver.complete(batch)
    return batch.backend


def test_new_sequences_spread_over_the_backends_and_stay() -> None:
    driver = sequencer(3)
    homes = [begin(driver, user, sequence=user) for user in (1, 2, 3, 4)]
    assert homes == [0, 1, 2, 0]
    driver.submit_many([12], sequence=2)
    driver.submit_many([11], sequence=1)
    driver.submit_many([14], sequence=4)
    assert sent(driver.step()) == [(12, 1), (11, 0), (14, 0)]


def test_the_next_request_waits_for_the_answer_whatever_its_priority_and_deadline() -> None:
    driver = sequencer(priority_levels=2, default_priority=2)
    driver.submit(1, sequence=7, start=True)
    driver.submit(2, sequence=7)
    driver.submit(3, sequence=7, priority=1, deadline=driver.now + SECOND)
    for user in (1, 2, 3):
        (batch,) = driver.step()
        assert sent([batch]) == [(user, 0)]
        assert driver.step() == []
        driver.complete(batch)


def test_requests_of_one_ordered_path_follow_at_once() -> None:
    driver = sequencer()
    driver.submit_many([2], sequence=9, start=True)
    driver.submit_many([1], sequence=7, start=True, path=5)
    driver.submit_many([3, 4], sequence=7, path=5)
    driver.submit_many([5], sequence=7, path=6)
    driver.submit_many([6], sequence=7, path=5)
    batches = driver.step()
    assert sent(batches) == [(2, 0), (1, 1), (3, 1), (4, 1)]
    for batch in batches[1:3]:
        driver.complete(batch)
        assert driver.step() == []
    driver.complete(batches[3])
    (other,) = driver.step()
    assert sent([other]) == [(5, 1)]
    driver.complete(other)
    assert sent(driver.step()) == [(6, 1)]


def test_requests_without_a_path_never_follow_at_once() -> None:
    driver = sequencer()
    driver.submit_many([1], sequence=7, start=True)
    driver.submit_many([2], sequence=7)
    assert sent(driver.step()) == [(1, 0)]


def test_what_follows_waits_for_what_is_out_when_its_path_has_ended() -> None:
    driver = sequencer(direct_max=2)
    driver.submit_many([1], sequence=7, start=True, path=5)
    driver.submit_many([2, 3, 4], sequence=7, path=5)
    first, second = driver.step()
    assert [users(first), users(second)] == [[1], [2]]
    for batch in (first, second):
        driver.engine.end_path(batch.batch, driver.now)
    driver.engine.check_invariants()
    driver.complete(first)
    assert driver.step() == []
    driver.complete(second)
    assert sent(driver.step()) == [(3, 0), (4, 0)]


def test_requests_of_a_sequence_are_never_merged() -> None:
    driver = Driver(1, rows_max=8, staged_batches_max=0, sequence_idle_ns=IDLE)
    for user in (1, 2, 3):
        driver.submit(user, sequence=user, start=True)
    for user in (1, 2, 3):
        (batch,) = driver.step()
        assert users(batch) == [user]
        driver.complete(batch)


def test_the_end_gives_the_backend_back() -> None:
    driver = sequencer()
    assert begin(driver, 1, sequence=1) == 0
    driver.submit(2, sequence=1, end=True)
    (batch,) = driver.step()
    driver.complete(batch)
    assert driver.engine.queue_status(0).requests == 0
    # Nothing is left of it: the next ones begin at the first backend again.
    assert begin(driver, 3, sequence=2) == 0
    assert begin(driver, 4, sequence=1) == 1


def test_a_start_behind_the_end_in_flight_goes_to_the_same_backend() -> None:
    driver = sequencer()
    assert begin(driver, 1, sequence=9) == 0
    assert begin(driver, 2, sequence=8) == 1
    driver.submit_many([3], sequence=9, end=True, path=4)
    driver.submit_many([4], sequence=9, start=True, path=4)
    ended, again = driver.step()
    assert sent([ended, again]) == [(3, 0), (4, 0)]
    driver.complete(ended)
    driver.submit(5, sequence=9, path=4)
    assert sent(driver.step()) == [(5, 0)]


def test_a_start_of_a_live_sequence_keeps_its_backend() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    assert begin(driver, 2, sequence=2) == 1
    assert begin(driver, 3, sequence=2) == 1


def test_an_idle_sequence_is_forgotten_after_its_time() -> None:
    driver = sequencer()
    assert begin(driver, 1, sequence=1) == 0
    assert driver.step() == []
    assert driver.wakes()[-1] == driver.now + IDLE
    assert begin(driver.after(IDLE - 1), 2, sequence=2) == 1
    driver.after(1).step()
    assert begin(driver, 3, sequence=3) == 0


def test_a_sequence_with_a_request_does_not_idle() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.after(IDLE - 1).submit(2, sequence=1)
    (batch,) = driver.step()
    driver.after(2 * IDLE).step()
    driver.complete(batch)
    driver.after(IDLE - 1).step()
    assert begin(driver, 3, sequence=3) == 1
    driver.submit(4, sequence=1)
    assert sent(driver.step()) == [(4, 0)]


def test_an_unknown_sequence_goes_anywhere_and_stays_where_it_was_served() -> None:
    driver = sequencer()
    driver.submit(1, sequence=1)
    (refused,) = driver.step()
    assert [a.code for a in driver.fail(refused, "final", 3)] == [3]
    assert begin(driver, 2, sequence=2) == 0
    driver.submit(3, sequence=1)
    (served,) = driver.step()
    assert sent([served]) == [(3, 1)]
    driver.complete(served)
    driver.submit(4, sequence=1)
    assert sent(driver.step()) == [(4, 1)]


def test_without_an_idle_time_there_are_no_sequences() -> None:
    driver = sequencer(sequence_idle_ns=0)
    driver.submit_many([1, 2], sequence=1)
    assert sent(driver.step()) == [(1, 0), (2, 1)]


def test_a_cancelled_or_expired_request_does_not_block_the_next() -> None:
    driver = sequencer()
    driver.submit(1, sequence=1, start=True)
    queued = driver.submit(2, sequence=1)
    driver.submit(3, sequence=1, deadline=driver.now + MS)
    driver.submit(4, sequence=1)
    (first,) = driver.step()
    driver.cancel(queued)
    driver.after(MS).step()
    assert driver.answers() == {
        2: ("cancelled", "client_cancelled"),
        3: ("expired", "expired_in_queue"),
    }
    driver.complete(first)
    running = driver.submit(5, sequence=1)
    assert sent(driver.step()) == [(4, 0)]
    driver.cancel(running)
    driver.submit(6, sequence=1, deadline=driver.now + 2 * MS)
    driver.submit(7, sequence=1)
    assert driver.step() == []


def test_a_cancel_in_flight_lets_the_next_go() -> None:
    driver = sequencer()
    handle = driver.submit(1, sequence=1, start=True)
    driver.submit(2, sequence=1)
    driver.step()
    driver.cancel(handle)
    assert sent(driver.step()) == [(2, 0)]


@pytest.mark.parametrize("kind", ["rejected", "unavailable"])
def test_an_error_of_the_model_goes_to_its_request_alone(kind: str) -> None:
    driver = sequencer()
    driver.submit(1, sequence=1, start=True)
    driver.submit(2, sequence=1)
    (batch,) = driver.step()
    assert [a.code for a in driver.fail(batch, kind, INTERNAL)] == [INTERNAL]
    assert sent(driver.step()) == [(2, 0)]


def test_a_lost_connection_loses_the_sequence_until_a_start() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.submit_many([2, 3], sequence=1)
    driver.submit(4, sequence=1, start=True)
    driver.submit(5, sequence=1)
    (batch,) = driver.step()
    (answer,) = driver.fail(batch, "connection", UNAVAILABLE)
    assert (answer.user, answer.reason, answer.code) == (2, "sequence_lost", UNAVAILABLE)
    # The other backend has fewer sequences now, and the start may go anywhere.
    (again,) = driver.step()
    assert sent([again]) == [(4, 1)]
    assert driver.answers() == {1: ("completed", "none"), 2: LOST, 3: LOST}
    driver.complete(again)
    assert sent(driver.step()) == [(5, 1)]


def test_a_reset_of_its_stream_loses_the_sequence() -> None:
    """It may have run: nobody knows the state, and nothing of a sequence runs twice."""
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.submit_many([2, 3], sequence=1)
    (batch,) = driver.step()
    (answer,) = driver.fail(batch, "reset", INTERNAL)
    assert (answer.user, answer.reason, answer.code) == (2, "sequence_lost", UNAVAILABLE)
    assert driver.step() == []
    assert driver.answers() == {1: ("completed", "none"), 2: LOST, 3: LOST}


def test_later_requests_of_a_lost_sequence_are_answered_at_once_while_it_is_known() -> None:
    driver = sequencer(1)
    begin(driver, 1, sequence=1)
    driver.submit(2, sequence=1)
    (batch,) = driver.step()
    driver.fail(batch, "connection")
    driver.after(SECOND).submit(3, sequence=1)
    assert driver.step() == []
    assert driver.answers()[3] == LOST
    # Its time counts from the last answer.
    driver.after(IDLE - 1).submit(4, sequence=1)
    assert driver.step() == []
    assert driver.answers()[4] == LOST
    driver.after(IDLE).step()
    driver.submit(5, sequence=1)
    assert sent(driver.step()) == [(5, 0)]


def test_what_did_not_run_goes_to_the_same_backend_again() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.submit_many([2, 3], sequence=1)
    (batch,) = driver.step()
    assert driver.fail(batch, "nothing_ran") == []
    assert driver.step() == []
    (again,) = driver.after(10 * MS).step()
    assert sent([again]) == [(2, 0)]
    driver.complete(again)
    assert sent(driver.step()) == [(3, 0)]


def test_a_start_that_did_not_run_goes_elsewhere() -> None:
    driver = sequencer()
    driver.submit(1, sequence=1, start=True, path=3)
    (batch,) = driver.step()
    driver.submit(2, sequence=1, path=3)
    assert driver.fail(batch, "nothing_ran") == []
    assert sent(driver.step()) == [(1, 1), (2, 1)]


def test_a_start_that_never_ran_leaves_no_sequence() -> None:
    driver = sequencer(1)
    driver.submit(1, sequence=1, start=True, deadline=driver.now + MS)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    assert driver.after(MS).step() == []
    assert driver.answers() == {1: ("expired", "expired_in_flight")}
    assert driver.wakes()[-1] == NEVER


def test_what_a_later_request_overtook_is_lost() -> None:
    driver = sequencer()
    driver.submit(1, sequence=1, start=True, path=3)
    driver.submit(2, sequence=1, path=3)
    first, second = driver.step()
    assert [a.reason for a in driver.fail(first, "nothing_ran")] == ["sequence_lost"]
    assert [a.outcome for a in driver.complete(second)] == ["completed"]
    driver.submit(3, sequence=1, path=3)
    assert driver.step() == []
    assert driver.answers()[3] == LOST


@pytest.mark.parametrize("away", [SECOND - 1, SECOND])
def test_a_backend_that_comes_back_in_time_keeps_its_idle_sequences(away: int) -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.engine.set_backend(0, False, driver.now)
    driver.step()
    assert driver.wakes()[-1] == driver.now + SECOND
    driver.submit(2, sequence=1)
    assert driver.step() == []
    assert driver.after(away).step() == []
    driver.engine.set_backend(0, True, driver.now)
    if away < SECOND:
        assert sent(driver.step()) == [(2, 0)]
    else:
        assert driver.step() == []
        assert driver.answers()[2] == LOST


def test_a_sequence_of_the_only_backend_fails_as_lost_not_as_unserved() -> None:
    driver = sequencer(1)
    begin(driver, 1, sequence=1)
    driver.engine.set_backend(0, False, driver.now)
    driver.after(2 * SECOND).submit(2, sequence=1)
    driver.step()
    assert driver.answers()[2] == LOST
    assert driver.refusal(sequence=1, start=True) == "no_backend"


def test_a_removed_placement_loses_its_sequences() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    driver.submit_many([2, 3], sequence=1)
    (batch,) = driver.step()
    driver.configure([(1, 1, True)])
    driver.submit(4, sequence=1, start=True)
    assert driver.step() == []
    assert driver.answers()[3] == LOST
    driver.complete(batch)
    assert sent(driver.step()) == [(4, 1)]


def test_a_removed_model_answers_all_that_its_sequences_hold() -> None:
    driver = sequencer()
    driver.submit(1, sequence=1, start=True)
    driver.submit_many([2, 3], sequence=1)
    (batch,) = driver.step()
    driver.configure(in_use=False)
    driver.step()
    assert driver.answers() == {2: ("failed", "no_backend"), 3: ("failed", "no_backend")}
    driver.complete(batch)
    assert driver.engine.requests_inflight == 0
    driver.configure(in_use=True)
    assert begin(driver, 4, sequence=2) == 0


def test_a_start_with_a_pin_goes_there() -> None:
    driver = sequencer()
    assert begin(driver, 1, sequence=1, pinned_backend=1) == 1
    driver.submit(2, sequence=1)
    assert sent(driver.step()) == [(2, 1)]


def test_the_queue_bounds_count_what_a_sequence_holds() -> None:
    driver = sequencer(queue_requests_max=2)
    driver.submit(1, sequence=1, start=True)
    driver.step()
    driver.submit_many([2, 3], sequence=1)
    assert driver.refusal(sequence=1) == "queue_full"
    assert driver.engine.queue_status(0).requests == 2


def test_everything_goes_on_after_save_and_load() -> None:
    driver = sequencer()
    begin(driver, 1, sequence=1)
    begin(driver, 2, sequence=2)
    driver.submit_many([3, 4], sequence=2)
    (batch,) = driver.step()
    state = driver.engine.save()
    driver.engine = type(driver.engine)()
    assert driver.engine.load(state)
    driver.complete(batch)
    assert sent(driver.step()) == [(4, 1)]
    driver.after(IDLE).step()
    assert begin(driver, 5, sequence=3) == 0
