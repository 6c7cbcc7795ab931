"""The first seconds of models of which nothing is known, under load."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import Stream, latency, run

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


@pytest.mark.parametrize("times", [20.0, 80.0])
@pytest.mark.parametrize("per_s", [20, 100, 500])
@pytest.mark.parametrize("instances", [1, 4, 8])
def test_what_first_batches_of_instances_take_is_soon_forgotten(
    instances: int, per_s: int, times: float
) -> None:
    """Each is so many times as long as later ones, and longer than the objective."""
    driver = Driver(instances, rows_max=32, load_aware=True)
    takes = chain(repeat(times, instances), repeat(1.0))

    def served(duration: int) -> Stream:
        stream = Stream(per_s, {}, 25 * MS)
        run(driver, [stream], duration, stalls=lambda rows: next(takes))
        return stream

    first = served(SECOND)
    lost = sum(first.counts.values()) - first.counts["in_time"]
    # What comes while one such batch runs, what each instance takes to have run its own, and no
    # more: refused for what these batches took, it would be most of the second.
    assert lost <= per_s * times * latency(1) / SECOND + 2 * instances
    assert served(4 * SECOND).in_time == 1


def test_a_model_that_is_too_slow_is_tried_once_a_second_after_its_first_batches() -> None:
    driver = Driver(4, rows_max=32, load_aware=True)
    streams = [Stream(100, {}, 25 * MS) for _ in range(2)]
    batches = 0

    def too_slow(rows: int) -> float:
        nonlocal batches
        batches += 1
        return 20

    run(driver, [streams[0]], 5 * SECOND, stalls=too_slow)
    batches = 0
    run(driver, [streams[1]], 10 * SECOND, stalls=too_slow)
    assert 5 <= batches <= 12
    assert streams[1].counts["deadline_infeasible"] > 900
