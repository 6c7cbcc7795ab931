"""The first seconds of models of which nothing is known, under load."""

from __future__ import annotations

import pytest

from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate

pytestmark = pytest.mark.native


def test_overload_from_the_start_is_learned_from_few_batches() -> None:
    """Blind batches as large as they can be would take all executors for more than a second."""
    arrivals = Arrivals(rate_per_s=5_000)
    slow = Model(Latency(9, 60), 1000, arrivals)
    others = [Model(Latency(2, 10), 60 + 20 * i, arrivals) for i in range(8)]
    scenario = Scenario([slow, *others], 32, warm_up_ms=0, interval_ms=250, requests=67_500)
    in_time = [interval[1] for interval in simulate(scenario, engine()).intervals]
    # As is served later on, or nearly, from the first second on.
    assert min(in_time[1:6]) > 1_000


def test_a_blind_batch_is_not_large() -> None:
    times = tuple([0.0] * 200)
    model = Model(Latency(1, 10), 500, Arrivals("recorded", times_ms=times))
    scenario = Scenario([model], 2, warm_up_ms=0, requests=len(times))
    (alone,) = simulate(scenario, engine()).models
    assert alone.in_time == 200
    assert alone.batches >= 6
