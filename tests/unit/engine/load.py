"""A model of known latency under open load, for the tests of admission."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from scheduler._native.engine import Answer, Dispatch
from tests.unit.engine.driver import MS, SECOND, Driver

ALPHA, BETA = 1 * MS, 5 * MS
Factors = Mapping[int, int]  # of what batches take, by backend
NO_FACTORS: Factors = {}


def latency(rows: int) -> int:
    return ALPHA * rows + BETA


def learned(backends: int = 1, factors: Factors = NO_FACTORS, **policy: Any) -> Driver:
    """Backends of which it is known how long batches of 1 to 32 rows take."""
    driver = Driver(backends, **{"rows_max": 32, "load_aware": True} | policy)
    for backend in range(backends):
        for rows in range(1, 33):
            assert driver.engine.prime_latency(
                0, backend, rows, latency(rows) * factors.get(backend, 1), 20
            )
    driver.step()
    return driver


@dataclass
class Stream:
    """Requests at even distances; `counts` says how they ended, by outcome or reason."""

    per_s: float
    request: dict[str, Any]
    budget: int = 0  # from arrival to deadline; 0: none
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def in_time(self) -> float:
        return self.counts["in_time"] / max(sum(self.counts.values()), 1)


def run(
    driver: Driver,
    streams: Sequence[Stream],
    duration: int,
    sigma: float = 0,
    factors: Factors = NO_FACTORS,
    stalls: Callable[[int], float] = lambda rows: 1,
) -> None:
    """Every batch takes its latency, one after the other on a backend. Ends with an empty house.

    `stalls`: how many times as long the next batch takes, by its rows. `sigma`: the deviation of
    the logarithm of a factor on each. Without it backends fall into step, and who comes when they
    all become free gets what he wants.
    """
    random = Random(1)
    start = driver.now
    users: dict[int, tuple[Stream, int]] = {}
    events: list[tuple[int, int, Any]] = []
    number = 0
    for index, stream in enumerate(streams):
        heapq.heappush(events, (start + index * 1000, -1 - index, stream))
    free = {backend: start for backend, *_ in driver.placements}
    wake = 1 << 62
    while events or driver.engine.requests_inflight:
        due = min(events[0][0] if events else 1 << 62, wake)
        driver.now = max(driver.now, due)
        while events and events[0][0] <= driver.now:
            at, kind, what = heapq.heappop(events)
            if kind >= 0:
                driver.engine.complete(what, driver.now)
                continue
            number += 1
            request = dict(what.request)
            if what.budget:
                request["deadline"] = driver.now + what.budget
            admitted = driver.engine.submit(driver.now, user=number, **request)
            if admitted.handle:
                users[number] = (what, request.get("deadline", 1 << 62))
            else:
                what.counts[admitted.reason] += 1
            if at + SECOND / what.per_s < start + duration:
                heapq.heappush(events, (round(at + SECOND / what.per_s), kind, what))
        driver.engine.step(driver.now)
        wake = 1 << 62 if wake <= driver.now else wake
        for action in driver.engine.take_actions():
            if isinstance(action, Dispatch):
                begins = max(free[action.backend], driver.now)
                takes = latency(action.rows) * math.exp(sigma * random.gauss(0, 1))
                takes *= factors.get(action.backend, 1) * stalls(action.rows)
                free[action.backend] = begins + round(takes)
                heapq.heappush(events, (free[action.backend], number, action.batch))
                number += 1
            elif isinstance(action, Answer):
                stream, deadline = users.pop(action.user)
                in_time = action.outcome == "completed" and driver.now <= deadline
                stream.counts["in_time" if in_time else action.reason] += 1
            else:
                wake = action.at
    driver.engine.check_invariants()
