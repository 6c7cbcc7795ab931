"""Requests of which no two may share a batch: what they cost grows with their number, no faster."""

from __future__ import annotations

import time

from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import learned
from tests.unit.engine.test_state import loaded_driver

METERED_MAX = 1024


def flooded(count: int, **request: int) -> tuple[Driver, float]:
    """A driver with so many groups of one request each, and the time that it took."""
    driver = learned(queue_requests_max=count + 100)
    started = time.thread_time()
    for number in range(count):
        driver.submit(number, signature=2 + number, deadline=driver.now + 60 * SECOND, **request)
    return driver, time.thread_time() - started


def step_s(driver: Driver) -> float:
    started = time.thread_time()
    driver.engine.step(driver.now)
    spent_s = time.thread_time() - started
    driver.engine.take_actions()
    return spent_s


def test_groups_that_come_together_are_planned_as_fast_as_they_came() -> None:
    driver, submitted_s = flooded(8000)
    assert step_s(driver) < 3 * submitted_s


def test_so_many_groups_are_metered() -> None:
    driver, _ = flooded(3 * METERED_MAX)
    driver.step()
    driver.after(100 * MS).step()
    # Of one row in a tick each.
    assert driver.engine.latency_status(0, 0).rate_per_s == 10 * METERED_MAX


def test_others_are_metered_once_a_flood_is_over() -> None:
    driver, _ = flooded(3 * METERED_MAX)
    driver.engine.fail_all("draining", driver.now)
    driver.step()
    driver.submit(signature=1, rows=3, deadline=driver.now + SECOND)
    for _ in range(2):
        driver.after(100 * MS).step()
    assert driver.engine.latency_status(0, 0).rate_per_s >= 3


def test_a_flood_that_is_over_costs_nothing() -> None:
    def ticks_s(driver: Driver) -> float:
        spent_s = 0.0
        for _ in range(200):
            driver.after(100 * MS)
            driver.engine.submit(driver.now, signature=1, deadline=driver.now + 10 * SECOND)
            spent_s += step_s(driver)
        return spent_s

    quiet, _ = flooded(1)
    driver, _ = flooded(10_000)
    driver.step()
    driver.engine.fail_all("draining", driver.now)
    driver.step()
    assert ticks_s(driver) < 5 * ticks_s(quiet)


def test_a_loaded_engine_meters_the_same_groups() -> None:
    driver, _ = flooded(METERED_MAX - 10)
    for batch in driver.step():
        driver.after(MS).complete(batch)
    twin = loaded_driver(driver)
    driver.actions.clear()
    for engine_driver in (driver, twin):
        for number in range(30):
            engine_driver.submit(10_000 + number, signature=50_000 + number, deadline=90 * SECOND)
        for _ in range(5):
            for batch in engine_driver.after(100 * MS).step():
                engine_driver.complete(batch)
    assert driver.actions == twin.actions
    assert driver.engine.latency_status(0, 0) == twin.engine.latency_status(0, 0)
    assert driver.engine.save() == twin.engine.save()
