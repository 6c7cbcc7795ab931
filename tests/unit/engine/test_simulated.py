"""The engine under the virtual clock: the same compiled engine, arrivals and counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.simulation.compare import NAMES, goodput_of
from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import (
    Arrivals,
    Latency,
    Model,
    Scenario,
    engine,
    simulate,
    static,
)
from scheduler.simulation.workloads import GIVEN, SMALL, WORKLOADS

pytestmark = pytest.mark.native

CHECKED = engine(EngineSettings(check_truths=True))


def recorded(times_ms: list[float], latency: Latency, objective_ms: float) -> Scenario:
    """One model on one executor, every arrival counted."""
    model = Model(latency, objective_ms, Arrivals("recorded", times_ms=tuple(times_ms)))
    return Scenario([model], executors=1, warm_up_ms=0, requests=len(times_ms))


@pytest.mark.parametrize("letter", WORKLOADS)
@pytest.mark.parametrize("part", [0.1, 0.6, 1.5])
def test_every_counted_request_is_accounted_for(letter: str, part: float) -> None:
    workload = WORKLOADS[letter]
    rate = part * workload.capacity_per_s
    scenario = replace(workload.scenario(rate, requests=2000), warm_up_ms=50)
    outcome = simulate(scenario, CHECKED)
    for model in outcome.models:
        assert model.offered == model.in_time + model.late + model.dropped
    assert sum(model.offered for model in outcome.models) == 2000


@pytest.mark.parametrize("letter", WORKLOADS)
def test_the_same_seed_gives_the_same_outcome(letter: str) -> None:
    workload = WORKLOADS[letter]
    scenario = workload.scenario(0.5 * workload.capacity_per_s, requests=5000)
    scenario = replace(scenario, noise_sigma=0.1)
    first, second = (simulate(scenario, engine()) for _ in range(2))
    assert first == second
    assert first != simulate(replace(scenario, seed=2), engine())


@pytest.mark.parametrize("letter", WORKLOADS)
def test_light_load_is_in_time(letter: str) -> None:
    workload = WORKLOADS[letter]
    rate = 0.01 * workload.capacity_per_s
    outcome = simulate(workload.scenario(rate, requests=2000), engine())
    assert outcome.attainment > 0.99


def test_it_meets_the_arrivals_of_the_reference_policies() -> None:
    scenario = WORKLOADS["E"].scenario(1000, requests=5000)
    ours, theirs = (simulate(scenario, policy) for policy in (engine(), static()))
    assert [m.offered for m in ours.models] == [m.offered for m in theirs.models]


def test_a_batch_takes_its_time_on_one_executor_of_several_models() -> None:
    # The second has to wait for the first to end at 10 ms, and ends at 20 ms.
    for objective_ms, in_time in ((19.0, 1), (20.0, 2)):
        one = recorded([0.0], Latency(0, 10), objective_ms)
        two = replace(one, models=[*one.models, *one.models], requests=2)
        outcome = simulate(two, CHECKED)
        assert sum(model.in_time for model in outcome.models) == in_time


def test_what_expired_in_the_queue_is_dropped_and_what_ran_too_long_is_late() -> None:
    (model,) = simulate(
        recorded([0, 1, 2], Latency(0, 10), 10.5), engine(EngineSettings(rows_max=1))
    ).models
    assert (model.in_time, model.late + model.dropped) == (1, 2)
    (model,) = simulate(recorded([0], Latency(0, 10), 9.5), engine()).models
    assert (model.in_time, model.late) == (0, 1)


def test_what_waited_too_long_for_other_models_is_not_run() -> None:
    """Though its own model has run nothing for long: it says nothing of what batches take."""
    model = Model(Latency(0, 75), 150, Arrivals(rate_per_s=6))
    scenario = Scenario([model] * 6, 3, requests=3_000)
    models = simulate(scenario, engine()).models
    assert sum(model.dropped for model in models) > 0
    assert sum(model.late for model in models) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_requests_do_not_wait_for_each_other(seed: int) -> None:
    """Batches of little more than one row are asked for: waiting for a second one costs more."""
    flat = Latency(table_ms=tuple(38 + 9.25 * max(rows, 4) for rows in range(1, 65)))
    rates = [8.6 / (rank + 1) ** 0.8 for rank in range(6)]
    models = [Model(flat, 154, Arrivals(rate_per_s=rate)) for rate in rates]
    outcome = simulate(Scenario(models, 3, seed=seed, requests=5_000), engine())
    assert outcome.attainment > 0.9965


def test_batches_are_bounded() -> None:
    scenario = recorded([0.0] * 100, Latency(0, 1), 1000)
    (model,) = simulate(scenario, engine(EngineSettings(rows_max=10))).models
    assert (model.in_time, model.batches) == (100, 10)


def test_a_run_stops_after_the_allowed_misses() -> None:
    scenario = replace(WORKLOADS["A"].scenario(30_000), misses_max=500)
    outcome = simulate(scenario, engine())
    assert outcome.stopped_early
    (model,) = outcome.models
    assert 500 < model.late + model.dropped <= model.offered < 10_000


@pytest.mark.parametrize("letter", ["A", "C"])
def test_goodput_is_that_of_the_policy_to_beat(letter: str) -> None:
    """Which is told the latencies, and the engine nothing. Of one seed: the table takes hours."""
    theirs, ours = (
        goodput_of(WORKLOADS[letter], name, seed=1, requests=100_000).per_s
        for name in ("just_enough", NAMES[-1])
    )
    assert theirs >= 0.97 * GIVEN[letter]["just_enough"][0]
    assert ours >= 0.97 * theirs


def test_the_table_of_goodputs_has_the_engine_last() -> None:
    assert NAMES[-1] == "infersched"


@pytest.mark.parametrize(
    ("scenario", "policy"),
    [
        (WORKLOADS["A"].scenario(100), engine(EngineSettings(rows_max=0))),
        (WORKLOADS["A"].scenario(100), engine(EngineSettings(rows_max=1025))),
        (replace(WORKLOADS["A"].scenario(100), executors=257), engine()),
        (Scenario([Model(SMALL, 25, Arrivals())] * 65_537, 1), engine()),
    ],
    ids=["no rows", "rows", "executors", "models"],
)
def test_what_the_engine_cannot_run_is_refused(scenario: Scenario, policy: object) -> None:
    with pytest.raises(ValueError):
        simulate(scenario, policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_batches_grow_whatever_the_rows_of_a_request(rows: int) -> None:
    """Unmerged, 1,000 rows/s take more time than two backends have, or nearly all of it."""
    setup = ModelSetup((Placement(0), Placement(1)), slo_ms=100, classes=(RequestClass(rows=rows),))
    model = Model(Latency(1, 9), 100, Arrivals(rate_per_s=1000 / rows))
    scenario = Scenario([model], 2, seed=1, requests=4000, noise_sigma=0.03)
    outcome = simulate(scenario, engine(EngineSettings(models=(setup,))))
    assert outcome.mean_batch > rows
    assert outcome.attainment > 0.99


@pytest.mark.parametrize(("load", "in_time_per_s"), [(1.1, 5500), (1.25, 5620), (2.0, 5720)])
def test_batches_are_no_larger_than_rows_come_in_time_under_overload(
    load: float, in_time_per_s: float
) -> None:
    """Arrivals swing: a batch that just fits their mean rate would often be waited for in vain."""
    rate = load * 5470
    scenario = WORKLOADS["A"].scenario(rate, requests=50_000)
    assert rate * simulate(scenario, engine()).attainment > in_time_per_s
