"""Spells in which somebody else has the host: when they are over, batches are as large as before.

What is thought to be too late for every deadline is not run, so nothing of a spell may be believed
for longer than batches of other sizes take to show that it is over.
"""

from __future__ import annotations

import math
from random import Random

import pytest

from scheduler._native.latency import LatencyModel
from tests.unit.engine.driver import MS

OBJECTIVE = 25 * MS
# What the engine asks for where 99 % of the requests are to be in time.
COVERED = 0.97


def quiet_ns(rows: int) -> float:
    return (1.053 * rows + 5.7) * MS


class Loop:
    """Batches of about 9 rows on so many instances, or as many rows as the objective leaves."""

    def __init__(self, instances: int, seed: int) -> None:
        self.instances = instances
        self.random = Random(seed)
        self.model = LatencyModel(COVERED)

    def batch(self, stalled_ns: float = 0) -> int:
        wanted = max(1, min(14, round(self.random.gauss(9, 2.5))))
        rows = 1
        if self.model.known:
            budget = int(OBJECTIVE - self.random.uniform(0, 8) * MS)
            rows = max(1, min(wanted, self.model.largest_within(budget, 64)))
        noise = math.exp(abs(self.random.gauss(0, 0.03)))
        self.model.observe(rows, round(quiet_ns(rows) * noise + stalled_ns), self.instances)
        return rows

    def mean_rows(self, batches: int) -> float:
        return sum(self.batch() for _ in range(batches)) / batches

    def stall(self, longest_ns: float) -> None:
        """All that run meet it, somewhere in their time."""
        for _ in range(self.instances):
            self.batch(longest_ns * self.random.uniform(0.6, 1))

    def spell(self, batches: int) -> None:
        for _ in range(batches // self.instances):
            stalled = self.random.random() < 0.5
            self.stall(self.random.expovariate(1 / (15 * MS)) if stalled else 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("instances", [1, 4])
def test_batches_are_as_large_as_before_soon_after_a_spell(instances: int, seed: int) -> None:
    loop = Loop(instances, seed)
    loop.mean_rows(1500)
    before = loop.mean_rows(500)
    for _ in range(3):
        loop.spell(600)
        loop.mean_rows(1000)
        assert loop.mean_rows(500) > 0.9 * before


@pytest.mark.parametrize("instances", [4, 8, 16])
def test_a_stall_that_all_who_run_meet_is_no_drift(instances: int) -> None:
    loop = Loop(instances, seed=instances)
    loop.mean_rows(1500)
    for _ in range(20):
        loop.stall(30 * MS)
        loop.mean_rows(20 * instances)
    assert loop.model.accuracy.drifts == 0
    for rows in range(5, 13):
        assert loop.model.expected(rows) < 1.1 * quiet_ns(rows)


@pytest.mark.parametrize("instances", [1, 4, 8, 16, 24])
@pytest.mark.parametrize("factor", [0.5, 1.4, 2])
def test_a_change_of_speed_is_found_on_any_number_of_instances(
    instances: int, factor: float
) -> None:
    """Also of sizes that are not seen since, however many batches of one size run at once."""
    loop = Loop(instances, seed=1)
    loop.mean_rows(1500)
    for _ in range(64):
        noise = math.exp(loop.random.gauss(0, 0.03))
        loop.model.observe(8, round(factor * quiet_ns(8) * noise), instances)
    assert loop.model.accuracy.drifts == 1
    for rows in (5, 8, 12):
        assert loop.model.expected(rows) == pytest.approx(factor * quiet_ns(rows), rel=0.1)


def test_a_margin_for_noise_is_gone_soon_after_it() -> None:
    random = Random(5)
    model = LatencyModel(COVERED)

    def feed(batches: int, sigma: float) -> None:
        for _ in range(batches):
            model.observe(8, round(quiet_ns(8) * math.exp(random.gauss(0, sigma))))

    feed(1500, 0.02)
    quiet = model.margin
    feed(600, 0.5)
    assert model.margin > 2
    feed(550, 0.02)
    assert model.margin < 1.02 * quiet


@pytest.mark.parametrize(
    ("every", "slow", "factor"), [(400, 20, 1.3), (600, 20, 1.5), (1200, 40, 1.3), (3000, 300, 1.3)]
)
def test_what_comes_back_again_and_again_is_covered(every: int, slow: int, factor: float) -> None:
    """On eight instances, where it is no drift."""
    random = Random(every)
    model = LatencyModel(COVERED)
    for number in range(30_000):
        worse = factor if number % every < slow else 1
        model.observe(4, round(10 * MS * worse * math.exp(random.gauss(0, 0.12))), 8)
    seen = model.accuracy
    assert seen.drifts == 0
    assert seen.beyond / seen.predicted == pytest.approx(1 - COVERED, abs=0.002)
