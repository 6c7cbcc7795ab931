"""What is metered follows the load: after a burst nothing waits for rows that do not come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.simulation.scenario import engine, simulate
from scheduler.simulation.workloads import WORKLOADS
from tests.unit.simulation.simulated_loads import in_steps

pytestmark = pytest.mark.native


@pytest.mark.parametrize(("letter", "goodput"), [("A", 5481), ("C", 2727)])
def test_half_a_second_after_a_burst_light_load_waits_for_nothing(
    letter: str, goodput: int
) -> None:
    """Three seconds of the goodput, then a tenth of it: one model, and many of low rates."""
    parts = (0.1,) * 2 + (1.0,) * 3 + (0.1,) * 3
    base = WORKLOADS[letter].scenario(goodput, seed=3, requests=goodput // 20)
    outcome = simulate(replace(in_steps(base, parts), warm_up_ms=5500.0), engine())
    assert outcome.engine is not None
    assert outcome.engine.waits_ms[0.5] <= 0.1
    assert outcome.engine.waits_ms[0.9] <= 1.0
    assert outcome.attainment == 1.0
