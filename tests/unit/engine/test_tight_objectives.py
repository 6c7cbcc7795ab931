"""Objectives that are hardly longer than a batch of one row takes."""

from __future__ import annotations

import pytest

from scheduler._native.engine import Dispatch
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import (
    JUST_ENOUGH,
    Arrivals,
    Latency,
    Model,
    Scenario,
    engine,
    simulate,
)
from tests.unit.engine.driver import MS, SECOND, Driver

pytestmark = pytest.mark.native

SLO_MS = 40.0


def scenario(rate_per_s: float, executors: int, part: float) -> Scenario:
    """One row takes `part` of the objective, a row more a twentieth of that."""
    one_ms = part * SLO_MS
    model = Model(Latency(0.05 * one_ms, 0.95 * one_ms), SLO_MS, Arrivals(rate_per_s=rate_per_s))
    return Scenario([model], executors, seed=3, requests=10_000)


@pytest.mark.parametrize(
    ("executors", "part", "top_per_s"), [(8, 0.65, 2000), (8, 0.75, 1000), (4, 0.65, 700)]
)
def test_tight_objectives_are_met_as_by_one_who_knows_the_latencies(
    executors: int, part: float, top_per_s: float
) -> None:
    def goodput_of(policy: object) -> float:
        found = search(
            lambda rate: scenario(rate, executors, part),
            policy,  # type: ignore[arg-type]
            from_per_s=top_per_s,
            to_per_s=top_per_s / 20,
        )
        return found.per_s

    ours, theirs = goodput_of(engine()), goodput_of(JUST_ENOUGH)
    assert ours > 0.97 * theirs > 0
    overload = simulate(scenario(2 * ours, executors, part), engine())
    assert 2 * overload.attainment > 1.2


def test_a_load_that_batches_of_their_mean_time_carry_is_batched_so() -> None:
    """Two rows come within the objective on the average, though often not; one is too few."""
    model = Model(Latency(1.053, 15.072), 25, Arrivals(rate_per_s=300))
    outcome = simulate(Scenario([model], 4, seed=1, requests=20_000), engine())
    assert outcome.attainment > 0.99
    assert outcome.mean_batch > 1.7


@pytest.mark.parametrize(("rate_per_s", "late_max"), [(200, 12), (600, 30)])
def test_sizes_that_gain_nothing_are_tried_a_few_times(rate_per_s: float, late_max: int) -> None:
    """Two rows take as long as two batches. Every arrival is counted, the first ones too."""
    model = Model(Latency(26, 0.1), SLO_MS, Arrivals(rate_per_s=rate_per_s))
    outcome = simulate(Scenario([model], 8, seed=1, warm_up_ms=0, requests=10_000), engine())
    (only,) = outcome.models
    assert 0 < only.batched_rows - only.batches <= 20
    assert only.late <= late_max


def test_what_is_not_expected_by_its_deadline_runs_to_its_end_at_the_backend() -> None:
    """Were it cut at the deadline, nobody would learn how far the objective is from possible."""
    driver = Driver(rows_max=8, load_aware=True)
    for user in range(3):
        driver.submit(user, deadline=driver.now + 8 * MS)
        (batch,) = driver.step()
        assert batch.deadline_ns == driver.now + 8 * MS, "nothing is known"
        driver.after(8 * MS).fail(batch, "given_up", 4)
        driver.after(2 * SECOND).step()
    for user in range(3, 8):
        while not driver.engine.submit(driver.now, user=user, deadline=driver.now + 7 * MS).handle:
            driver.after(SECOND)
        (batch,) = driver.step()
        assert driver.now + 20 * MS < batch.deadline_ns < driver.now + SECOND
        driver.after(7 * MS).step()
        driver.after(6 * MS).complete(batch)
    assert driver.answers()[7] == ("expired", "expired_in_flight")
    assert [ns // MS for _, _, ns in driver.engine.latency_status(0, 0).sizes] == [13]
    driver.submit(9, deadline=driver.now + 20 * MS)
    (batch,) = driver.step()
    assert batch.deadline_ns == driver.now + 20 * MS


@pytest.mark.parametrize("early_ns", [0, MS // 2])
def test_an_impossible_objective_is_known_also_where_backends_end_calls_early(
    early_ns: int,
) -> None:
    driver = Driver(rows_max=8, load_aware=True)
    running: list[tuple[int, Dispatch, bool]] = []
    admitted = 0
    for user in range(1000):
        driver.after(5 * MS)
        while running and running[0][0] <= driver.now:
            at, batch, done = running.pop(0)
            if done:
                driver.engine.complete(batch.batch, at)
            else:
                driver.engine.dispatch_failed(batch.batch, "given_up", 4, at)
        asked = driver.engine.submit(driver.now, user=user, deadline=driver.now + 8 * MS)
        admitted += bool(asked.handle)
        for batch in driver.step():
            cut_at, done_at = batch.deadline_ns - early_ns, driver.now + 13 * MS
            running.append((min(cut_at, done_at), batch, done_at < cut_at))
    assert admitted < 40
    assert max(ns for _, _, ns in driver.engine.latency_status(0, 0).sizes) == 13 * MS


def test_a_batch_that_never_ends_is_not_waited_for_beyond_a_second() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    for rows in range(1, 9):
        driver.engine.prime_latency(0, 0, rows, 50 * MS, 20)
    waited_ns = []
    for user in range(20):
        while not driver.engine.submit(driver.now, user=user, deadline=driver.now + 30 * MS).handle:
            driver.after(SECOND // 10)
        (batch,) = driver.step()
        waited_ns.append(batch.deadline_ns - driver.now)
        driver.after(waited_ns[-1]).fail(batch, "given_up", 4)
        driver.after(2 * SECOND).step()
    assert waited_ns[0] > 50 * MS
    assert max(waited_ns) <= SECOND
