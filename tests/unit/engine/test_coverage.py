"""Stalls of a host that lengthen more batches than may be late: most requests are in time still."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest

from scheduler.simulation.engine import (
    EngineSettings,
    Fault,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import Arrivals, Latency, Model, Outcome, Scenario, engine
from scheduler.simulation.scenario import simulate as simulated

pytestmark = pytest.mark.native

SLO_MS = 25.0
FROM_MS, SECONDS = 3000.0, 12


def stalled(
    rate: float, every_ms: float, for_ms: float, factor: float, until_ms: float, seed: int = 1
) -> Outcome:
    """Four instances; what starts in a stall takes `factor` times as long."""
    random = Random(seed)
    faults = []
    at = FROM_MS
    while at < until_ms:
        at += random.expovariate(1 / every_ms)
        end = at + random.expovariate(1 / for_ms)
        faults.append(Fault("slow", at, end, factor=factor))
        at = end
    model = Model(Latency(1.053, 5.9), SLO_MS, Arrivals(rate_per_s=rate))
    requests = int(rate * SECONDS)
    scenario = Scenario(
        [model], 1, seed=seed, requests=requests, noise_sigma=0.03, interval_ms=1000.0
    )
    setup = ModelSetup((Placement(0, 4),), slo_ms=SLO_MS)
    return simulated(scenario, engine(EngineSettings(models=(setup,), faults=tuple(faults))))


@pytest.mark.parametrize(
    ("rate", "least"),
    [
        pytest.param(600, 0.85, id="a quarter of what there is room for"),
        pytest.param(1200, 0.84, id="half"),
        pytest.param(2100, 0.78, id="almost all"),
        pytest.param(4400, 0.45, id="twice as much"),
    ],
)
def test_one_batch_in_ten_that_takes_three_times_as_long_costs_little(
    rate: float, least: float
) -> None:
    """Bounds that cover 97 % of the batches would have .46, .35, .27 and .20 in time."""
    runs = [stalled(rate, 200, 20, 3, FROM_MS + SECONDS * 1000, seed) for seed in range(3)]
    assert median(outcome.attainment for outcome in runs) > least


@pytest.mark.parametrize("sigma", [0.3, 0.4])
def test_the_highest_priority_is_covered_as_long_as_there_is_room_for_it(sigma: float) -> None:
    """However much of a lower one there is no room for then."""
    low = 2
    classes = (RequestClass(share=0.05, priority=1), RequestClass(share=0.95, priority=low))
    setup = ModelSetup(
        (Placement(0, 4),), classes, slo_ms=SLO_MS, priority_levels=low, default_priority=low
    )
    in_time = []
    for seed in range(3):
        model = Model(Latency(1.053, 5.9), SLO_MS, Arrivals(rate_per_s=2600))
        scenario = Scenario([model], 1, seed=seed, requests=26_000, noise_sigma=sigma)
        found = simulated(scenario, engine(EngineSettings(models=(setup,)))).engine
        assert found is not None
        top = found.classes[0][0]
        in_time.append(top.in_time / top.offered)
    assert median(in_time) > 0.978


def test_stalls_that_leave_room_are_covered() -> None:
    outcome = stalled(600, 200, 20, 1.6, until_ms=FROM_MS + SECONDS * 1000)
    assert outcome.attainment > 0.995


@pytest.mark.parametrize("rate", [1200, 2100])
def test_a_few_seconds_after_the_last_stall_all_is_as_it_was(rate: float) -> None:
    outcome = stalled(rate, 60, 20, 3, until_ms=FROM_MS + 6000)
    seconds = outcome.intervals
    assert len(seconds) >= SECONDS
    for part in (seconds[1 : int(FROM_MS / 1000)], seconds[-3:]):
        assert sum(in_time for _, in_time in part) > 0.985 * sum(offered for offered, _ in part)
