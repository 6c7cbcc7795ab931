"""Scenarios whose rates change while they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.simulation.scenario import Scenario


def in_steps(scenario: Scenario, parts: Sequence[float]) -> Scenario:
    """The scenario with each model at `parts` of its rate, one part after the other."""
    models = [
        replace(
            model,
            arrivals=replace(
                model.arrivals,
                kind="series",
                rates_per_s=tuple(part * model.arrivals.rate_per_s for part in parts),
            ),
        )
        for model in scenario.models
    ]
    return replace(scenario, models=models)
