"""What priority levels ask for beyond the model's own settings."""

from __future__ import annotations

from scheduler._native.engine import Level
from tests.unit.engine.driver import MS, Driver, users


def expiry(driver: Driver, **request: int) -> str:
    """How a request that no backend ever answers ends 10 ms after its arrival."""
    driver.submit(7, **request)
    driver.step()
    driver.after(10 * MS).step()
    return driver.answers().get(7, ("waits", ""))[0]


def test_a_level_has_the_objective_of_the_model_or_its_own() -> None:
    levels = [Level(slo_ns=10 * MS), Level()]
    policy = {"priority_levels": 3, "levels": levels, "slo_ns": 20 * MS}
    assert expiry(Driver(**policy), priority=1) == "expired"
    assert expiry(Driver(**policy), priority=2) == "waits"
    # A level that nothing is said of is as the model.
    driver = Driver(**policy)
    assert expiry(driver, priority=3) == "waits"
    driver.after(10 * MS).step()
    assert driver.answers()[7] == ("expired", "expired_in_flight")


def test_the_earliest_of_deadline_and_objective_of_the_level_holds() -> None:
    levels = [Level(slo_ns=10 * MS)]
    early = Driver(levels=levels)
    assert expiry(early, deadline=early.now + 5 * MS) == "expired"
    late = Driver(levels=levels)
    assert expiry(late, deadline=late.now + 50 * MS) == "expired"


def test_best_effort_has_no_objective_but_the_deadline_of_its_client() -> None:
    best_effort = Level(slo_ns=5 * MS, best_effort=True)
    assert expiry(Driver(slo_ns=5 * MS, levels=[best_effort])) == "waits"
    driver = Driver(slo_ns=5 * MS, levels=[best_effort])
    assert expiry(driver, deadline=driver.now + 10 * MS) == "expired"


def test_best_effort_is_served_after_every_level_with_an_objective() -> None:
    levels = [Level(best_effort=True), Level(), Level(slo_ns=500 * MS)]
    driver = Driver(priority_levels=3, levels=levels, staged_batches_max=0)
    for priority in (1, 2, 3):
        driver.submit(priority, priority=priority, deadline=driver.now + 900 * MS)
    order = []
    for _ in range(3):
        (batch,) = driver.step()
        order += users(batch)
        driver.complete(batch)
    assert order == [2, 3, 1]


def test_objectives_are_counted_by_level() -> None:
    driver = Driver(
        priority_levels=3,
        slo_ns=10 * MS,
        rows_max=1,
        levels=[Level(), Level(), Level(best_effort=True)],
    )
    driver.submit(1, priority=1)
    driver.submit(2, priority=2)
    driver.submit(3, priority=3)
    for _ in range(3):
        for batch in driver.step():
            driver.after(6 * MS).complete(batch)
    assert driver.engine.counters(0)["levels"] == {1: (1, 1), 2: (1, 0)}
