"""Reference policies in cases small enough to follow by hand; latencies are alpha * b + beta ms."""

from __future__ import annotations

import pytest

from scheduler.simulation.compare import SERVERS
from scheduler.simulation.scenario import (
    BENTOML,
    NEXUS,
    RAY_SERVE,
    SHEPHERD,
    Arrivals,
    Latency,
    Model,
    Outcome,
    Policy,
    Scenario,
    clockwork,
    simulate,
)
from scheduler.simulation.workloads import WORKLOADS

pytestmark = pytest.mark.native


def run(
    policy: Policy, at_ms: list[float], latency: tuple[float, float], objective_ms: float
) -> Outcome:
    """One model on one executor, every arrival counted."""
    model = Model(Latency(*latency), objective_ms, Arrivals("recorded", times_ms=tuple(at_ms)))
    return simulate(Scenario([model], executors=1, warm_up_ms=0, requests=len(at_ms)), policy)


def counts(outcome: Outcome) -> tuple[int, int, int]:
    """In time, late, dropped."""
    (model,) = outcome.models
    return model.in_time, model.late, model.dropped


# -- Clockwork -------------------------------------------------------------------------------------


def test_clockwork_has_batches_of_fixed_sizes_only() -> None:
    # 0-10 alone; of the three that wait two until 20, the last until 30.
    at_ms = [0.0, 1.0, 1.0, 1.0]
    outcome = run(clockwork(), at_ms, (0, 10), 29.0)
    assert counts(outcome) == (4, 0, 0)
    assert outcome.models[0].batches == 3
    assert counts(run(clockwork(), at_ms, (0, 10), 28.9)) == (3, 0, 1)


def test_clockwork_drops_an_early_request_for_a_larger_batch_behind_it() -> None:
    # At 10 the one of 1 could still go alone, until 20; the two of 9 go together, until 30.
    at_ms = [0.0, 1.0, 9.0, 9.0]
    assert counts(run(clockwork(), at_ms, (10, 0), 28.5)) == (3, 0, 1)
    # With half a millisecond more it starts a batch of two, and the last one follows.
    assert counts(run(clockwork(), at_ms, (10, 0), 31.0)) == (4, 0, 0)


def test_clockwork_commits_what_arrives_within_its_horizon() -> None:
    # At 6 the executor is busy until 10: within 5 ms it is committed alone, and the one of 7 comes
    # too late to join it. Without a horizon both wait for the end, and go together.
    at_ms = [0.0, 6.0, 7.0]
    assert run(clockwork(5.0), at_ms, (0, 10), 100.0).models[0].batches == 3
    assert run(clockwork(0.0), at_ms, (0, 10), 100.0).models[0].batches == 2


# -- Nexus -----------------------------------------------------------------------------------------


def test_nexus_takes_the_planned_batch_and_no_more() -> None:
    # 2 * l(b) <= 20: b = 5. 0-6 alone, five of six until 16, the sixth could only end at 22.
    outcome = run(NEXUS, [0.0, *[1.0] * 6], (1, 5), 20.0)
    assert counts(outcome) == (6, 0, 1)
    assert outcome.models[0].batches == 2


def test_nexus_deals_arrivals_to_executors_in_turn() -> None:
    # Two executors of equal plans: the second request does not wait for the first.
    model = Model(Latency(0, 10), 20.0, Arrivals("recorded", times_ms=(0.0, 0.0, 1.0, 1.0)))
    outcome = simulate(Scenario([model], executors=2, warm_up_ms=0, requests=4), NEXUS)
    assert counts(outcome) == (4, 0, 0)
    assert outcome.models[0].batches == 4


# -- Shepherd --------------------------------------------------------------------------------------


