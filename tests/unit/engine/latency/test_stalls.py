"""Stalls, and speeds that come and go: a host that others use, a device that throttles.

Every one of them is a drift for the latency model, which then says of sizes that are not seen what
it saw of others. However often that happens, no error of it may add up.
"""

from __future__ import annotations

import math
from random import Random

import pytest

from scheduler._native.latency import LatencyModel
from tests.unit.engine.driver import MS, SECOND, Driver

SIZES = (1, 2, 4, 5, 8, 16, 28, 64)


def quiet_ns(rows: int) -> float:
    return 100_000 + 60_000 * rows


def usual_rows(random: Random) -> int:
    """Mostly 4, often 1, now and then any."""
    if random.random() < 0.7:
        return 4
    return 1 if random.random() < 0.4 else 2 + int(random.expovariate(1 / 8))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("switches", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("factor", [4, 12, 40])
def test_two_speeds_that_take_turns_are_the_bounds_of_what_is_expected(
    factor: float, switches: float, seed: int
) -> None:
    random = Random(seed)
    model = LatencyModel()
    slow = False
    expected: list[float] = []
    for number in range(6000):
        slow ^= random.random() < switches
        rows = usual_rows(random)
        ran_ns = quiet_ns(rows) * math.exp(random.gauss(0, 0.4)) * (factor if slow else 1)
        model.observe(rows, round(ran_ns * (50 if random.random() < 0.005 else 1)))
        if number > 100 and number % 7 == 0:
            expected += [model.expected(b) / quiet_ns(b) for b in SIZES]
    assert model.accuracy.drifts > 0
    expected.sort()
    # Twice that where a model may pad, and noise. For some batches of a size that became known
    # while the speed changed, it is counted twice.
    assert expected[int(0.99 * len(expected))] < 3.5 * factor
    assert max(expected) < 3 * factor**2
    assert expected[int(0.01 * len(expected))] > 0.02


@pytest.mark.parametrize("stalled", [3, 4, 5, 6, 8])
def test_stalls_leave_nothing_behind(stalled: int) -> None:
    random = Random(stalled)

    def observe(rows: int, count: int, factor: float = 1) -> None:
        for _ in range(count):
            noise = math.exp(random.gauss(0, 0.1))
            model.observe(rows, round(quiet_ns(rows) * noise * factor))

    model = LatencyModel()
    for rows in SIZES:
        observe(rows, 20)
    for _ in range(40):
        observe(1, stalled, factor=100)
        observe(1, 100)
        for rows in SIZES:
            assert quiet_ns(rows) / 4 < model.expected(rows) < 4 * quiet_ns(rows)


@pytest.mark.parametrize("rows", [1, 4])
def test_after_stalls_nothing_is_refused_by_an_idle_backend(rows: int) -> None:
    driver = Driver(1, rows_max=64, load_aware=True)
    numbers = iter(range(100_000))

    def run(rows: int, ran_ns: float) -> None:
        deadline = driver.now + 30 * SECOND
        driver.submit(next(numbers), rows=rows, deadline=deadline)
        batches = driver.step()
        while not batches:
            driver.now = max(driver.now + 1, driver.wakes()[-1])
            assert driver.now < deadline
            batches = driver.step()
        driver.after(round(ran_ns)).complete(batches[0])
        driver.after(20 * MS).step()

    for _ in range(20):
        for size in SIZES:
            run(size, quiet_ns(size))
    for _ in range(8):
        for _ in range(4):
            run(1, 150 * MS)
        for _ in range(100):
            run(1, quiet_ns(1))
        run(rows, quiet_ns(rows))
