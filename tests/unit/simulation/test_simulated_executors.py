"""Executors that differ: what they hold, how fast they are, and when they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.simulation.compare import REFERENCES, SERVERS
from scheduler.simulation.scenario import (
    Arrivals,
    Executor,
    Latency,
    Model,
    Outcome,
    Scenario,
    StaticSettings,
    Trouble,
    engine,
    simulate,
    static,
)
from scheduler.simulation.workloads import SMALL, WORKLOADS
from scheduler.simulation.world import from_file

pytestmark = pytest.mark.native

ALL = {**REFERENCES, **SERVERS}
ONE_BY_ONE = static(StaticSettings(rows_max=1))


def recorded(times_ms: list[float], objective_ms: float, *setups: Executor) -> Scenario:
    """One model whose batches take 10 ms, an executor for each setup, every arrival counted."""
    model = Model(Latency(0, 10), objective_ms, Arrivals("recorded", times_ms=tuple(times_ms)))
    return Scenario(
        [model], executors=len(setups), setups=setups, warm_up_ms=0, requests=len(times_ms)
    )


def test_a_slow_executor_takes_longer() -> None:
    at_ms = [0.0, 100.0]
    half = Executor(speed=0.5)
    assert simulate(recorded(at_ms, 20.0, half), ONE_BY_ONE).attainment == 1
    assert simulate(recorded(at_ms, 19.9, half), ONE_BY_ONE).attainment == 0


def test_a_trouble_slows_what_starts_while_it_lasts() -> None:
    slow = Executor(troubles=(Trouble(50, 150, factor=3),))
    scenario = recorded([45.0, 100.0, 150.0], 29.9, slow)
    (model,) = simulate(scenario, ONE_BY_ONE).models
    assert (model.in_time, model.late) == (2, 1)
    (model,) = simulate(recorded([45.0, 100.0, 150.0], 30.0, slow), ONE_BY_ONE).models
    assert model.in_time == 3


def test_executions_drift() -> None:
    scenario = replace(recorded([0.0, 1000.0, 2000.0], 25.0, Executor()), drift_per_s=1.0)
    (model,) = simulate(scenario, ONE_BY_ONE).models
    assert (model.in_time, model.late) == (2, 1)


def test_what_runs_on_an_executor_that_goes_down_is_lost() -> None:
    # The first is running, the second waits for the executor to come back, the third is after it.
    down = Executor(troubles=(Trouble(5, 50),))
    (model,) = simulate(recorded([0.0, 1.0, 60.0], 59.0, down), ONE_BY_ONE).models
    assert (model.in_time, model.late) == (2, 1)
    (model,) = simulate(recorded([0.0, 1.0, 60.0], 58.9, down), ONE_BY_ONE).models
    assert (model.in_time, model.late) == (1, 2)


def test_the_part_of_batches_that_fails_is_as_given() -> None:
    times_ms = [20.0 * i for i in range(10_000)]
    outcome = simulate(recorded(times_ms, 10.0, Executor(failing=0.2)), ONE_BY_ONE)
    assert outcome.attainment == pytest.approx(0.8, abs=0.02)
    assert simulate(recorded(times_ms, 10.0, Executor(failing=1)), ONE_BY_ONE).attainment == 0


def two_models(rate_per_s: float, *setups: Executor) -> Scenario:
    models = [Model(SMALL, 100.0, Arrivals(rate_per_s=rate_per_s)) for _ in range(2)]
    return Scenario(models, executors=2, setups=setups, requests=20_000)


@pytest.mark.parametrize("name", ALL)
def test_a_model_that_one_executor_holds_gets_no_more_than_that_one(name: str) -> None:
    """Two models on one executor each, and both on both: 600/s of each is much for one executor."""

    def at(rate_per_s: float, *setups: Executor) -> Outcome:
        return simulate(two_models(rate_per_s, *setups), ALL[name])

    # Capacity of one executor: 1 / alpha = 950/s.
    apart = (Executor(models=(0,)), Executor(models=(1,)))
    both_of_one = (Executor(models=(0,)), Executor(models=(0,)))
    assert at(300, *apart).attainment > 0.99
    assert at(1500, *apart).worst_attainment < 0.7
    first, second = at(300, *both_of_one).models
    assert first.attainment > 0.99
    assert second.in_time == 0


PLACED = """
executors: 3
speeds: [1, 0.5]
drift_per_s: 0.001
models:
  - name: first
    latency: &latency {alpha: 1ms, beta: 4ms}
    slo: 60ms
    arrivals: &arrivals {rate: 50}
    executors: [0, 1]
  - {name: second, latency: *latency, slo: 60ms, arrivals: *arrivals, executors: [1]}
"""


def test_a_workload_file_says_so_for_every_policy(tmp_path: Path) -> None:
    path = tmp_path / "placed.yaml"
    path.write_text(PLACED)
    world = from_file(path)
    assert world.only_engine == ()
    scenario = world.at(1.0)
    assert [setup.models for setup in scenario.setups] == [(0,), (0, 1), ()]
    assert [setup.speed for setup in scenario.setups] == [1, 0.5, 1]
    assert scenario.drift_per_s == 0.001
    for policy in (REFERENCES["just_enough"], engine(world.settings)):
        assert simulate(replace(scenario, requests=2000), policy).attainment > 0.99


@pytest.mark.parametrize("name", ALL)
def test_policies_live_through_trouble(name: str) -> None:
    """Two of eight executors flap, one is slow: all is counted, and most is answered."""
    flapping = tuple(Trouble(at, at + 200) for at in range(1000, 20_000, 1000))
    scenario = replace(
        WORKLOADS["E"].scenario(1200, requests=15_000),
        setups=(Executor(troubles=flapping), Executor(troubles=flapping), Executor(speed=0.9)),
    )
    outcome = simulate(scenario, ALL[name])
    assert outcome == simulate(scenario, ALL[name])
    for model in outcome.models:
        assert model.offered == model.in_time + model.late + model.dropped
    assert sum(model.offered for model in outcome.models) == 15_000
    assert 0.6 < outcome.attainment < 1


@pytest.mark.parametrize(
    "bad",
    [
        {"setups": (Executor(), Executor())},
        {"setups": (Executor(models=(1,)),)},
        {"setups": (Executor(speed=0),)},
        {"setups": (Executor(speed=float("nan")),)},
        {"setups": (Executor(failing=1.1),)},
        {"setups": (Executor(troubles=(Trouble(2, 1),)),)},
        {"setups": (Executor(troubles=(Trouble(1, 3), Trouble(2, 4))),)},
        {"setups": (Executor(troubles=(Trouble(1, 3, factor=-1),)),)},
        {"drift_per_s": -0.1},
    ],
    ids=str,
)
def test_executors_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    scenario = replace(recorded([0.0], 10.0, Executor()), **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        simulate(scenario, ONE_BY_ONE)


def test_the_engine_runs_on_them_too() -> None:
    half = recorded([100.0 * i for i in range(100)], 20.1, Executor(speed=0.5))
    assert simulate(half, engine()).attainment == 1
    failing = recorded([100.0 * i for i in range(100)], 20.0, Executor(failing=1))
    assert simulate(failing, engine()).attainment == 0
    down = Executor(troubles=(Trouble(50, 1050),))
    outcome = simulate(recorded([100.0 * i for i in range(100)], 20.0, down), engine())
    assert outcome.attainment == pytest.approx(0.9)
    apart = simulate(two_models(300, Executor(models=(0,)), Executor(models=(1,))), engine())
    assert apart.attainment > 0.99
