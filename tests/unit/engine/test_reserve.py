"""Slow models beside one that cannot wait for their batches: executors that they leave to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scheduler.simulation.engine import EngineSettings, Fault, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import (
    Arrivals,
    Latency,
    Model,
    Outcome,
    Scenario,
    engine,
    simulate,
)
from tests.unit.cc_program import build_program, run_program

pytestmark = pytest.mark.native

TIGHT, SLOW = Latency(0.5, 2), Latency(20, 100)
TIGHT_MS, SLOW_MS = 15.0, 600.0
EXECUTORS = 4


def run(
    tight_per_s: float,
    slow_per_s: float,
    setups: Sequence[ModelSetup] = (),
    requests: int = 20_000,
    seed: int = 1,
    faults: tuple[Fault, ...] = (),
) -> Outcome:
    models = [
        Model(TIGHT, TIGHT_MS, Arrivals(rate_per_s=tight_per_s)),
        Model(SLOW, SLOW_MS, Arrivals(rate_per_s=slow_per_s)),
    ]
    scenario = Scenario(models, EXECUTORS, seed=seed, requests=requests)
    return simulate(scenario, engine(EngineSettings(models=tuple(setups), faults=faults)))


def attained(outcome: Outcome) -> list[float]:
    return [model.attainment for model in outcome.models]


def placements() -> tuple[Placement, ...]:
    return tuple(Placement(backend, 1, backend) for backend in range(EXECUTORS))


def test_slow_batches_leave_executors_to_what_cannot_wait_for_them() -> None:
    tight, slow = attained(run(2_400, 58))
    assert tight > 0.99  # .93 where the slow ones may hold all executors
    assert slow > 0.97


def test_the_slow_model_has_its_part_under_overload() -> None:
    tight, slow = attained(run(5_000, 120))
    assert min(tight, slow) > 0.4


def test_a_slow_model_has_all_executors_once_it_is_alone() -> None:
    tight_ends = Arrivals("series", rates_per_s=(1_000.0, 0.0, 0.0, 0.0), step_ms=2_000)
    models = [
        Model(TIGHT, TIGHT_MS, tight_ends),
        Model(SLOW, SLOW_MS, Arrivals(rate_per_s=110)),
    ]
    scenario = Scenario(models, EXECUTORS, seed=1, warm_up_ms=3_000, requests=400)
    _, slow = attained(simulate(scenario, engine(EngineSettings())))
    assert slow > 0.98  # more than three executors serve


def best_effort_in_the_way() -> list[ModelSetup]:
    asks_for_nothing = RequestClass(objective_ms=float("inf"))
    return [
        ModelSetup(placements(), (asks_for_nothing,)),
        ModelSetup(placements(), slo_ms=SLOW_MS),
    ]


def test_what_has_no_objective_is_left_nothing() -> None:
    outcome = run(500, 110, best_effort_in_the_way(), requests=5_000)
    _, slow = attained(outcome)
    assert slow > 0.98


def test_a_lower_priority_is_left_nothing_by_those_above_it() -> None:
    tight = ModelSetup(
        placements(), (RequestClass(priority=2),), slo_ms=TIGHT_MS, priority_levels=2
    )
    slow = ModelSetup(placements(), (RequestClass(priority=1),), slo_ms=SLOW_MS, priority_levels=2)
    _, above = attained(run(1_000, 110, [tight, slow], requests=10_000))
    assert above > 0.98
    equal = [
        ModelSetup(placements(), slo_ms=TIGHT_MS),
        ModelSetup(placements(), slo_ms=SLOW_MS),
    ]
    _, beside = attained(run(1_000, 110, equal, requests=10_000))
    assert beside < above


def test_nothing_is_taken_from_a_slow_model_where_all_have_room() -> None:
    latency = Latency(1, 50)
    models = [
        Model(latency, 95.0, Arrivals(rate_per_s=40)),
        Model(latency, 2_000.0, Arrivals(rate_per_s=900)),
    ]
    scenario = Scenario(models, EXECUTORS, seed=1, requests=15_000)
    tight, slow = attained(simulate(scenario, engine(EngineSettings())))
    assert min(tight, slow) > 0.98  # .86 where the deviations of the others are left as well


def test_a_batch_that_hangs_takes_the_place_of_no_other_slow_one() -> None:
    models = [
        Model(TIGHT, TIGHT_MS, Arrivals(rate_per_s=600)),
        Model(SLOW, SLOW_MS, Arrivals(rate_per_s=12)),
    ]
    hang = Fault("hang", 5_000.0, 25_000.0, backend=0)
    scenario = Scenario(models, 2, seed=1, requests=14_000)
    _, slow = attained(simulate(scenario, engine(EngineSettings(faults=(hang,)))))
    assert slow > 0.9  # .15 where the only place of the slow ones is lost with it


def test_slow_batches_that_are_sent_again_leave_executors_as_well() -> None:
    failing = Fault("failing", 0.0, 1e9, factor=0.1, failure="reset")
    runs = [attained(run(2_400, 58, seed=seed, faults=(failing,))) for seed in range(1, 6)]
    tight = [tight for tight, _ in runs]
    assert sum(tight) / len(tight) > 0.88  # .847 where they come on top of the others
    assert min(slow for _, slow in runs) > 0.7


def test_reserves_that_are_planned_and_places_that_they_leave(tmp_path: Path, seed: int) -> None:
    names = ("batching/reserve", "admission/backlog", "admission/held_batches")
    sources = tuple(f"engine/{name}.cc" for name in names)
    program = build_program(tmp_path, "engine/reserves", sources, sanitize="address,undefined")
    run_program(program, seed)
