"""Clients that send their next request when they have an answer: nothing comes meanwhile."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest

from scheduler._native.engine import Answer, Dispatch
from tests.unit.engine.driver import MS, SECOND
from tests.unit.engine.load import latency, learned

pytestmark = pytest.mark.native


def answers_per_s(clients: int, backends: int, slo: int) -> float:
    """Two seconds of one row a request; every backend runs one batch after the other."""
    driver = learned(backends)
    ends = driver.now + 2 * SECOND
    free: Counter[int] = Counter()
    events: list[tuple[int, int, int]] = [(driver.now + i * 1000, i, 0) for i in range(clients)]
    number, answered, wake = clients, 0, 1 << 62
    while min(events[0][0] if events else 1 << 62, wake) <= ends:
        driver.now = max(driver.now, min(events[0][0] if events else 1 << 62, wake))
        while events and events[0][0] <= driver.now:
            _, user, batch = heapq.heappop(events)
            if batch:
                driver.engine.complete(batch, driver.now)
            else:
                driver.submit(user, deadline=driver.now + slo)
        driver.engine.step(driver.now)
        wake = 1 << 62 if wake <= driver.now else wake
        for action in driver.engine.take_actions():
            number += 1
            if isinstance(action, Dispatch):
                begins = max(free[action.backend], driver.now)
                free[action.backend] = begins + latency(action.rows)
                heapq.heappush(events, (free[action.backend], number, action.batch))
            elif isinstance(action, Answer):
                assert action.outcome == "completed"
                answered += 1
                heapq.heappush(events, (driver.now, number, 0))
            else:
                wake = action.at
    return answered / 2


@pytest.mark.parametrize("slo", [100 * MS, SECOND])
@pytest.mark.parametrize(("clients", "backends"), [(4, 4), (8, 4), (16, 2), (16, 4), (32, 4)])
def test_all_backends_work_for_clients_that_wait(clients: int, backends: int, slo: int) -> None:
    evenly = clients / latency(clients // backends) * SECOND
    assert answers_per_s(clients, backends, slo) > 0.85 * evenly


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_as_many_clients_as_backends_wait_for_nobody(count: int) -> None:
    assert answers_per_s(count, count, 100 * MS) > 0.95 * count * SECOND / latency(1)


def test_one_client_waits_for_nobody() -> None:
    assert answers_per_s(1, 2, SECOND) > 0.99 * SECOND / latency(1)
