"""What the latency model does with times that cannot be, or that nothing explains."""

from __future__ import annotations

import math
from random import Random

import pytest

from scheduler._native.latency import LatencyModel

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
HOUR = 3600 * SECOND


def test_nonsense_is_counted_and_ignored() -> None:
    model = LatencyModel()
    for rows, ran_ns in ((0, 5), (1 << 25, 5), (1, 0), (1, -5), (1, HOUR + 1), (1, -(1 << 63))):
        model.observe(rows, ran_ns)
    for mean_ns in (0.0, -1.0, math.nan, math.inf, -math.inf, HOUR * 1.1):
        model.prime(1, mean_ns, 10)
    model.prime(0, 5.0, 10)
    assert model.accuracy.ignored == 13
    assert model.memory_bytes == 0
    model.observe(1, HOUR)
    model.observe(1 << 24, 1, 1 << 31)
    assert model.accuracy.ignored == 13
    assert model.accuracy.observations == 2


@pytest.mark.parametrize(
    "observed",
    [
        # Nothing but a line of negative times fits these.
        [(74, 90_081), (17, 26_069_221), (82, 2_945_691), (79, 297_033), (103, 1)],
        [(47, 15_948_248_112), (65, 5_192_368_772), (102, 31_748_904), (109, 959)],
        [(1, 337_284_379_770), (4, 487_616_218), (7, 2_367)],
    ],
)
def test_times_that_no_line_fits_leave_predictions_that_are_numbers(
    observed: list[tuple[int, int]],
) -> None:
    """Two replies that a busy host reads at one moment look like such times."""
    model = LatencyModel()
    for rows, ran_ns in observed:
        model.observe(rows, ran_ns)
    for rows, ran_ns in observed * 20:
        assert 0 < model.expected(rows) <= model.bound(rows) < HOUR
        model.observe(rows, ran_ns)
        assert math.isfinite(model.accuracy.log_ratio_mean)


def test_a_first_batch_of_ten_seconds_is_forgotten_by_the_line() -> None:
    model = LatencyModel()
    model.observe(8, 10 * SECOND)
    for _ in range(40):
        model.observe(8, MILLISECOND)
    assert model.expected(8) == pytest.approx(MILLISECOND, rel=0.01)
    assert model.expected(64) < 10 * MILLISECOND


@pytest.mark.parametrize("seed", range(20))
def test_jumps_and_nonsense_never_predict_for_ever(seed: int) -> None:
    """Factors of drifts must not pile up, nor margins without end."""
    rng = Random(seed)
    model = LatencyModel(rng.choice([0.5, 0.99, 0.9999]))
    sizes = [rng.randint(1, 64) for _ in range(6)]
    jump = 0.0
    for _ in range(1500):
        if rng.random() < 0.02:
            jump = rng.gauss(0, 5)
        ran_ns = MILLISECOND * math.exp(jump + rng.gauss(0, rng.choice([0.001, 1, 4])))
        model.observe(rng.choice(sizes), min(max(int(ran_ns), 1), HOUR))
        if model.known:
            for rows in (1, *sizes):
                assert 0 < model.expected(rows) <= 64 * HOUR
                assert model.bound(rows) <= 3000 * model.expected(rows)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(0.95, 0.95), (1.0, 0.9999), (0.0, 0.5), (-1.0, 0.5), (math.nan, 0.5), (math.inf, 0.9999)],
)
def test_the_attainment_is_held_to_what_can_be(asked: float, kept: float) -> None:
    model = LatencyModel()
    model.attainment = asked
    assert model.attainment == kept == LatencyModel(asked).attainment
