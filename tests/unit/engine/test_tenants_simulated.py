"""Tenants of weights 1 and 3 beyond the goodput, simulated: what each gets of the executors."""

from __future__ import annotations

import pytest

from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import (
    Arrivals,
    Executor,
    Latency,
    Model,
    Outcome,
    Scenario,
    engine,
    simulate,
)
from scheduler.simulation.workloads import WORKLOADS

pytestmark = pytest.mark.native

GOODPUT = {"A": 5468, "B": 969, "C": 2727, "K": 1500}


def competing(letter: str, parts: tuple[float, ...], factor: float = 2) -> Outcome:
    """Tenants that offer these parts of so many times the goodput."""
    of = WORKLOADS[letter]
    setup = ModelSetup(
        placements=tuple(Placement(e, 1, e) for e in range(of.executors)),
        classes=tuple(RequestClass(part, tenant=i + 1) for i, part in enumerate(parts)),
        slo_ms=of.objective_ms,
    )
    settings = EngineSettings(models=(setup,) * of.models, tenants=(1.0, 1.0, 3.0))
    scenario = of.scenario(factor * GOODPUT[letter], seed=3, requests=10_000)
    return simulate(scenario, engine(settings))


def served(outcome: Outcome) -> list[float]:
    """Parts of the requests in time by tenant; all models are alike, so requests are time."""
    assert outcome.engine is not None
    found = [
        sum(kind.in_time for kind in kinds) for kinds in zip(*outcome.engine.classes, strict=True)
    ]
    return [each / sum(found) for each in found]


@pytest.mark.parametrize("letter", ["C", "K"])
@pytest.mark.parametrize("parts", [(1, 2), (1, 4)])
def test_a_quarter_and_three_quarters(letter: str, parts: tuple[float, float]) -> None:
    outcome = competing(letter, parts)
    assert served(outcome)[0] == pytest.approx(0.25, abs=0.03)
    assert 2 * outcome.attainment > 0.97, "of the goodput"


@pytest.mark.parametrize("factor", [3, 5])
@pytest.mark.parametrize("letter", ["A", "B", "C", "K"])
def test_weights_act_however_much_more_is_offered(letter: str, factor: int) -> None:
    """Where who comes first would take the room that is left."""
    outcome = competing(letter, (1, 1), factor)
    assert served(outcome)[0] == pytest.approx(0.25, abs=0.08)
    assert factor * outcome.attainment > 1, "of the goodput"


@pytest.mark.parametrize("letter", ["C", "K"])
def test_what_a_tenant_of_much_weight_does_not_ask_for_goes_to_the_others(letter: str) -> None:
    """It asks for half of the goodput and may have three quarters."""
    outcome = competing(letter, (5, 1), 3)
    assert outcome.engine is not None
    little = [model[1] for model in outcome.engine.classes]
    assert sum(kind.in_time for kind in little) > 0.93 * sum(kind.offered for kind in little)
    assert 3 * outcome.attainment > 0.97, "of the goodput"


LATENCY = Latency(alpha_ms=1, beta_ms=5)


@pytest.mark.parametrize("rate_per_s", [60, 120, 300])
def test_nobody_gives_way_to_an_objective_too_tight_to_wait(rate_per_s: float) -> None:
    """Behind any batch the first tenant is late: refusing the other one would not help."""
    classes = (
        RequestClass(share=0.5, tenant=1, objective_ms=7.5),
        RequestClass(share=0.5, tenant=2),
    )
    setup = ModelSetup(placements=(Placement(0, 1, 0),), classes=classes, slo_ms=100)
    model = Model(LATENCY, 100, Arrivals(rate_per_s=rate_per_s))
    settings = EngineSettings(models=(setup,), tenants=(1.0, 1.0, 1.0))
    outcome = simulate(Scenario([model], executors=1, seed=3, requests=3000), engine(settings))
    assert outcome.engine is not None
    patient = outcome.engine.classes[0][1]
    assert patient.in_time > 0.99 * patient.offered


def test_nobody_gives_way_on_executors_that_the_other_cannot_use() -> None:
    """A model that may use executors of both joins them, and asks for next to nothing."""
    asked = [(1200, (0,), 1), (5, (0, 1), 2), (1200, (1, 2, 3), 2)]
    models = [Model(LATENCY, 40, Arrivals(rate_per_s=rate)) for rate, _, _ in asked]
    setups = [
        ModelSetup(
            placements=tuple(Placement(e, 1, e) for e in executors),
            classes=(RequestClass(tenant=tenant),),
            slo_ms=40,
            rows_max=8,
        )
        for _, executors, tenant in asked
    ]
    hosts = [
        Executor(models=tuple(i for i, (_, on, _) in enumerate(asked) if e in on)) for e in range(4)
    ]
    scenario = Scenario(models, executors=4, setups=hosts, seed=3, requests=4000)
    settings = EngineSettings(models=tuple(setups), tenants=(1.0, 1.0, 1.0))
    outcome = simulate(scenario, engine(settings))
    assert outcome.engine is not None
    apart = outcome.engine.classes[2][0]
    assert apart.in_time > 0.99 * apart.offered
