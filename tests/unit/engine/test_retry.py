"""A request that was refused or given up and comes again after the time it was told is let in, if
nothing else came."""

from __future__ import annotations

import heapq
from random import Random
from typing import Any

import pytest

from scheduler._native.engine import Admitted, Answer, Dispatch
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import latency, learned

pytestmark = pytest.mark.native


class House:
    """An engine and backends that take the latencies it knows."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.ends: list[tuple[int, int]] = []
        self.free = {backend: 0 for backend, _, _ in driver.placements}
        self.wake = 1 << 62
        self.given_up: list[Answer] = []

    def took(self, rows: int) -> int:
        """Of the next batch."""
        return latency(rows)

    def step(self) -> None:
        self.driver.engine.step(self.driver.now)
        for action in self.driver.engine.take_actions():
            if isinstance(action, Dispatch):
                begins = max(self.free[action.backend], self.driver.now)
                self.free[action.backend] = begins + self.took(action.rows)
                heapq.heappush(self.ends, (self.free[action.backend], action.batch))
            elif isinstance(action, Answer):
                if action.reason == "expired_in_queue":
                    self.given_up.append(action)
            elif hasattr(action, "at"):
                self.wake = action.at

    def until(self, at: int) -> None:
        while True:
            due = min(self.ends[0][0] if self.ends else 1 << 62, self.wake)
            if due > at:
                break
            self.driver.now = max(self.driver.now, due)
            self.wake = 1 << 62 if self.wake <= self.driver.now else self.wake
            while self.ends and self.ends[0][0] <= self.driver.now:
                self.driver.engine.complete(heapq.heappop(self.ends)[1], self.driver.now)
            self.step()
        self.driver.now = max(self.driver.now, at)

    def ask(self, budget: int, **request: int) -> Admitted:
        now = self.driver.now
        return self.driver.engine.submit(now, deadline=now + budget, **request)


@pytest.mark.parametrize(("reason", "part"), [("predicted_late", 0.97), ("queue_full", 1)])
def test_after_the_time_it_was_told_a_refused_request_is_let_in(reason: str, part: float) -> None:
    """Nearly always where the plan may change: the load that falls off asks for other batches."""
    tried = let_in = 0
    for seed in range(60):
        random = Random(seed)
        full = {"queue_requests_max": 20} if reason == "queue_full" else {}
        house = House(learned(random.randint(1, 4), **full))
        for _ in range(400):
            house.until(house.driver.now + random.randint(0, MS))
            budget = random.randint(10, 60) * MS if reason == "predicted_late" else SECOND
            rows = random.choice([1, 1, 1, 4])
            refused = house.ask(budget, rows=rows)
            house.step()
            if refused.handle or refused.reason != reason or random.random() < 0.9:
                continue
            assert refused.retry_after_ns > 0
            # By then everything that was queued is done or given up.
            longest = 60 * MS + 2 * latency(32) if reason == "predicted_late" else SECOND
            assert refused.retry_after_ns < longest, f"seed {seed}: {refused}"
            house.until(house.driver.now + refused.retry_after_ns)
            house.step()
            tried += 1
            let_in += house.ask(budget, rows=rows).handle != 0
        house.driver.engine.check_invariants()
    assert tried > 50
    assert let_in >= part * tried, f"{let_in} of {tried}"


def test_a_full_queue_has_room_when_the_batch_before_it_is_done() -> None:
    house = House(learned(queue_requests_max=8, staged_batches_max=0))
    house.ask(SECOND, rows=20)
    house.step()
    for _ in range(8):
        assert house.ask(SECOND).handle
        house.step()
    refused = house.ask(SECOND)
    assert (refused.reason, refused.handle) == ("queue_full", 0)
    assert latency(20) <= refused.retry_after_ns <= latency(20) + latency(8)
    house.until(house.driver.now + refused.retry_after_ns)
    assert house.ask(SECOND).handle


# -- those that were let in, and for which there was no time after all


class Stalling(House):
    """Some batches take longer than is known."""

    def __init__(self, driver: Driver, random: Random) -> None:
        super().__init__(driver)
        self.random = random

    def took(self, rows: int) -> int:
        return latency(rows) * self.random.choice([1, 1, 1, 4])


def test_after_the_time_it_was_told_a_request_that_was_given_up_is_let_in() -> None:
    tried = let_in = 0
    for seed in range(60):
        random = Random(seed)
        house = Stalling(learned(random.randint(1, 4)), random)
        budgets: dict[int, tuple[int, int]] = {}
        for user in range(400):
            house.until(house.driver.now + random.randint(0, 2 * MS))
            budget, rows = random.randint(10, 60) * MS, random.choice([1, 1, 1, 4])
            budgets[user] = budget, rows
            house.given_up.clear()
            house.ask(budget, rows=rows, user=user)
            house.step()
            if not house.given_up or random.random() < 0.5:
                continue
            told = random.choice(house.given_up)
            budget, rows = budgets[told.user]
            assert latency(rows) / 2 < told.retry_after_ns < SECOND, f"seed {seed}: {told}"
            house.until(house.driver.now + told.retry_after_ns)
            house.step()
            tried += 1
            budgets[1000 + user] = budget, rows
            let_in += house.ask(budget, rows=rows, user=1000 + user).handle != 0
        house.driver.engine.check_invariants()
    assert tried > 50
    assert let_in >= 0.9 * tried, f"{let_in} of {tried}"


def stalled(driver: Driver) -> House:
    """The one backend runs a batch, of 20 rows, that does not end in time."""
    house = House(driver)
    house.took = lambda rows: SECOND  # type: ignore[method-assign]
    wait_in(house, SECOND // 2, rows=20)
    return house


def wait_in(house: House, budget: int, **request: Any) -> None:
    """In its queue, where there is room."""
    assert house.ask(budget, **request).handle
    house.step()


def given_up(house: House, within: int) -> Answer:
    house.until(house.driver.now + within)
    (told,) = house.given_up
    return told


def test_what_a_batch_before_it_made_late_may_come_again() -> None:
    house = stalled(learned(staged_batches_max=0))
    budget = latency(20) + 2 * latency(1)
    wait_in(house, budget)
    told = given_up(house, SECOND // 4)
    assert told.queued_ns == budget, "nothing tells sooner that the batch takes longer"
    assert told.retry_after_ns == latency(1), "nothing else waits"


def test_what_is_behind_others_is_told_when_those_are_through() -> None:
    house = stalled(learned(staged_batches_max=0))
    budget = latency(20) + 2 * latency(1)
    wait_in(house, budget)
    for _ in range(40):
        wait_in(house, SECOND // 2)
    told = given_up(house, SECOND // 4)
    assert latency(40) - budget < told.retry_after_ns < 3 * latency(32)
    house.until(house.driver.now + SECOND)
    assert house.ask(budget).handle


def test_a_deadline_too_short_for_a_lone_request_is_told_no_time() -> None:
    """It was let in before anything was known."""
    house = House(Driver(rows_max=8, load_aware=True, staged_batches_max=0))
    house.took = lambda rows: SECOND  # type: ignore[method-assign]
    wait_in(house, SECOND // 2)
    wait_in(house, latency(1) - 1, user=1)
    wait_in(house, latency(1), user=2)
    house.driver.engine.prime_latency(0, 0, 1, latency(1), 20)
    house.until(house.driver.now + SECOND // 4)
    assert {told.user: told.retry_after_ns > 0 for told in house.given_up} == {1: False, 2: True}


@pytest.mark.parametrize(
    ("policy", "request_", "why"),
    [
        ({}, {"pinned_backend": 0}, "nothing is foreseen of what waits for one backend"),
        ({"sequence_idle_ns": SECOND}, {"sequence": 7, "start": True}, "nor of sequences"),
        ({"load_aware": False}, {}, "nor of models whose batches wait for a fixed time"),
    ],
)
def test_no_time_is_told_that_is_not_known(policy: Any, request_: Any, why: str) -> None:
    house = stalled(learned(staged_batches_max=0, **policy))
    wait_in(house, 50 * MS, **request_)
    assert given_up(house, SECOND // 4).retry_after_ns == 0, why
