"""The latency model: what it learns from batches, and what it says before and meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random

import pytest

from scheduler._native.latency import ROWS_MAX, LatencyModel

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
HOUR = 3600 * 1_000_000_000

Profile = Callable[[int], int]


def affine(rows: int) -> int:
    return round((1.053 * rows + 5.072) * MILLISECOND)


# Slower than the line below 7 rows, by 85 % at 1.
FLAT_START = {1: 11.33, 2: 11.4, 3: 11.5, 4: 11.6, 5: 11.8, 6: 12.0}


def flat_start(rows: int) -> int:
    return round(FLAT_START[rows] * MILLISECOND) if rows in FLAT_START else affine(rows)


def feed(
    model: LatencyModel,
    profile: Profile,
    sizes: Iterable[int],
    count: int,
    *,
    seed: int = 1,
    sigma: float = 0.0,
    factor: float = 1.0,
) -> LatencyModel:
    """`count` batches of random sizes, with lognormal noise."""
    random = Random(seed)
    choices = list(sizes)
    for _ in range(count):
        rows = random.choice(choices)
        noise = math.exp(sigma * random.gauss(0, 1))
        model.observe(rows, round(factor * profile(rows) * noise))
    return model


def error(model: LatencyModel, profile: Profile, sizes: Iterable[int], factor: float = 1) -> float:
    """The largest relative error of expected()."""
    return max(abs(model.expected(b) / (factor * profile(b)) - 1) for b in sizes)


def coverage(model: LatencyModel, profile: Profile, count: int, sigma: float, seed: int) -> float:
    """The share of fresh batches within their bound, while the model goes on learning."""
    before = model.accuracy
    feed(model, profile, range(1, 21), count, seed=seed, sigma=sigma)
    after = model.accuracy
    return 1 - (after.beyond - before.beyond) / (after.predicted - before.predicted)


# -- before anything is known ---------------------------------------------------------------


def test_a_model_that_nothing_is_known_of_holds_no_memory_and_promises_nothing() -> None:
    model = LatencyModel()
    assert model.memory_bytes == 0
    assert not model.known
    assert (model.expected(8), model.bound(8), model.margin) == (0, 0, 1.0)
    assert model.largest_within(1, 64) == 64
    assert model.rows_trusted(64) == 1
    assert (model.alpha_ns, model.beta_ns, model.slowdown(3)) == (0, 0, 1)
    assert model.sizes == []


def test_three_batches_make_it_known_and_one_slow_first_one_does_not_matter() -> None:
    model = LatencyModel()
    model.observe(1, 2000 * MILLISECOND)
    model.observe(1, affine(1))
    assert not model.known
    model.observe(1, affine(1))
    assert model.known
    assert model.expected(1) == pytest.approx(affine(1), rel=0.01)


def test_the_first_batch_of_a_size_may_be_slow() -> None:
    model = feed(LatencyModel(), affine, range(1, 5), 100)
    for rows in range(5, 9):
        model.observe(rows, 1000 * MILLISECOND)
        assert error(model, affine, range(1, 9)) < 0.01
        for _ in range(10):
            model.observe(rows, affine(rows))
    assert error(model, affine, range(1, 20)) < 0.01
    feed(model, affine, range(1, 9), 60)
    assert model.margin <= 1.005


# -- exact backends -------------------------------------------------------------------------


def test_the_first_batches_of_many_instances_may_be_slow() -> None:
    model = LatencyModel()
    for rows in (1, 2, 4, 1, 2, 4):
        model.observe(rows, 150 * MILLISECOND)
    model.observe(2, affine(2))
    assert model.expected(2) == pytest.approx(affine(2), rel=0.01)
    assert model.expected(4) < 2.5 * affine(2)


def test_what_is_known_of_many_batches_is_not_forgotten_for_a_short_one() -> None:
    model = feed(LatencyModel(), affine, range(1, 9), 100)
    model.observe(4, affine(4) // 5)
    assert error(model, affine, range(1, 9)) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_an_affine_backend_without_noise_is_known_after_fifty_batches(seed: int) -> None:
    model = feed(LatencyModel(), affine, range(1, 17), 50, seed=seed)
    assert error(model, affine, range(1, 65)) < 0.01
    assert model.alpha_ns == pytest.approx(1.053 * MILLISECOND, rel=0.01)
    assert model.beta_ns == pytest.approx(5.072 * MILLISECOND, rel=0.01)


@pytest.mark.parametrize("sizes", [[1], [8], range(1, 9), range(1, 21), range(1, 65)], ids=str)
def test_without_noise_nothing_is_lost_to_the_margin(sizes: Iterable[int]) -> None:
    model = feed(LatencyModel(), affine, sizes, 100)
    assert 1 <= model.margin <= 1.005
    misses = model.accuracy.beyond
    feed(model, affine, sizes, 1000, seed=2)
    assert 1 <= model.margin <= 1.0005
    assert model.accuracy.beyond == misses
    assert model.accuracy.drifts == 0
    assert all(affine(b) <= model.bound(b) <= 1.001 * affine(b) for b in sizes)


@pytest.mark.parametrize("seed", range(5))
def test_small_batches_that_are_off_the_line_have_their_own_times(seed: int) -> None:
    model = feed(LatencyModel(), flat_start, range(1, 21), 400, seed=seed)
    assert error(model, flat_start, range(1, 21)) < 0.01
    assert error(model, flat_start, range(21, 31)) < 0.05
    assert model.margin <= 1.005


def padded(rows: int) -> int:
    return affine(1 << (rows - 1).bit_length())


def test_a_model_that_pads_batches_to_powers_of_two_has_steps() -> None:
    model = feed(LatencyModel(), padded, range(1, 33), 3000)
    assert error(model, padded, range(1, 33)) < 0.001
    assert model.largest_within(padded(8), 64) == 8


# -- noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("profile", [affine, flat_start])
@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.3])
def test_the_bound_covers_what_it_is_to_cover(profile: Profile, sigma: float, seed: int) -> None:
    model = feed(LatencyModel(), profile, range(1, 21), 1000, seed=seed, sigma=sigma)
    assert coverage(model, profile, 10_000, sigma, seed + 100) == pytest.approx(0.99, abs=0.005)
    assert model.margin == pytest.approx(math.exp(2.326 * sigma), rel=0.75 * sigma)
    assert error(model, profile, range(1, 21)) < 0.75 * sigma
    assert model.accuracy.drifts == 0


@pytest.mark.parametrize("attainment", [0.9, 0.95, 0.999])
def test_other_shares_than_99_percent_are_kept_too(attainment: float) -> None:
    model = LatencyModel(attainment)
    feed(model, affine, range(1, 21), 2000, sigma=0.1)
    allowed = max(0.001, 0.15 * (1 - attainment))
    assert coverage(model, affine, 20_000, 0.1, 2) == pytest.approx(attainment, abs=allowed)


def test_noise_with_a_heavy_tail_is_covered_too() -> None:
    random = Random(3)
    model = LatencyModel()

    def run(count: int) -> None:
        for _ in range(count):
            rows = random.randint(1, 20)
            factor = 2.5 if random.random() < 0.03 else math.exp(0.03 * random.gauss(0, 1))
            model.observe(rows, round(affine(rows) * factor))

    run(2000)
    before = model.accuracy
    run(20_000)
    after = model.accuracy
    missed = (after.beyond - before.beyond) / (after.predicted - before.predicted)
    assert missed == pytest.approx(0.01, abs=0.005)
    # What three of a hundred batches meet is no property of the model.
    assert error(model, affine, range(1, 21)) < 0.02


@pytest.mark.parametrize("sigma", [0.0, 0.03, 0.1])
def test_what_somebody_else_does_on_the_device_widens_the_margin_alone(sigma: float) -> None:
    random = Random(7)
    model = LatencyModel()
    before = model.accuracy
    for step in range(20_000):
        rows = random.randint(1, 20)
        factor = 1.5 if step % 300 < 20 else 1.0
        model.observe(rows, round(affine(rows) * factor * math.exp(sigma * random.gauss(0, 1))))
        if step == 2000:
            before = model.accuracy
    after = model.accuracy
    missed = (after.beyond - before.beyond) / (after.predicted - before.predicted)
    assert missed < 0.015
    assert model.margin > 1.3
    assert error(model, affine, range(1, 21)) < 0.05 + 0.75 * sigma


def test_the_error_of_predictions_is_told() -> None:
    seen = feed(LatencyModel(), affine, range(1, 21), 3000, sigma=0.1).accuracy
    assert seen.observations == 3000
    assert seen.predicted == 2997
    assert abs(seen.log_ratio_mean) < 0.03
    assert seen.log_ratio_deviation == pytest.approx(0.1, rel=0.15)
    assert seen.beyond / seen.predicted == pytest.approx(0.01, abs=0.005)


def test_a_higher_attainment_widens_the_margin_at_once() -> None:
    model = feed(LatencyModel(0.9), affine, range(1, 21), 2000, sigma=0.1)
    before = model.margin
    model.attainment = 0.99
    assert model.margin > 1.05 * before


# -- change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.5, 0.6, 4.0])
@pytest.mark.parametrize("sigma", [0.0, 0.03, 0.1])
def test_a_change_of_speed_is_learned_within_fifty_batches(
    sigma: float, factor: float, seed: int
) -> None:
    model = feed(LatencyModel(), affine, range(1, 21), 600, seed=seed, sigma=sigma)
    before = model.margin
    feed(model, affine, range(1, 21), 8, seed=seed + 50, sigma=sigma, factor=factor)
    assert model.accuracy.drifts == 1
    if factor > 1:
        assert model.margin > 1.02 * before
    feed(model, affine, range(1, 21), 42, seed=seed + 100, sigma=sigma, factor=factor)
    assert error(model, affine, range(1, 21), factor) < 0.01 + 1.5 * sigma
    feed(model, affine, range(1, 21), 600, seed=seed + 150, sigma=sigma, factor=factor)
    assert model.accuracy.drifts == 1
    assert model.margin == pytest.approx(math.exp(2.326 * sigma), rel=0.005 + 0.75 * sigma)


def test_a_slow_change_is_followed_without_an_alarm() -> None:
    model = feed(LatencyModel(), affine, range(1, 21), 1000, sigma=0.05)
    for step in range(1, 101):
        feed(model, affine, range(1, 21), 50, seed=step, sigma=0.05, factor=1 + step / 200)
    assert error(model, affine, range(1, 21), 1.5) < 0.1
    seen = model.accuracy
    assert seen.beyond / seen.predicted < 0.03


def test_after_a_slow_down_larger_batches_are_probed_again() -> None:
    model = feed(LatencyModel(), affine, range(1, 41), 400)
    assert model.rows_measured == 40
    feed(model, affine, range(1, 11), 10, factor=2)
    assert model.accuracy.drifts == 1
    assert model.rows_measured <= 10
    assert model.rows_trusted(64) == model.rows_measured + 1
    # What larger batches take is known as well as it can be.
    assert error(model, affine, range(1, 41), 2) < 0.02
    assert [size.rows for size in model.sizes] == list(range(1, 41))
    for size in model.sizes:
        assert size.median_ns == pytest.approx(2 * affine(size.rows), rel=0.02)
        assert size.median_ns <= size.longest_ns


# -- several at once ------------------------------------------------------------------------


def test_batches_that_share_a_device_have_a_factor_per_number_of_them() -> None:
    random = Random(5)
    model = LatencyModel()
    slowdowns = {1: 1.0, 2: 1.3, 3: 1.7, 4: 2.2}
    for _ in range(4000):
        rows, running = random.randint(1, 16), random.choice((1, 1, 2, 3, 4))
        noise = math.exp(0.03 * random.gauss(0, 1))
        model.observe(rows, round(affine(rows) * slowdowns[running] * noise), running)
    for running, factor in slowdowns.items():
        assert model.expected(8, running) == pytest.approx(affine(8) * factor, rel=0.05)
        assert model.slowdown(running) / model.slowdown(1) == pytest.approx(factor, rel=0.05)
    # More than seen: the same.
    assert model.expected(8, 4) == model.expected(8, 9)
    # Not told how many: as many as usually, and the margin covers more of them.
    usual = (2 * 1.0 + 1.3 + 1.7 + 2.2) / 5
    assert model.expected(8) == pytest.approx(affine(8) * usual, rel=0.06)
    assert affine(8) * 2.1 < model.bound(8) < affine(8) * 2.5


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_batches_that_do_not_disturb_each_other_have_none(sigma: float) -> None:
    random = Random(6)
    model = LatencyModel()
    for _ in range(2000):
        rows, running = random.randint(1, 16), random.randint(1, 8)
        model.observe(rows, round(affine(rows) * math.exp(sigma * random.gauss(0, 1))), running)
    assert all(model.slowdown(n) == pytest.approx(1, abs=0.6 * sigma) for n in range(1, 9))
    assert model.margin <= math.exp(2.9 * sigma)


# -- priors ---------------------------------------------------------------------------------


def test_a_coarse_prior_predicts_until_batches_have_run() -> None:
    model = LatencyModel()
    for rows in (1, 2, 4, 8, 16, 32):
        model.prime(rows, affine(rows), 20)
    assert model.known
    assert error(model, affine, range(1, 33)) < 0.001
    assert model.bound(16) > 1.1 * affine(16)
    assert model.rows_trusted(64) == 35
    feed(model, affine, range(1, 33), 100)
    assert model.margin <= 1.005


def test_observations_replace_a_prior_and_correct_the_others() -> None:
    model = LatencyModel()
    for rows in (1, 2, 4, 8, 16, 32):
        model.prime(rows, affine(rows) / 2, 20)
    feed(model, affine, (1, 2, 4), 60)
    assert error(model, affine, (1, 2, 4)) < 0.01
    assert error(model, affine, (8, 16, 32)) < 0.1
    # It comes too late.
    model.prime(4, 1000 * MILLISECOND, 1000)
    assert error(model, affine, (1, 2, 4)) < 0.01


def test_a_prior_that_is_much_too_slow_does_not_lock_a_size_out() -> None:
    model = LatencyModel()
    model.prime(1, 700 * MILLISECOND, 3)
    model.observe(1, affine(1))
    model.observe(1, affine(1))
    assert model.expected(1) < 1.01 * affine(1)


def test_a_mean_of_fewer_than_three_batches_is_no_prior() -> None:
    model = LatencyModel()
    model.prime(1, 2000 * MILLISECOND, 2)
    assert not model.known
    assert model.memory_bytes == 0


# -- how far to go --------------------------------------------------------------------------


@pytest.mark.parametrize(("measured", "trusted"), [(1, 2), (2, 3), (19, 20), (20, 22), (45, 49)])
def test_no_batch_is_much_larger_than_one_measured(measured: int, trusted: int) -> None:
    model = LatencyModel()
    model.observe(measured, affine(measured))
    assert model.rows_trusted(1000) == trusted
    assert model.rows_trusted(trusted - 1) == trusted - 1
    assert model.rows_trusted(0) == 0


def test_requests_of_many_rows_may_be_merged() -> None:
    model = LatencyModel()
    model.observe(8, affine(8))
    assert model.rows_trusted(1000) == 9
    assert model.rows_trusted(1000, step=8) == 16
    assert model.rows_trusted(12, step=8) == 12
    assert model.rows_trusted(0, step=8) == 0


def test_a_thousand_rows_are_reached_in_some_dozen_steps() -> None:
    model = LatencyModel()
    steps = 0
    while model.rows_measured < 1000:
        rows = model.rows_trusted(1000)
        model.observe(rows, affine(rows))
        steps += 1
    assert steps <= 64
    assert error(model, affine, range(1, 1001)) < 0.01


def test_beyond_the_sizes_that_have_values_the_line_goes_on() -> None:
    model = feed(LatencyModel(), affine, (1, 100, 1000, ROWS_MAX, 2 * ROWS_MAX), 200)
    assert error(model, affine, (1, 10, 1000, ROWS_MAX, 2 * ROWS_MAX, 10 * ROWS_MAX)) < 0.01
    budget = affine(3 * ROWS_MAX)
    largest = model.largest_within(budget, 1 << 24)
    assert model.bound(largest) <= budget < model.bound(largest + 1)


# -- bounds on memory -----------------------------------------------------------------------


def test_memory_is_bounded() -> None:
    model = LatencyModel()
    model.observe(1, affine(1))
    assert model.memory_bytes < 4096
    feed(model, affine, range(1, 33), 5000, sigma=0.1)
    assert model.memory_bytes < 64 << 10
    feed(model, affine, range(1, 10_000), 30_000, sigma=0.1)
    assert model.memory_bytes < 512 << 10
    assert len(model.sizes) <= 512
