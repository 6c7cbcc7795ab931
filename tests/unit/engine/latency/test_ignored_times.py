"""Times that cannot be are not learned from, change nothing else, and are counted by kind."""

from __future__ import annotations

import pytest

from scheduler._native.engine import Dispatch, Engine, IgnoredTimes
from tests.unit.engine.driver import MS, SECOND, Driver

HOUR = 3600 * SECOND


def ran(driver: Driver, took_ns: int, user: int = 0) -> None:
    """One batch that the clock says to take so long."""
    driver.submit(user)
    (batch,) = driver.step()
    driver.after(took_ns).complete(batch)


def ignored(driver: Driver, backend: int = 0) -> IgnoredTimes:
    return driver.engine.latency_status(0, backend).ignored


@pytest.mark.parametrize(
    ("took_ns", "kind"),
    [(-1, "backward"), (-SECOND, "backward"), (0, "zero"), (HOUR + 1, "too_long")],
)
def test_a_batch_time_that_cannot_be_is_counted_and_not_learned(took_ns: int, kind: str) -> None:
    driver = Driver(rows_max=8, load_aware=True)
    for user in range(20):
        ran(driver, 5 * MS, user)
    before = driver.engine.latency_status(0, 0)
    assert before.ignored == IgnoredTimes(0, 0, 0, 0)
    ran(driver, took_ns, 20)
    after = driver.engine.latency_status(0, 0)
    assert after == before._replace(ignored=before.ignored._replace(**{kind: 1}))
    assert driver.answers()[20] == ("completed", "none")


def test_a_batch_of_an_hour_is_taken() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    ran(driver, HOUR)
    assert ignored(driver) == IgnoredTimes(0, 0, 0, 0)
    assert driver.engine.latency_status(0, 0).observations == 1


def test_replies_that_come_in_one_reading_are_no_nonsense() -> None:
    driver = Driver(rows_max=1, staged_batches_max=4, load_aware=True)
    for user in range(20):
        ran(driver, MS, user)
    driver.submit_many(range(20, 23))
    batches = driver.step()
    driver.after(MS - 1)
    batches += driver.step()
    assert len(batches) > 1, "one runs, others are staged behind it"
    driver.after(1)
    for batch in batches:
        driver.complete(batch)
    assert ignored(driver) == IgnoredTimes(0, 0, 0, 0)


def test_a_batch_that_was_given_up_before_it_began_is_counted() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    driver.submit(0)
    (batch,) = driver.step()
    driver.after(-MS).fail(batch, "given_up", code=4)
    assert ignored(driver).backward == 1


def test_nonsense_is_counted_by_the_backend_that_it_is_of() -> None:
    driver = Driver(2, rows_max=1, load_aware=True)
    driver.submit_many(range(2))
    one, other = driver.step()
    driver.after(HOUR + 1).complete(one)
    assert ignored(driver, one.backend).too_long == 1
    assert ignored(driver, other.backend).too_long == 0


@pytest.mark.parametrize(
    ("rows", "mean_ns", "count"),
    [(0, MS, 10), (1, 0, 10), (1, -MS, 10), (1, HOUR + 1, 10), (1 << 25, MS, 10), (1, MS, 0)],
)
def test_what_is_said_beforehand_and_makes_no_sense_is_counted(
    rows: int, mean_ns: int, count: int
) -> None:
    driver = Driver(rows_max=8, load_aware=True)
    assert not driver.engine.prime_latency(0, 0, rows, mean_ns, count)
    assert ignored(driver) == IgnoredTimes(0, 0, 0, 1)
    assert driver.engine.prime_latency(0, 0, 1, MS, 10)
    assert ignored(driver) == IgnoredTimes(0, 0, 0, 1)


def test_counts_are_kept_by_what_is_saved() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    for user, took_ns in enumerate((-1, 0, HOUR + 1)):
        ran(driver, took_ns, user)
    driver.engine.prime_latency(0, 0, 0, MS, 10)
    loaded = Engine()
    assert loaded.load(driver.engine.save())
    assert loaded.latency_status(0, 0).ignored == IgnoredTimes(1, 1, 1, 1)


# -- the clock itself


def test_a_clock_that_goes_on_does_not_jump() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    for user in range(5):
        ran(driver, SECOND, user)
    driver.after(HOUR).step()
    assert driver.engine.clock_jumps() == (0, 0), "nothing was due in that hour"


def test_a_clock_that_goes_back_is_counted_and_stops_nothing() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    driver.submit(0)
    (batch,) = driver.step()
    driver.submit(1, deadline=driver.now + SECOND)
    driver.after(-HOUR).step()
    assert driver.engine.clock_jumps() == (1, 0)
    driver.after(MS).complete(batch)
    driver.step()
    (last,) = [a for a in driver.actions if isinstance(a, Dispatch) and a is not batch]
    driver.after(MS).complete(last)
    assert {user: outcome for user, (outcome, _) in driver.answers().items()} == {
        0: "completed",
        1: "completed",
    }
    assert driver.engine.clock_jumps() == (1, 0), "it goes on from there"


def test_a_clock_that_goes_far_ahead_of_what_is_due_is_counted() -> None:
    for late_ns, ahead in ((10 * SECOND, 0), (10 * SECOND + 1, 1)):
        driver = Driver(rows_max=8, load_aware=True)
        driver.submit(0, deadline=driver.now + SECOND)
        driver.step()
        due = driver.wakes()[-1]
        driver.after(due - driver.now + late_ns).step()
        assert driver.engine.clock_jumps() == (0, ahead)
