"""The reference policies against the goodput that is known of them, within 3 %.

One seed, and the best static setting for two workloads; `python -m benchmarks.goodput` does them
all. Where an implementation of ours is known to be further off, DIFFERENT says by how much, so that
no comparison rests on such a figure unseen and a change of it is noticed.
"""

from __future__ import annotations

import pytest

from scheduler.simulation.compare import (
    REFERENCES,
    Compared,
    compare,
    goodput_of,
    static_grid,
    table,
)
from scheduler.simulation.goodput import holds
from scheduler.simulation.scenario import clockwork, static
from scheduler.simulation.workloads import GIVEN, WORKLOADS

pytestmark = pytest.mark.native

TOLERANCE = 0.03
REQUESTS = 100_000

# Goodput of ours over the nearer end of the known range, median of five seeds, and why.
# * A and B, shepherd: a burst can leave all executors with small batches from which it does not
#   recover, so longer runs give less. In runs of 20,000 requests it is 0.5 % above the known figure
#   on A and 2 % on B, so those will be of such runs.
# * B, clockwork: when it looks whether an executor may be committed. At arrivals and ends of
#   batches, as here, it is 4 % below; with a timer for the very moment it would be 3 % above, and
#   below elsewhere.
# * K, tuned static: the grid behind the known figure had other sizes or delays.
# * G: bursts make a run's result vary by up to 10 %, and every policy is below its known figure.
#   Not the cause: the gamma law (numpy's gives the same), the number of requests, the warm-up,
#   other arrivals for every rate searched, lognormal or Weibull gaps, a superposition of sources.
#   Were no gap shorter than 10 us, by which 2 % fewer requests arrive than asked for, all would be
#   within 2 % of the known figures (shepherd: 4 %, as on A).
DIFFERENT: dict[tuple[str, str], float] = {
    ("A", "shepherd"): 0.96,
    ("B", "clockwork"): 0.96,
    ("B", "shepherd"): 0.975,
    ("G", "clockwork"): 0.93,
    ("G", "nexus"): 0.93,
    ("G", "static_tuned"): 0.91,
    ("G", "shepherd"): 0.91,
    ("G", "symphony"): 0.97,
    ("G", "just_enough"): 0.935,
    ("K", "static_tuned"): 0.975,
}


def expected(letter: str, name: str) -> tuple[float, float]:
    """Rates at which the policy must hold and must not: 3 % around what is expected of it."""
    low, high = GIVEN[letter][name]
    factor = DIFFERENT.get((letter, name), 1.0)
    return low * factor * (1 - TOLERANCE), high * factor * (1 + TOLERANCE)


@pytest.mark.parametrize("letter", WORKLOADS)
@pytest.mark.parametrize("name", REFERENCES)
def test_goodput_is_the_known_one(letter: str, name: str) -> None:
    """Without a search: in time just below the known figure, not in time just above it."""
    below, above = expected(letter, name)
    workload = WORKLOADS[letter]
    assert holds(workload.scenario(below, requests=REQUESTS), REFERENCES[name]) is not None
    assert holds(workload.scenario(above, requests=REQUESTS), REFERENCES[name]) is None


@pytest.mark.parametrize("letter", WORKLOADS)
def test_the_best_static_setting_without_timeout_has_the_known_goodput(letter: str) -> None:
    below, above = expected(letter, "static_tuned")
    workload = WORKLOADS[letter]
    policies = [static(settings) for settings in static_grid(workload, timeouts=False)]
    low, high = (workload.scenario(rate, requests=REQUESTS) for rate in (below, above))
    assert any(holds(low, policy) is not None for policy in policies)
    assert [policy for policy in policies if holds(high, policy) is not None] == []


@pytest.mark.parametrize("letter", ["A", "B", "G"])
def test_a_queue_timeout_makes_the_best_static_setting_better(letter: str) -> None:
    """By 3 to 5 %: so the benchmark has both."""
    _, above = expected(letter, "static_tuned")
    workload = WORKLOADS[letter]
    load = workload.scenario(above * (0.99 if letter == "A" else 1), requests=REQUESTS)
    policies = [static(settings) for settings in static_grid(workload, timeouts=True)]
    assert any(holds(load, policy) is not None for policy in policies)


def test_committing_ahead_costs_clockwork_goodput() -> None:
    """5 ms cost it up to a fifth where the objective is 25 ms, 10 ms a third to a half."""
    for letter, without in (("C", 2264), ("E", 4288)):

        def at(part: float, ahead_ms: float, letter: str = letter, full: float = without) -> bool:
            scenario = WORKLOADS[letter].scenario(full * part, requests=30_000)
            return holds(scenario, clockwork(ahead_ms)) is not None

        assert (at(0.97, 0.0), at(1.03, 0.0)) == (True, False)
        assert (at(0.77, 5.0), at(0.93, 5.0)) == (True, False)
        assert (at(0.47, 10.0), at(0.70, 10.0)) == (True, False)


def test_a_table_shows_every_figure_beside_the_known_one() -> None:
    found = goodput_of(WORKLOADS["A"], "symphony", seed=1, requests=10_000)
    row = Compared("A", "symphony", (found, found))
    assert row.worst_attainment >= 0.99
    (_, line) = table([row]).splitlines()
    assert line.split()[:3] == ["A", "symphony", f"{found.per_s:.0f}"]
    assert "5293-5365" in line


def test_the_difference_is_counted_from_the_nearer_end_of_a_range() -> None:
    found = goodput_of(WORKLOADS["A"], "symphony", seed=1, requests=10_000)

    def difference(per_s: float) -> float:
        goodput = type(found)(per_s, found.outcome)
        return Compared("A", "symphony", (goodput,)).difference

    assert difference(5300) == 0
    assert difference(5293 * 0.9) == pytest.approx(-0.1)
    assert difference(5365 * 1.1) == pytest.approx(0.1)


def test_searches_side_by_side_find_the_same_in_the_same_order() -> None:
    chosen = {letter: WORKLOADS[letter] for letter in "AK"}
    told: list[tuple[str, str, int]] = []

    def found(jobs: int) -> list[Compared]:
        told.clear()
        rows = compare(
            chosen,
            ["nexus", "symphony"],
            [1, 2],
            2_000,
            jobs=jobs,
            on_found=lambda letter, name, seed, _: told.append((letter, name, seed)),
        )
        return list(rows)

    alone, beside = found(1), found(3)
    assert [(row.workload, row.policy) for row in alone] == [
        ("A", "nexus"), ("A", "symphony"), ("K", "nexus"), ("K", "symphony"),
    ]  # fmt: skip
    assert alone == beside
    assert len(set(told)) == len(told) == 8