def test_shepherd_stops_a_batch_for_one_that_is_larger_by_its_factor() -> None:
    # Alone from 0; with the third of 1 it would be four to one: all four from 1 to 11.
    outcome = run(SHEPHERD, [0.0, 1.0, 1.0, 1.0], (0, 10), 11.0)
    assert (counts(outcome), outcome.preempted_batches) == ((4, 0, 0), 1)
    # Two more are three to one.
    outcome = run(SHEPHERD, [0.0, 1.0, 1.0], (0, 10), 19.0)
    assert (counts(outcome), outcome.preempted_batches) == ((3, 0, 0), 0)


def test_shepherd_looks_at_the_earliest_deadline_of_the_batch() -> None:
    # The one that runs would not be in time if it started again.
    outcome = run(SHEPHERD, [0.0, 1.0, 1.0, 1.0], (0, 10), 10.9)
    assert (counts(outcome), outcome.preempted_batches) == ((1, 0, 3), 0)


# -- Ray Serve -------------------------------------------------------------------------------------


def test_ray_serve_waits_ten_milliseconds_from_the_first_arrival_once() -> None:
    at_ms = [0.0, 5.0, 9.0]
    outcome = run(RAY_SERVE, at_ms, (1, 1), 14.0)
    assert counts(outcome) == (3, 0, 0)
    assert outcome.models[0].batches == 1
    assert counts(run(RAY_SERVE, at_ms, (1, 1), 13.9)) == (2, 1, 0)


def test_ray_serve_sends_ten_at_once_and_never_more() -> None:
    outcome = run(RAY_SERVE, [0.0] * 10, (1, 1), 11.0)
    assert counts(outcome) == (10, 0, 0)
    # Ten until 11; the other two, which waited their 10 ms, until 14.
    outcome = run(RAY_SERVE, [0.0] * 12, (1, 1), 14.0)
    assert counts(outcome) == (12, 0, 0)
    assert outcome.models[0].batches == 2
    assert counts(run(RAY_SERVE, [0.0] * 12, (1, 1), 13.9)) == (10, 2, 0)


def test_ray_serve_serves_no_more_than_full_batches_one_at_a_time() -> None:
    # 8 * 10 / l(10) = 5,127 requests/s.
    held = simulate(WORKLOADS["A"].scenario(3000, requests=20_000), RAY_SERVE)
    flooded = simulate(WORKLOADS["A"].scenario(5300, requests=50_000), RAY_SERVE)
    assert held.attainment > 0.99
    assert flooded.attainment < 0.2
    assert flooded.models[0].dropped == 0
    assert flooded.mean_batch == pytest.approx(10, abs=0.5)


# -- BentoML ---------------------------------------------------------------------------------------


def test_bentoml_looks_every_millisecond_while_executors_are_busy() -> None:
    # 0-3.5, seen at 4: the second one until 7.5.
    assert counts(run(BENTOML, [0.0, 0.0], (0, 3.5), 7.5)) == (2, 0, 0)
    assert counts(run(BENTOML, [0.0, 0.0], (0, 3.5), 7.4)) == (1, 1, 0)


def test_bentoml_cancels_the_oldest_of_several_that_would_be_late_together() -> None:
    # After one batch of one that took 4, least squares has 2 ms a request and 2 a batch. At 4 two
    # wait with 1 ms left: 6 are too many, one is cancelled; the last one is sent though it is late.
    assert counts(run(BENTOML, [0.0, 0.0, 0.0], (0, 4), 5.0)) == (1, 1, 1)


def test_bentoml_does_not_wait_at_light_load() -> None:
    outcome = simulate(WORKLOADS["A"].scenario(100, requests=2000), BENTOML)
    assert outcome.attainment > 0.99
    assert outcome.mean_batch < 1.5


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("letter", ["A", "E", "K"])
def test_no_server_beats_what_executors_can_serve(name: str, letter: str) -> None:
    workload = WORKLOADS[letter]
    twice = workload.scenario(2 * workload.capacity_per_s, requests=20_000)
    assert simulate(twice, SERVERS[name]).attainment < 0.6
