"""The simulator: closed forms, arrivals, executors, what is counted, and the goodput search."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pvariance

import pytest

from scheduler.simulation.goodput import RESOLUTION, holds, search
from scheduler.simulation.scenario import (
    BENTOML,
    JUST_ENOUGH,
    NEXUS,
    RAY_SERVE,
    SHEPHERD,
    SYMPHONY,
    Arrivals,
    Latency,
    Model,
    Policy,
    Scenario,
    StaticSettings,
    clockwork,
    simulate,
    staggered_bound,
    static,
    uncoordinated,
)
from scheduler.simulation.workloads import SMALL, WORKLOADS

pytestmark = pytest.mark.native

POLICIES = {
    "static": static(),
    "clockwork": clockwork(),
    "nexus": NEXUS,
    "shepherd": SHEPHERD,
    "symphony": SYMPHONY,
    "just_enough": JUST_ENOUGH,
    "bentoml": BENTOML,
    "ray_serve": RAY_SERVE,
}
SECOND_NS = 1_000_000_000
COUNT = 100_000


def recorded(times_ms: list[float], latency: Latency, objective_ms: float) -> Scenario:
    """One model on one executor, every arrival counted."""
    model = Model(latency, objective_ms, Arrivals("recorded", times_ms=tuple(times_ms)))
    return Scenario([model], executors=1, warm_up_ms=0)


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executors", "per_s"), [(1, 563), (2, 1321), (4, 2826), (8, 5839), (16, 11840)]
)
def test_the_bound_of_staggered_executors(executors: int, per_s: int) -> None:
    assert round(staggered_bound(SMALL, 25, executors)) == per_s


def test_the_bound_of_a_slow_model() -> None:
    workload = WORKLOADS["B"]
    assert round(staggered_bound(workload.latency, workload.objective_ms, 8)) == 1083


def test_uncoordinated_executors_serve_less() -> None:
    assert uncoordinated(SMALL, 25, 8) == pytest.approx(4501, abs=0.5)


@pytest.mark.parametrize(
    "latency", [Latency(1, 5), Latency(table_ms=(6, 5, 9, 8)), Latency(table_ms=(7,))]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 40])
def test_a_batch_takes_what_its_latency_says(latency: Latency, rows: int) -> None:
    scenario = recorded([0.0] * rows, latency, 1e3)
    preferred = StaticSettings(rows_max=rows, rows_preferred=rows, delay_ms=900)
    for objective_ms, in_time in ((latency.at(rows), rows), (latency.at(rows) - 0.001, 0)):
        model = replace(scenario.models[0], objective_ms=objective_ms)
        run = replace(scenario, models=[model], requests=rows)
        assert simulate(run, static(preferred)).models[0].in_time == in_time


def test_a_rate_only_holds_by_the_requests_that_came() -> None:
    """Recorded arrivals may be fewer than were to be counted: 1 % of those may miss."""
    times_ms = [10.0 * i for i in range(400)]
    late = [4000.0 + i / 1000 for i in range(8)]  # seven wait too long
    scenario = recorded(times_ms + late, Latency(0, 5), 9)
    one_a_batch = static(StaticSettings(rows_max=1))
    assert simulate(scenario, one_a_batch).models[0].in_time == 401
    assert holds(replace(scenario, requests=1000), one_a_batch) is None
    assert holds(replace(scenario, requests=1000), one_a_batch, 0.98) is not None


def test_a_rate_at_which_next_to_nothing_is_counted_does_not_hold() -> None:
    times_ms = tuple(2.0 * i for i in range(1000))
    model = Model(Latency(0, 1), 9, Arrivals("recorded", times_ms=times_ms))
    found = search(
        lambda rate: Scenario([replace(model, arrivals=model.arrivals.scaled(rate / 500))], 1),
        static(),
        from_per_s=64_000,
        to_per_s=100,
    )
    assert found.outcome is not None
    assert found.outcome.offered >= 100


def test_no_batch_in_time_is_no_goodput() -> None:
    assert staggered_bound(SMALL, 6, 8) == 0


# -- arrivals --------------------------------------------------------------------------------------


def gaps(arrivals: Arrivals) -> list[int]:
    times = arrivals.first(COUNT, seed=7)
    assert times == sorted(times)
    return [later - earlier for earlier, later in zip([0, *times], times, strict=False)]


@pytest.mark.parametrize(
    ("arrivals", "squared_variation"),
    [
        (Arrivals("poisson", 1000.0), 1.0),
        (Arrivals("gamma", 1000.0, shape=4.0), 0.25),
        (Arrivals("gamma", 1000.0, shape=0.1), 10.0),
    ],
    ids=["poisson", "gamma 4", "gamma 0.1"],
)
def test_gaps_have_the_mean_and_the_variation_of_their_law(
    arrivals: Arrivals, squared_variation: float
) -> None:
    found = gaps(arrivals)
    mean = fmean(found)
    # Five standard errors of a mean of COUNT gaps.
    assert mean == pytest.approx(1e6, rel=5 * math.sqrt(squared_variation / COUNT))
    assert pvariance(found) / mean**2 == pytest.approx(squared_variation, rel=0.1)


def test_poisson_gaps_are_exponential() -> None:
    """Kolmogorov and Smirnov's distance, at 1 in a million."""
    found = sorted(gaps(Arrivals("poisson", 1000.0)))
    law = [1 - math.exp(-gap / 1e6) for gap in found]
    distance = max(abs(p - (i + 0.5) / COUNT) for i, p in enumerate(law))
    assert distance < 2.7 / math.sqrt(COUNT)


