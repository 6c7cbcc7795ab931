"""The search for a goodput: the highest offered rate at which enough of ALL requests are in time.

Attainment is not monotone in the rate: a policy that defers, or a batcher with a fixed delay, may
fail at some rate and hold at a higher one. So the search starts above what the executors can serve
and comes down in steps of 2 % to the first rate that holds, then halves the distance to the failed
rate above it until it is below 0.3 %. It finds the highest plateau that is wider than a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from scheduler.simulation.scenario import Outcome, Policy, Scenario, simulate

STEP = 1.02
RESOLUTION = 0.003
ATTAINMENT = 0.99
# Fewer requests tell nothing. Recorded arrivals at many times their rate end with the warm-up.
COUNTED_MIN = 100


@dataclass(frozen=True)
class Goodput:
    """The highest rate that held, and what was counted there; `outcome` None: no rate held."""

    per_s: float
    outcome: Outcome | None


def holds(scenario: Scenario, policy: Policy, attainment: float = ATTAINMENT) -> Outcome | None:
    """The outcome when at least `attainment` of all requests were in time, else None.

    What waits in the end without a deadline was not: a backlog that only grows is no goodput. None,
    too, where arrivals end before COUNTED_MIN of them were counted. A run that cannot hold any more
    is stopped.
    """
    allowed = int(scenario.requests * (1 - attainment) + 1e-9)
    outcome = simulate(replace(scenario, misses_max=allowed), policy)
    if outcome.stopped_early or outcome.came < min(COUNTED_MIN, scenario.requests):
        return None
    # There may have been fewer requests than were to be counted.
    return outcome if outcome.in_time_share >= attainment - 1e-9 else None


def search(
    scenario_at: Callable[[float], Scenario],
    policy: Policy,
    *,
    from_per_s: float,
    to_per_s: float,
    attainment: float = ATTAINMENT,
) -> Goodput:
    """The goodput of `policy` between two rates, the higher one first.

    `scenario_at(rate)` is the load at `rate` requests/s over all models. Raises ValueError for
    rates that are not positive: the search would not end.
    """
    if not (from_per_s > 0 and to_per_s > 0):
        raise ValueError(f"a search from {from_per_s} down to {to_per_s} requests/s")
    rate = from_per_s
    held = holds(scenario_at(rate), policy, attainment)
    while held is None:
        rate /= STEP
        if rate < to_per_s:
            return Goodput(0.0, None)
        held = holds(scenario_at(rate), policy, attainment)
    failed = rate * STEP
    while rate < from_per_s and failed / rate > 1 + RESOLUTION:
        middle = (rate + failed) / 2
        outcome = holds(scenario_at(middle), policy, attainment)
        if outcome is None:
            failed = middle
        else:
            rate, held = middle, outcome
    return Goodput(rate, held)
