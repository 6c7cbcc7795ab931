"""How many rows a batch waits for while an executor is free."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from tests.unit.engine.loaded import OBJECTIVE, QUICK, RATE, SLOW, Loaded, sent

pytestmark = pytest.mark.native

ZIPF = [1 / (i + 1) ** 0.9 for i in range(10)]


@pytest.mark.parametrize(
    ("latency", "objective_ms", "executors", "rates", "least"),
    [
        pytest.param(Latency(1.053, 5.9), 25, 4, [2375.0], 0.9893, id="one model"),
        pytest.param(
            Latency(1.053, 5.072), 50, 8, [5700 * p / sum(ZIPF) for p in ZIPF], 0.988, id="uneven"
        ),
        pytest.param(Latency(5, 1), 50, 8, [385.0] * 4, 0.98, id="batches gain little"),
    ],
)
def test_in_time_near_the_most_there_is_room_for(
    latency: Latency, objective_ms: float, executors: int, rates: list[float], least: float
) -> None:
    """.988, .986 and .973 where as many rows are awaited as the mean load asks of a batch."""
    models = [Model(latency, objective_ms, Arrivals(rate_per_s=rate)) for rate in rates]
    in_time = [
        simulate(Scenario(models, executors, requests=40_000, seed=seed), engine()).attainment
        for seed in (1, 2, 3, 4)
    ]
    assert mean(in_time) > least


def test_a_lone_model_of_two_signatures_has_rows_to_spare_as_well() -> None:
    """.991 where each signature waits for no more rows than the mean load asks of a batch."""
    places = tuple(Placement(backend) for backend in range(8))
    setup = ModelSetup(places, (RequestClass(signatures=2),), slo_ms=25)
    model = Model(Latency(1.053, 5.072), 25, Arrivals(rate_per_s=5200))
    in_time = [
        simulate(
            Scenario([model], 8, requests=40_000, seed=seed),
            engine(EngineSettings(models=(setup,))),
        ).attainment
        for seed in (1, 2, 3, 4)
    ]
    assert mean(in_time) > 0.9925


def test_a_request_of_another_model_now_and_then_takes_little_from_a_lone_one() -> None:
    """1.4 times as many late as without it where it ends the waiting for rows to spare."""
    lone = Model(Latency(1.053, 5.072), 25, Arrivals(rate_per_s=2520))
    stray = replace(lone, arrivals=Arrivals(rate_per_s=1))

    def late(models: list[Model]) -> float:
        runs = [Scenario(models, 4, requests=60_000, seed=seed) for seed in (1, 2, 3, 4, 5)]
        return mean(1 - simulate(run, engine()).in_time_share for run in runs)

    assert late([lone, stray]) < 1.2 * late([lone])


def test_a_few_requests_that_cannot_wait_for_large_batches_keep_them_small() -> None:
    """.61 in time where they do not count, being few, and nothing gained for the others."""
    large = Model(Latency(0.5, 5), 100, Arrivals(rate_per_s=1384))
    urgent = Model(Latency(0.5, 2), 15, Arrivals(rate_per_s=11.85))
    worlds = [
        Scenario([large, urgent], 1, requests=20_938, noise_sigma=0.05, seed=seed)
        for seed in range(1, 11)
    ]
    runs = [simulate(world, engine(EngineSettings(rows_max=64))).models for world in worlds]
    assert mean(few.attainment for _, few in runs) > 0.63
    assert min(many.attainment for many, _ in runs) > 0.999


@pytest.mark.parametrize(("latency", "executors"), [(Latency(5, 1), 8), (Latency(5, 1), 10)])
def test_a_lone_model_waits_for_what_overload_asks_for(latency: Latency, executors: int) -> None:
    """Beyond the goodput by a fifth. .79 and .81 with batches of five rows."""
    models = [Model(latency, 50, Arrivals(rate_per_s=234.0 * executors))]
    in_time = [
        simulate(Scenario(models, executors, requests=20_000, seed=seed), engine()).attainment
        for seed in (1, 2, 3)
    ]
    assert mean(in_time) > 0.82


@pytest.mark.parametrize(("per_s", "goes"), [(RATE[QUICK], []), (60, [(QUICK, 1)])])
def test_rows_that_come_too_seldom_are_not_awaited(
    per_s: float, goes: list[tuple[int, int]]
) -> None:
    """The slow model keeps the executor busy: quick batches of several rows would be wanted."""
    loaded = Loaded((QUICK, SLOW), 1, shared=True)
    loaded.warm(
        [
            (per_s, {"model": QUICK, "budget": OBJECTIVE[QUICK]}),
            (2 * RATE[SLOW], {"model": SLOW, "budget": OBJECTIVE[SLOW]}),
        ]
    )
    loaded.submit(1, OBJECTIVE[QUICK], model=QUICK)
    assert sent(loaded.run()) == goes