def test_on_off_arrivals_come_in_phases_and_keep_their_mean() -> None:
    arrivals = Arrivals("on_off", 1000.0, on_mean_ms=100, off_mean_ms=300)
    times = arrivals.first(COUNT, seed=3)
    assert COUNT / (times[-1] / SECOND_NS) == pytest.approx(1000, rel=0.2)
    bins = [0] * (times[-1] // (SECOND_NS // 100) + 1)
    for at in times:
        bins[at // (SECOND_NS // 100)] += 1
    # In 10 ms of an on phase 40 are expected, so an empty one is an off phase.
    assert sum(1 for count in bins if count == 0) / len(bins) == pytest.approx(0.72, abs=0.1)


def test_a_rate_series_is_followed_step_by_step_and_ends() -> None:
    arrivals = Arrivals("series", rates_per_s=(2000.0, 0.0, 8000.0), step_ms=1000)
    times = arrivals.first(COUNT, seed=5)
    steps = [sum(1 for at in times if at // SECOND_NS == second) for second in range(4)]
    assert steps[0] == pytest.approx(2000, abs=5 * math.sqrt(2000))
    assert steps[1] == 0
    assert steps[2] == pytest.approx(8000, abs=5 * math.sqrt(8000))
    assert steps[3] == 0


def test_recorded_times_come_back() -> None:
    assert Arrivals("recorded", times_ms=(0, 1.5, 1.5, 4)).first(9, seed=1) == [
        0,
        1_500_000,
        1_500_000,
        4_000_000,
    ]


def test_scaling_multiplies_every_rate() -> None:
    doubled = Arrivals(rate_per_s=3, rates_per_s=(1, 2), times_ms=(2, 4)).scaled(2)
    assert (doubled.rate_per_s, doubled.rates_per_s, doubled.times_ms) == (6, (2, 4), (1, 2))


# -- executors and counting ------------------------------------------------------------------------


def test_a_batch_takes_its_time_and_late_is_one_that_ends_after_its_objective() -> None:
    # Alone 3 ms; the two that wait for it go together for 4 ms and end at 7 ms.
    scenario = recorded([0, 1, 2], Latency(1, 2), 5.5)
    (model,) = simulate(scenario, static()).models
    assert (model.offered, model.in_time, model.late) == (3, 2, 1)
    assert (model.batches, model.batched_rows) == (2, 3)


def test_a_table_of_latencies_goes_on_in_a_straight_line() -> None:
    latency = Latency(table_ms=(3, 4, 6))
    # One goes alone, five wait: 6 + 2 + 2 = 10 ms after the first has ended at 3.
    times = [0, *[1.0] * 5]
    in_time = simulate(recorded(times, latency, 12.0), static()).models[0].in_time
    late = simulate(recorded(times, latency, 11.9), static()).models[0].late
    assert (in_time, late) == (6, 5)


def test_a_static_batch_waits_for_its_delay_or_its_preferred_size() -> None:
    settings = StaticSettings(rows_max=4, rows_preferred=2, delay_ms=5)
    alone = simulate(recorded([0], Latency(1, 1), 7), static(settings)).models[0]
    early = simulate(recorded([0], Latency(1, 1), 6.9), static(settings)).models[0]
    paired = simulate(recorded([0, 1], Latency(1, 1), 4), static(settings)).models[0]
    assert (alone.in_time, early.late) == (1, 1)
    assert (paired.in_time, paired.batches) == (2, 1)


def test_a_queue_timeout_drops_what_waited_longer() -> None:
    settings = StaticSettings(rows_max=1, queue_timeout_ms=9)
    (model,) = simulate(recorded([0, 0.5, 2], Latency(0, 10), 100), static(settings)).models
    assert (model.in_time, model.dropped) == (2, 1)


def test_hopeless_requests_are_dropped_by_every_policy_with_deadlines() -> None:
    for name in ("clockwork", "nexus", "shepherd", "symphony", "just_enough"):
        (model,) = simulate(recorded([0, 1, 2], Latency(1, 9), 5), POLICIES[name]).models
        assert (name, model.dropped) == (name, 3)


def test_light_load_does_not_wait_for_more_under_just_enough() -> None:
    scenario = replace(WORKLOADS["A"].scenario(100), requests=1000)
    model = replace(scenario.models[0], objective_ms=25.0)
    outcome = simulate(replace(scenario, models=[model]), JUST_ENOUGH)
    assert (outcome.attainment, outcome.mean_batch) == (1, pytest.approx(1, abs=0.01))


def test_noise_is_lognormal_around_the_latency() -> None:
    # Half of the batches take longer than l(1), one in 44 longer than two deviations more.
    times = [20.0 * i for i in range(20_000)]
    longer = []
    for objective in (10.0, 10 * math.exp(0.2)):
        scenario = replace(recorded(times, Latency(0, 10), objective), noise_sigma=0.1)
        outcome = simulate(replace(scenario, requests=len(times)), static())
        longer.append(1 - outcome.attainment)
    assert longer == [pytest.approx(0.5, abs=0.02), pytest.approx(0.0228, abs=0.006)]


def test_some_batches_straggle() -> None:
    times = [60.0 * i for i in range(5_000)]
    scenario = replace(recorded(times, Latency(0, 10), 49), straggling=0.1, requests=len(times))
    assert simulate(scenario, static()).attainment == pytest.approx(0.9, abs=0.02)
    in_time = replace(recorded(times, Latency(0, 10), 51), straggling=0.1, requests=len(times))
    assert simulate(in_time, static()).attainment == 1


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_outcome(name: str) -> None:
    scenario = replace(WORKLOADS["E"].scenario(4000, requests=10_000), noise_sigma=0.1)
    first, second = (simulate(scenario, POLICIES[name]) for _ in range(2))
    assert first == second
    assert first != simulate(replace(scenario, seed=2), POLICIES[name])


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("rate_per_s", [200, 4000, 12_000])
def test_every_counted_request_is_accounted_for(name: str, rate_per_s: float) -> None:
    outcome = simulate(WORKLOADS["E"].scenario(rate_per_s, requests=10_000), POLICIES[name])
    for model in outcome.models:
        assert model.offered == model.in_time + model.late + model.dropped
    assert sum(model.offered for model in outcome.models) == 10_000


def test_a_run_stops_after_the_allowed_misses() -> None:
    scenario = replace(WORKLOADS["A"].scenario(12_000), misses_max=500)
    outcome = simulate(scenario, SYMPHONY)
    assert outcome.stopped_early
    (model,) = outcome.models
    assert model.late + model.dropped > 500
    assert model.offered < 10_000


# -- the search ------------------------------------------------------------------------------------


def test_the_search_finds_the_edge_of_a_queue_that_is_known() -> None:
    # One executor, 10 ms a request, no limit on waiting but two hours: only the rate matters.
    def at(rate_per_s: float) -> Scenario:
        times = tuple(1000 * i / rate_per_s for i in range(2000))
        model = Model(Latency(0, 10), 10.0001, Arrivals("recorded", times_ms=times))
        return Scenario([model], executors=1, warm_up_ms=0, requests=2000)

    one_row = static(StaticSettings(rows_max=1))
    found = search(at, one_row, from_per_s=1000, to_per_s=1)
    assert found.per_s == pytest.approx(100, rel=2 * RESOLUTION)
    assert found.outcome is not None
    assert found.outcome.attainment >= 0.99


def test_a_search_that_finds_nothing_says_so() -> None:
    found = search(WORKLOADS["A"].scenario, SYMPHONY, from_per_s=30_000, to_per_s=29_000)
    assert (found.per_s, found.outcome) == (0, None)


@pytest.mark.parametrize(
    ("top", "low"), [(0.0, 0.0), (1000.0, 0.0), (-1.0, 1.0), (float("nan"), 1)]
)
def test_a_search_among_rates_that_are_none_is_refused(top: float, low: float) -> None:
    with pytest.raises(ValueError, match="requests/s"):
        search(WORKLOADS["A"].scenario, SYMPHONY, from_per_s=top, to_per_s=low)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"executors": 0},
        {"models": []},
        {"noise_sigma": -0.1},
        {"straggling": 1.1},
        {"noise_sigma": math.nan},
        {"warm_up_ms": -1},
        {"requests": 0},
        {"models": [Model(SMALL, 0, Arrivals(rate_per_s=1))]},
        {"models": [Model(SMALL, 25, Arrivals(rate_per_s=-1))]},
        {"models": [Model(SMALL, 25, Arrivals(rate_per_s=math.inf))]},
        {"models": [Model(SMALL, 25, Arrivals("gamma", 1, shape=0))]},
        {"models": [Model(SMALL, 25, Arrivals("on_off", 1, on_mean_ms=0))]},
        {"models": [Model(SMALL, 25, Arrivals("series", step_ms=0))]},
        {"models": [Model(SMALL, 25, Arrivals("recorded", times_ms=(2, 1)))]},
        {"models": [Model(Latency(1e12, 0), 25, Arrivals(rate_per_s=1))]},
    ],
    ids=str,
)
def test_a_scenario_that_cannot_be_run_is_refused(bad: dict[str, object]) -> None:
    scenario = replace(WORKLOADS["A"].scenario(1000, requests=10), **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        simulate(scenario, static())


@pytest.mark.parametrize("latency", [(-1.0, 2.0), (0.0, 0.0), (math.nan, 1.0)])
def test_a_latency_that_cannot_be_is_refused(latency: tuple[float, float]) -> None:
    with pytest.raises(ValueError):
        Latency(*latency)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="no reference policy"):
        simulate(WORKLOADS["A"].scenario(1000, requests=10), Policy("best"))
