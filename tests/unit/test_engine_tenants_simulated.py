"""Tenants of weights 1 and 3 at twice the goodput, simulated: what each gets of the executors."""

from __future__ import annotations

import pytest

from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import Outcome, engine, simulate
from scheduler.simulation.workloads import WORKLOADS

pytestmark = pytest.mark.native

GOODPUT = {"C": 2727, "K": 1500}


def competing(letter: str, parts: tuple[float, ...]) -> Outcome:
    """Tenants that offer these parts of the load; all models are alike, so requests are time."""
    of = WORKLOADS[letter]
    setup = ModelSetup(
        placements=tuple(Placement(e, 1, e) for e in range(of.executors)),
        classes=tuple(RequestClass(part, tenant=i + 1) for i, part in enumerate(parts)),
        slo_ms=of.objective_ms,
    )
    settings = EngineSettings(models=(setup,) * of.models, tenants=(1.0, 1.0, 3.0))
    scenario = of.scenario(2 * GOODPUT[letter], seed=3, requests=10_000)
    return simulate(scenario, engine(settings))


@pytest.mark.parametrize("letter", GOODPUT)
@pytest.mark.parametrize("parts", [(1, 2), (1, 4)])
def test_a_quarter_and_three_quarters(letter: str, parts: tuple[float, float]) -> None:
    outcome = competing(letter, parts)
    assert outcome.engine is not None
    served = [sum(model[i].in_time for model in outcome.engine.classes) for i in range(2)]
    assert served[0] / sum(served) == pytest.approx(0.25, abs=0.03)
    assert 2 * outcome.attainment > 0.97, "of the goodput"
