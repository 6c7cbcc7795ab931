"""A refused request that comes again after the time it was told is let in, if nothing else came."""

from __future__ import annotations

import heapq
from random import Random

import pytest

from scheduler._native.engine import Admitted, Dispatch
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

    def step(self) -> None:
        self.driver.engine.step(self.driver.now)
        for action in self.driver.engine.take_actions():
            if isinstance(action, Dispatch):
                begins = max(self.free[action.backend], self.driver.now)
                self.free[action.backend] = begins + latency(action.rows)
                heapq.heappush(self.ends, (self.free[action.backend], action.batch))
            elif hasattr(action, "at") and not hasattr(action, "outcome"):
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
