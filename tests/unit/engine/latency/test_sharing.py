"""Backends that take the same time learn together; one that differs learns apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from scheduler._native.engine import Engine
from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from scheduler.simulation.workloads import WORKLOADS
from tests.unit.engine.driver import MS, Driver, users

pytestmark = pytest.mark.native

BACKENDS = 4
SIGMA = 0.1


def run(driver: Driver, batches: int, factor: Callable[[int], float], seed: int = 1) -> None:
    """Single requests, the backends in turn; each takes 10 ms times its factor and noise."""
    random = Random(seed)
    for batch_number in range(batches):
        backend = batch_number % BACKENDS
        driver.submit(batch_number, pinned_backend=backend, deadline=driver.now + 1000 * MS)
        (batch,) = driver.step()
        assert batch.backend == backend
        ran = 10 * MS * factor(backend) * math.exp(SIGMA * random.gauss(0, 1))
        driver.after(round(ran)).complete(batch)


def expected(driver: Driver, backend: int) -> float:
    """Of a batch of one row, in ms; as the engine would tell it of this backend."""
    times = {rows: ns for rows, _, ns in driver.engine.latency_status(0, backend).sizes}
    return times[1] / MS


def one_after_the_other(driver: Driver, backend: int, batches: int, ran: int) -> None:
    for user in range(batches):
        driver.submit(user, pinned_backend=backend, deadline=driver.now + 1000 * MS)
        (batch,) = driver.step()
        driver.after(ran).complete(batch)


def fresh() -> Driver:
    return Driver(backends=BACKENDS, rows_max=8, load_aware=True)


def test_what_one_backend_ran_is_known_of_those_like_it() -> None:
    driver = fresh()
    one_after_the_other(driver, 0, 20, 10 * MS)
    assert driver.engine.latency_status(0, 0).observations == 20
    status = driver.engine.latency_status(0, 3)
    assert status.known
    assert status.observations == 0
    assert expected(driver, 3) == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_a_new_backend_that_is_slower_leaves_the_others_alone(batches: int) -> None:
    driver = fresh()
    one_after_the_other(driver, 0, batches, 10 * MS)
    for backend, ran in ((1, 100 * MS), (0, 10 * MS), (1, 100 * MS), (0, 10 * MS), (1, 100 * MS)):
        one_after_the_other(driver, backend, 3, ran)
    assert expected(driver, 0) == pytest.approx(10, rel=0.01)
    assert expected(driver, 1) == pytest.approx(100, rel=0.01)
    assert driver.engine.latency_status(0, 0).margin < 1.3


def test_a_reply_after_all_placements_are_gone_leaves_what_the_others_learned() -> None:
    driver = fresh()
    one_after_the_other(driver, 0, 20, 10 * MS)
    one_after_the_other(driver, 1, 20, 100 * MS)
    driver.submit(20, pinned_backend=1)
    (batch,) = driver.step()
    told = expected(driver, 0)
    placements = driver.placements
    driver.configure([])
    driver.after(100 * MS).complete(batch)
    driver.configure(placements)
    assert expected(driver, 0) == told


def test_a_cold_start_on_unequal_backends_loses_little() -> None:
    """Of the first five seconds; it was a sixth of the requests while all were taken for one."""
    setup = ModelSetup(tuple(Placement(backend, 1) for backend in range(4)), slo_ms=60, rows_max=64)
    model = Model(Latency(1.053, 5.072), 60, Arrivals(rate_per_s=1500))
    scenario = Scenario([model], 4, seed=1, requests=7500, noise_sigma=0.05, warm_up_ms=0)
    settings = EngineSettings(models=(setup,), speeds=(1, 1, 0.3, 0.3))
    assert simulate(scenario, engine(settings)).attainment >= 0.98


@pytest.mark.parametrize("factor", [0.5, 1.3, 2.0, 4.0])
def test_a_backend_that_changes_learns_apart_and_comes_back(factor: float) -> None:
    driver = fresh()
    run(driver, 400, lambda backend: 1)
    run(driver, 400, lambda backend: factor if backend == 2 else 1, seed=2)
    assert expected(driver, 2) == pytest.approx(10 * factor, rel=0.08)
    assert expected(driver, 1) == pytest.approx(10, rel=0.08)
    assert driver.engine.latency_status(0, 2).sizes[0][1] <= 100
    run(driver, 1600, lambda backend: 1, seed=3)
    assert {expected(driver, backend) for backend in range(BACKENDS)} == {expected(driver, 0)}


def test_two_kinds_of_backends_are_told_apart_from_the_start() -> None:
    driver = fresh()
    run(driver, 1200, lambda backend: 2 if backend % 2 else 1)
    for backend in range(BACKENDS):
        kind = 2 if backend % 2 else 1
        assert expected(driver, backend) == pytest.approx(10 * kind, rel=0.08)
        margin = driver.engine.latency_status(0, backend).margin
        assert margin < 1.6


def test_chance_sets_nobody_apart() -> None:
    for seed in range(3):
        driver = fresh()
        run(driver, 3000, lambda backend: 1, seed=seed)
        told = [driver.engine.latency_status(0, backend) for backend in range(BACKENDS)]
        assert {each.observations for each in told} == {3000 / BACKENDS}
        # All but what each ran before it was known to be like the others.
        ((_, batches, _),) = told[0].sizes
        assert 3000 - 8 * BACKENDS <= batches < 3000, seed
        assert all(each.sizes == told[0].sizes for each in told), seed


def test_what_is_said_of_a_backend_before_it_ran_holds_for_it_alone() -> None:
    driver = fresh()
    for rows in (1, 2, 4, 8):
        for backend in range(BACKENDS - 1):
            mean = round((5 + rows) * MS * (3 if backend == 2 else 1))
            assert driver.engine.prime_latency(0, backend, rows, mean, 10)
    told = [driver.engine.latency_status(0, backend) for backend in range(BACKENDS)]
    assert told[0].alpha_ns == told[1].alpha_ns == pytest.approx(MS, rel=0.01)
    assert told[2].alpha_ns == pytest.approx(3 * MS, rel=0.01)
    # Of the last one nothing is said: it may be as fast as the fastest.
    assert told[3].alpha_ns == told[0].alpha_ns
    assert not driver.engine.prime_latency(0, 0, 16, 3601 * 1_000_000_000, 10)


def test_a_size_that_is_said_of_one_backend_is_not_said_of_another() -> None:
    driver = fresh()
    for rows in (1, 2, 4):
        assert driver.engine.prime_latency(0, 0, rows, (5 + rows) * MS, 1000)
    assert driver.engine.prime_latency(0, 1, 8, 1300 * MS, 1000)
    assert driver.engine.latency_status(0, 0).alpha_ns == pytest.approx(MS, rel=0.01)
    assert driver.engine.latency_status(0, 0).beta_ns == pytest.approx(5 * MS, rel=0.01)


def test_a_profile_of_a_new_backend_that_is_unlike_those_that_ran_is_taken() -> None:
    driver = fresh()
    one_after_the_other(driver, 0, 100, 10 * MS)
    for rows in (1, 2, 4, 8):
        assert driver.engine.prime_latency(0, 1, rows, (50 + 50 * rows) * MS, 1000)
        assert driver.engine.prime_latency(0, 0, rows, (50 + 50 * rows) * MS, 1000)
    status = driver.engine.latency_status(0, 1)
    assert status.alpha_ns == pytest.approx(50 * MS, rel=0.01)
    assert status.beta_ns == pytest.approx(50 * MS, rel=0.01)
    assert expected(driver, 0) == pytest.approx(10, rel=0.01)
    # One that is like them adds nothing.
    assert driver.engine.prime_latency(0, 2, 1, 11 * MS, 1000)
    assert expected(driver, 2) == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("order", [(1, 8), (8, 1)])
def test_of_a_new_backend_all_that_is_said_counts(order: tuple[int, int]) -> None:
    """That one row takes as long as on the others, too."""
    driver = fresh()
    for user in range(100):
        rows = 1 if user % 2 else 8
        driver.after(1000 * MS).step()  # light load
        driver.submit(user, rows=rows, pinned_backend=0, deadline=driver.now + 1000 * MS)
        (batch,) = driver.step()
        driver.after((9 + rows) * MS).complete(batch)
    said = {1: 10 * MS, 8: 60 * MS}
    for rows in order:
        assert driver.engine.prime_latency(0, 1, rows, said[rows], 1000)
    status = driver.engine.latency_status(0, 1)
    assert status.alpha_ns + status.beta_ns == pytest.approx(10 * MS, rel=0.02)
    assert 8 * status.alpha_ns + status.beta_ns == pytest.approx(60 * MS, rel=0.02)
    assert expected(driver, 0) == pytest.approx(10, rel=0.01)


def test_an_engine_with_a_backend_apart_is_loaded_as_it_was_saved() -> None:
    driver = fresh()
    run(driver, 600, lambda backend: 2 if backend == 2 else 1)
    saved = driver.engine.save()
    loaded = Driver(backends=BACKENDS, rows_max=8, load_aware=True)
    loaded.engine = Engine()
    assert loaded.engine.load(saved)
    loaded.now = driver.now
    assert loaded.engine.save() == saved
    for each in (driver, loaded):
        run(each, 400, lambda backend: 1, seed=5)
    assert loaded.engine.save() == driver.engine.save()


def test_noise_costs_little() -> None:
    """Nine tenths of the goodput without noise."""
    scenario = WORKLOADS["C"].scenario(2450, seed=1, requests=50_000)
    assert simulate(replace(scenario, noise_sigma=SIGMA), engine()).attainment >= 0.987


def test_a_part_of_the_batches_beyond_their_bound_is_what_the_objective_allows() -> None:
    driver = fresh()
    run(driver, 3000, lambda backend: 1)
    status = driver.engine.latency_status(0, 0)
    # The 97 % quantile: of a batch beyond its bound, only a part is late.
    assert status.margin == pytest.approx(math.exp(1.88 * SIGMA), rel=0.05)
    assert 0.02 < status.beyond_margin < 0.04


def test_what_is_left_out_of_a_removed_model_starts_without_its_fastest_backend() -> None:
    driver = Driver(2, rows_max=8, load_aware=True, cancellable=True)
    for rows in range(1, 9):
        for backend, factor in ((0, 2), (1, 1)):
            assert driver.engine.prime_latency(0, backend, rows, 2 * MS * factor, 20)
    one_after_the_other(driver, 0, 2, 4 * MS)
    much = driver.now + 1000 * MS
    driver.submit(10, rows=24, pinned_backend=0, deadline=much)
    (running,) = driver.step()
    driver.submit(11, rows=8, pinned_backend=0, deadline=much - 500 * MS)
    (staged,) = driver.after(3 * MS).step()
    assert users(running) == [10]
    assert users(staged) == [11]
    # The fastest one is gone at once, the other one when its last batch is back.
    driver.configure([], in_use=False)
    driver.step()
    assert driver.abandoned() == [running.batch]
    driver.complete(staged)
    assert driver.answers()[11] == ("completed", "none")
