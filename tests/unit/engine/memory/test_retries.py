"""Requests that run out of device memory for what they are: what the others feel of it."""

from __future__ import annotations

import pytest

from scheduler._native.engine import OWN_EXECUTORS
from tests.unit.engine.driver import MS, Driver, users
from tests.unit.engine.memory.test_memory import MIB, Gpu

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
    driver.submit_many(range(90_000, 90_064))
    assert play(driver, set()) == [64]


@pytest.mark.parametrize("instances", [1, 4])
def test_batches_full_of_such_requests_do_not_cut_the_others(instances: int) -> None:
    driver = on_device(instances)
    for turn in range(20):
        poison = range(1000 * turn, 1000 * turn + 64 * instances)
        driver.submit_many(poison)
        sizes = play(driver, set(poison))
        # One after the other, as they are refused: each batch that fails cuts for a while.
        assert sizes[0] == 64
        assert {*driver.answers().values()} == {("failed", "device_memory")}
        assert cap(driver) == 0
    driver.submit_many(range(90_000, 90_064))
    assert play(driver, set()) == [64]


def test_batches_full_of_such_requests_cut_the_others_by_little_while_they_are_taken_apart() -> (
    None
):
    driver = on_device()
    driver.submit_many(range(64))
    caps = set()
    while batches := driver.step():
        for batch in batches:
            driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
            caps.add(cap(driver))
    assert caps == {51, 0}


def test_a_size_that_fails_twice_in_one_lineage_is_cut_on_every_backend() -> None:
    driver = Driver(
        [(b, 1, True, OWN_EXECUTORS, [b]) for b in range(2)], rows_max=64, load_aware=False
    )
    driver.submit_many(range(256))
    largest = []
    while batches := driver.step():
        largest.append(max(batch.rows for batch in batches))
        for batch in batches:
            if batch.rows > 10:
                driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
            else:
                driver.after(MS).complete(batch)
    assert set(driver.answers().values()) == {("completed", "none")}
    assert largest[-1] <= 13


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_small_one_alone_says_nothing_of_large_batches(rows: int) -> None:
    driver = on_device()
    driver.submit_many(range(64))
    play(driver, set())
    driver.submit(100, rows=rows)
    play(driver, {100})
    assert driver.answers()[100] == ("failed", "device_memory")
    assert cap(driver) == 0


def test_a_size_that_is_too_large_is_cut_once_and_again_when_both_halves_fail_but_not_theirs() -> (
    None
):
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
    assert caps == [51, 51, 51, 25, 25, 25, 25]


def test_a_batch_beyond_the_cap_that_ends_well_lifts_it() -> None:
    driver = on_device(instances=2)
    driver.submit_many(range(128))
    first, second = driver.step()
    driver.after(MS).fail(first, "out_of_memory", INTERNAL)
    assert cap(driver) == 51
    driver.after(MS).complete(second)
    assert cap(driver) == 64


@pytest.mark.parametrize("instances", [1, 2])
def test_what_another_tenant_took_meanwhile_does_not_cut_the_halves_to_single_rows(
    instances: int,
) -> None:
    gpu = Gpu(instances)
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.submit_many(range(10))
    (batch,) = gpu.step()
    assert batch.rows == 10
    gpu.after(MS).read(free=500 * MIB)
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    assert play(gpu, set()) == [5, 5]
