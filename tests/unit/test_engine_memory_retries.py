"""Requests that run out of device memory for what they are: what the others feel of it."""

from __future__ import annotations

import pytest

from scheduler._native.engine import OWN_EXECUTORS
from tests.unit.engine_driver import MS, Driver, users

INTERNAL = 13


def play(driver: Driver, poison: set[int]) -> list[int]:
    """Plays a device on which these requests run out of memory, whatever the size."""
    sizes = []
    while batches := driver.step():
        for batch in batches:
            sizes.append(batch.rows)
            if poison & set(users(batch)):
                driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
            else:
                driver.after(MS).complete(batch)
    return sizes


def on_device(instances: int = 1, **policy: object) -> Driver:
    return Driver(
        [(0, instances, True, OWN_EXECUTORS, [0])],
        **{"rows_max": 64, "load_aware": False, **policy},
    )


def cap(driver: Driver) -> int:
    return driver.engine.memory_status(0, 0).rows_cap


@pytest.mark.parametrize("poison", [{37}, {0}, {63}, {8, 9}, {4, 5, 6, 7}, {3, 40}])
def test_a_request_that_runs_out_in_any_company_does_not_cut_the_others(poison: set[int]) -> None:
    driver = on_device()
    driver.submit_many(range(64))
    play(driver, poison)
    assert cap(driver) == 0
    failed = {user for user, (outcome, _) in driver.answers().items() if outcome == "failed"}
    assert failed == poison
    driver.submit_many(range(100, 164))
    assert play(driver, set()) == [64]


def test_such_requests_again_and_again_do_not_wear_the_batches_down() -> None:
    driver = on_device()
    for turn in range(20):
        first = 100 * turn
        driver.submit_many(range(first, first + 64))
        play(driver, {first + 17})
    driver.submit_many(range(10_000, 10_064))
    assert play(driver, set()) == [64]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_small_one_alone_says_nothing_of_large_batches(rows: int) -> None:
    driver = on_device()
    driver.submit_many(range(64))
    play(driver, set())
    driver.submit(100, rows=rows)
    play(driver, {100})
    assert driver.answers()[100] == ("failed", "device_memory")
    assert cap(driver) == 0


def test_a_size_that_is_too_large_is_cut_once_and_again_when_both_halves_fail() -> None:
    driver = on_device()
    driver.submit_many(range(64))
    caps = []
    while batches := driver.step():
        for batch in batches:
            if batch.rows > 20:
                driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
            else:
                driver.after(MS).complete(batch)
            caps.append(cap(driver))
    assert caps == [51, 51, 25, 25, 25, 25, 25]


def test_a_batch_beyond_the_cap_that_ends_well_lifts_it() -> None:
    driver = on_device(instances=2)
    driver.submit_many(range(128))
    first, second = driver.step()
    driver.after(MS).fail(first, "out_of_memory", INTERNAL)
    assert cap(driver) == 51
    driver.after(MS).complete(second)
    assert cap(driver) == 64
