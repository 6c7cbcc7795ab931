"""Devices held free for a request that ran out of memory beside others: what they lose by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler._native.engine import OWN_EXECUTORS, Dispatch, Engine
from tests.unit.engine.driver import MS, SECOND, Driver, users

INTERNAL, UNAVAILABLE = 13, 14
MINE, NEIGHBOUR = 0, 1


def shared_device(instances: int = 1, **policy: object) -> Driver:
    """Two models on one device, at backends of their own."""
    driver = Driver([(0, instances, True, OWN_EXECUTORS, [0])], rows_max=8, **policy)
    placements = [(1, instances, True, OWN_EXECUTORS, [0])]
    driver.engine.configure_model(NEIGHBOUR, placements, driver.now, rows_max=8)
    driver.engine.set_backend(1, True, driver.now)
    return driver


class World:
    """Batches that take their time; each runs out of memory at its end, or not."""

    def __init__(self, driver: Driver, ns: Callable[[Dispatch], int]) -> None:
        self.driver = driver
        self.ns = ns
        self.running: list[tuple[int, Dispatch, bool]] = []
        self.done = [0, 0]

    def step(self, runs_out: Callable[[Dispatch, list[Dispatch]], bool]) -> None:
        for batch in self.driver.step():
            self.running.append((self.driver.now + self.ns(batch), batch, False))
        out = [batch for _, batch, _ in self.running]
        self.running = [(at, b, bad or runs_out(b, out)) for at, b, bad in self.running]

    def next_moment(self) -> int:
        wakes = [at for at in self.driver.wakes()[-1:] if at > self.driver.now]
        return min([at for at, _, _ in self.running] + wakes, default=self.driver.now + SECOND)

    def advance(self, until: int) -> None:
        self.driver.now = max(min(self.next_moment(), until), self.driver.now)
        ended = [item for item in self.running if item[0] <= self.driver.now]
        self.running = [item for item in self.running if item[0] > self.driver.now]
        for _, batch, bad in ended:
            if bad:
                self.driver.fail(batch, "out_of_memory", INTERNAL)
            else:
                self.driver.complete(batch)
                self.done[batch.model] += 1


def neighbours_rate(per_s: int, runs_out: bool) -> int:
    """Batches of the neighbour in 20 s, beside requests that nothing can hold."""
    driver = shared_device()
    world = World(driver, lambda batch: (20 if batch.model == MINE else 10) * MS)
    start, submitted, asked = driver.now, 0, 0
    while driver.now < start + 20 * SECOND:
        while submitted * SECOND <= per_s * (driver.now - start):
            driver.submit(submitted, mergeable=False)
            submitted += 1
        while asked <= world.done[NEIGHBOUR]:
            driver.submit(asked, model=NEIGHBOUR)
            asked += 1
        world.step(lambda batch, _: runs_out and batch.model == MINE)
        world.advance(start + submitted * SECOND // per_s)
    return world.done[NEIGHBOUR]


def test_requests_that_run_out_of_memory_again_and_again_hold_up_nobody() -> None:
    assert neighbours_rate(10, True) >= 0.93 * neighbours_rate(10, False)


@pytest.mark.parametrize("instances", [2, 4])
def test_two_that_fit_alone_only_get_the_device_one_after_the_other(instances: int) -> None:
    driver = shared_device(instances)
    world = World(driver, lambda _: 3 * MS)
    driver.submit_many(range(instances), mergeable=False)
    until = driver.now + 10 * SECOND
    while driver.engine.requests_inflight:
        assert driver.now < until
        world.step(lambda _, out: len(out) > 1)
        world.advance(until)
    assert set(driver.answers().values()) == {("completed", "none")}


def held(driver: Driver) -> tuple[Dispatch, Dispatch]:
    """Holds the device for a request of model 0: what failed, what is out beside it."""
    driver.submit(1, mergeable=False)
    driver.submit(2, model=NEIGHBOUR)
    sent = {users(batch)[0]: batch for batch in driver.step()}
    driver.after(MS).fail(sent[1], "out_of_memory", INTERNAL)
    driver.submit(3, model=NEIGHBOUR)
    assert driver.step() == []
    return sent[1], sent[2]


def test_a_hold_ends_after_a_second_whatever_is_out() -> None:
    driver = shared_device(instances=2)
    held(driver)
    # What is out beside it takes longer.
    assert SECOND + driver.now in driver.wakes()
    driver.after(SECOND)
    assert sorted(users(batch)[0] for batch in driver.step()) == [1, 3]


def test_a_hold_ends_with_the_backend_of_the_batch() -> None:
    driver = shared_device(instances=2)
    held(driver)
    driver.engine.set_backend(0, False, driver.now)
    assert [users(batch) for batch in driver.step()] == [[3]]


def test_what_is_sent_again_for_other_reasons_does_not_wait_in_line() -> None:
    driver = shared_device(instances=2)
    driver.submit(4, mergeable=False)
    _, other = held(driver)
    fourth = next(b for b in driver.actions if isinstance(b, Dispatch) and users(b) == [4])
    driver.fail(fourth, "nothing_ran", UNAVAILABLE)
    sent = driver.after(20 * MS).step()
    assert [users(batch) for batch in sent] == [[4]]
    driver.complete(other)
    assert driver.step() == []
    driver.complete(sent[0])
    assert [users(batch) for batch in driver.step()] == [[1]]


def test_failures_of_backends_are_no_tries_of_memory() -> None:
    driver = shared_device()
    driver.submit(1, mergeable=False)
    for kind in ("nothing_ran", "connection", "out_of_memory"):
        (batch,) = driver.after(SECOND).step()
        driver.after(MS).fail(batch, kind, UNAVAILABLE)
    (batch,) = driver.after(SECOND).step()
    driver.complete(batch)
    assert driver.answers() == {1: ("completed", "none")}


def test_a_request_that_may_not_have_the_device_goes_once_more_beside_the_others() -> None:
    driver = shared_device(instances=2)
    _, other = held(driver)
    driver.after(SECOND).step()
    driver.submit(4, mergeable=False)
    (mine,) = (batch for batch in driver.step() if users(batch) == [4])
    driver.after(MS).fail(mine, "out_of_memory", INTERNAL)
    driver.submit(5, model=NEIGHBOUR)
    # The second that was held back is not paid for yet: nobody waits.
    driver.complete(other)
    again = {users(batch)[0]: batch for batch in driver.step()}
    assert set(again) == {4, 5}
    (answer,) = driver.after(MS).fail(again[4], "out_of_memory", INTERNAL)
    assert (answer.outcome, answer.reason) == ("failed", "device_memory")


@pytest.mark.parametrize("change", ["gone", "elsewhere", "other devices", "cancelled"])
def test_a_hold_ends_when_there_is_nothing_to_hold_for(change: str) -> None:
    driver = shared_device(instances=2)
    driver.submit(1, mergeable=False)
    driver.submit(2, model=NEIGHBOUR)
    mine, _ = sorted(driver.step(), key=lambda batch: batch.model)
    (handle,) = (member.request for member in mine.members)
    driver.after(MS).fail(mine, "out_of_memory", INTERNAL)
    driver.submit(3, model=NEIGHBOUR)
    assert driver.step() == []
    if change == "gone":
        driver.configure(in_use=False)
    elif change == "elsewhere":
        driver.engine.set_backend(2, True, driver.now)
        driver.configure([(2, 1, True, OWN_EXECUTORS, [1])])
    elif change == "other devices":
        driver.configure([(0, 2, True, OWN_EXECUTORS, [1])])
    else:
        driver.cancel(handle)
    assert [3] in [users(batch) for batch in driver.step()]


def test_a_hold_is_saved_and_loaded() -> None:
    driver = shared_device(instances=2)
    _, other = held(driver)
    state = driver.engine.save()
    twin = Engine()
    assert twin.load(state)
    assert twin.save() == state
    for engine in (driver.engine, twin):
        engine.complete(other.batch, driver.now)
        engine.step(driver.now)
        engine.check_invariants()
    mine = [a for a in driver.engine.take_actions() if isinstance(a, Dispatch)]
    theirs = [a for a in twin.take_actions() if isinstance(a, Dispatch)]
    assert mine == theirs
    assert [users(batch) for batch in mine] == [[1]]
    for engine in (driver.engine, twin):
        engine.step(driver.now + SECOND)
    assert driver.engine.take_actions() == twin.take_actions()
    assert driver.engine.save() == twin.save()


@pytest.mark.parametrize("groups", [[OWN_EXECUTORS] * 3, [0, 1, 2]], ids=["own", "shared"])
def test_a_device_that_is_held_stops_nothing_on_others(groups: list[int]) -> None:
    mine, elsewhere, near = groups
    driver = Driver([(0, 1, True, mine, [0]), (1, 1, True, elsewhere, [1])], rows_max=8)
    driver.engine.configure_model(NEIGHBOUR, [(2, 1, True, near, [1])], driver.now, rows_max=8)
    driver.engine.set_backend(2, True, driver.now)
    driver.submit(100, model=NEIGHBOUR)
    driver.step()
    driver.submit(1, mergeable=False)
    for backend in (0, 1):
        (batch,) = driver.step()
        assert batch.backend == backend
        driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
    for user in (2, 3):
        driver.submit(user, mergeable=False)
        (batch,) = driver.step()
        assert (batch.backend, users(batch)) == (0, [user])
        driver.after(MS).complete(batch)
    assert [users(batch) for batch in driver.after(SECOND).step()] == [[1]]
