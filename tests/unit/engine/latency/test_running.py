"""Batches beside each other slow each other down: by how much is learned, and unlearned."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from scheduler._native.engine import OWN_EXECUTORS, Answer, Dispatch, Engine, Wake
from scheduler._native.latency import LatencyModel
from tests.unit.engine.driver import MS, SECOND, Driver

pytestmark = pytest.mark.native

NEVER = 1 << 62
OBJECTIVE = 25 * MS


def alone(rows: int) -> int:
    return (5 + rows) * MS


class World:
    """Poisson requests of one row. A device is shared evenly by those of `beside` that run.

    Of two batches each takes `factor` times as long as alone, while the other runs.
    """

    def __init__(self, driver: Driver, factor: float = 1.8, seed: int = 1) -> None:
        self.driver = driver
        self.factor = factor
        self.random = Random(seed)
        self.left: dict[int, float] = {}  # work, by batch
        self.device: dict[int, int] = {}
        self.devices = {backend: 0 for backend, *_ in driver.placements}
        self.wake = NEVER
        self.rows: list[int] = []

    def _slow(self, batch: int) -> float:
        beside = sum(self.device[other] == self.device[batch] for other in self.left)
        return 1 + (self.factor - 1) * (beside - 1)

    def _advance(self, now: int) -> None:
        passed = now - self.driver.now
        slow = {batch: self._slow(batch) for batch in self.left}
        for batch in self.left:
            self.left[batch] -= passed / slow[batch]
        self.driver.now = now
        for batch in [batch for batch, left in self.left.items() if left <= 1]:
            del self.left[batch]
            self.driver.engine.complete(batch, now)

    def run(self, per_s: float, requests: int) -> float:
        """The part of them that is in time."""
        driver, engine = self.driver, self.driver.engine
        deadlines: dict[int, int] = {}
        in_time = 0
        arrival = driver.now
        while requests > 0 or engine.requests_inflight or self.left:
            ends = [driver.now + math.ceil(w * self._slow(b)) for b, w in self.left.items()]
            arrives = arrival if requests > 0 else NEVER
            self._advance(max(driver.now, min([self.wake, arrives, *ends])))
            if arrives <= driver.now:
                requests -= 1
                deadline = driver.now + OBJECTIVE
                admitted = engine.submit(driver.now, user=requests, deadline=deadline)
                deadlines[requests] = deadline if admitted.handle else 0
                arrival += round(self.random.expovariate(per_s) * SECOND)
            self.wake = NEVER if self.wake <= driver.now else self.wake
            engine.step(driver.now)
            for action in engine.take_actions():
                if isinstance(action, Dispatch):
                    self.rows.append(action.rows)
                    noise = 1 + 0.01 * self.random.gauss(0, 1)
                    self.left[action.batch] = alone(action.rows) * noise
                    self.device[action.batch] = self.devices[action.backend]
                elif isinstance(action, Answer):
                    timely = driver.now <= deadlines[action.user]
                    in_time += action.outcome == "completed" and timely
                elif isinstance(action, Wake):
                    self.wake = action.at
        engine.check_invariants()
        return in_time / len(deadlines)


def two_instances() -> Driver:
    return Driver([(0, 2, True)], rows_max=16, load_aware=True)


def two_backends_of_one_device() -> Driver:
    placements = [(backend, 1, True, OWN_EXECUTORS, (3,)) for backend in (0, 1)]
    return Driver(placements, rows_max=16, load_aware=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("driver", [two_instances, two_backends_of_one_device])
def test_what_shares_a_device_is_not_taken_for_the_cost_of_rows(
    driver: Callable[[], Driver], seed: int
) -> None:
    """Larger batches ran beside others more often: rows seemed to cost two times too much, and
    batches stayed so small that a quarter of the requests were given up."""
    world = World(driver(), seed=seed)
    assert world.run(400, 6000) >= 0.87
    status = world.driver.engine.latency_status(0, 0)
    assert 1 * MS < status.alpha_ns < 2.2 * MS
    assert sum(world.rows) / len(world.rows) > 2.3


@pytest.mark.parametrize("driver", [two_instances, two_backends_of_one_device])
@pytest.mark.parametrize("per_s", [200, 250])
def test_two_that_share_a_device_lose_little(driver: Callable[[], Driver], per_s: float) -> None:
    for seed in (1, 2, 3):
        assert World(driver(), seed=seed).run(per_s, 6000) >= 0.985


def test_those_that_stop_to_disturb_each_other_are_as_fast_as_alone() -> None:
    world = World(two_instances())
    world.run(300, 4000)
    world.factor = 1.0
    world.run(300, 2000)
    assert world.run(300, 3000) >= 0.999
    status = world.driver.engine.latency_status(0, 0)
    assert status.margin < 1.15
    for rows, batches, ns in status.sizes:
        if batches > 100:
            assert ns == pytest.approx(alone(rows), rel=0.1)


def test_a_state_with_running_batches_goes_on_alike() -> None:
    world = World(two_instances())
    world.run(300, 1000)
    driver = world.driver
    for _ in range(4):
        driver.submit(1, deadline=driver.now + 100 * MS)
    first, second = driver.step(), driver.after(MS).step()
    batches = [*first, *second]
    assert len(batches) == 2
    saved = driver.engine.save()
    loaded = Engine()
    assert loaded.load(saved)
    loaded.check_invariants()
    for batch in batches:
        for engine in (driver.engine, loaded):
            engine.complete(batch.batch, driver.now + 9 * MS)
            engine.check_invariants()
    assert loaded.save() == driver.engine.save()


def test_a_state_goes_on_alike_also_while_factors_change() -> None:
    """Sizes are brought to new factors a few at a time: it is saved after every batch."""
    random = Random(3)
    placements = [(backend, 1, True, OWN_EXECUTORS, (3,)) for backend in (0, 1)]
    saving, loaded = (Driver(placements, rows_max=64, load_aware=True) for _ in range(2))
    loads = 0
    for _ in range(150):
        rows, pair = random.randint(1, 40), random.random() < 0.5
        for driver in (saving, loaded):
            driver.submit(1, rows=rows)
            batches = driver.step()
            if pair:
                driver.submit(2, rows=rows)
                batches += driver.step()
            driver.after(rows * MS * (2 if pair else 1))
            for batch in batches:
                driver.complete(batch)
        saved = saving.engine.save()
        assert loaded.engine.save() == saved
        loaded.engine = Engine()
        loads += loaded.engine.load(saved)
    assert loads == 150


@pytest.mark.parametrize(("device", "usual_ms"), [(3, 15), (4, 10)])
def test_what_another_model_runs_on_the_same_device_slows_a_batch(
    device: int, usual_ms: int
) -> None:
    """Every other batch has one of another model beside it; one of them takes no longer by that."""
    driver = Driver([(0, 1, True, OWN_EXECUTORS, (3,))], load_aware=True)
    other = [(1, 1, True, OWN_EXECUTORS, (device,))]
    driver.engine.configure_model(1, other, driver.now, load_aware=True)
    driver.engine.set_backend(1, True, driver.now)
    for i in range(400):
        beside = i % 2 == 1
        driver.submit(1)
        if beside:
            assert driver.engine.submit(driver.now, model=1, user=2).handle
        batches = driver.step()
        assert len(batches) == 1 + beside
        driver.after((20 if beside and device == 3 else 10) * MS)
        for batch in batches:
            driver.complete(batch)
    ((rows, _, ns),) = driver.engine.latency_status(0, 0).sizes
    assert rows == 1
    assert ns == pytest.approx(usual_ms * MS, rel=0.03)


def test_a_factor_needs_both_kinds() -> None:
    model = LatencyModel()
    for _ in range(200):
        model.observe(4, 18 * MS, 2)
    assert model.slowdown(1) == model.slowdown(2) == 1
    for _ in range(4):
        model.observe(4, 10 * MS, 1)
    assert model.slowdown(1) == model.slowdown(2) == 1
    for _ in range(40):
        model.observe(4, 10 * MS, 1)
        model.observe(4, 18 * MS, 2)
    assert model.slowdown(2) / model.slowdown(1) == pytest.approx(1.8, rel=0.05)


def test_those_that_no_lone_batch_is_compared_with_are_learned_all_the_same() -> None:
    model = LatencyModel()
    for _ in range(30):
        model.observe(4, 10 * MS, 1)
    for running in (2, 3, 4, 5, 6, 7, 8):
        for _ in range(60):
            model.observe(4, 10 * MS * running, running)
        assert model.expected(4) == pytest.approx(10 * MS * running, rel=0.15)
        assert model.bound(4) >= 10 * MS * running


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_factors_and_times_do_not_grow_against_each_other(sigma: float) -> None:
    """Lone batches are rare for long, and noise is not even."""
    random = Random(7)
    model = LatencyModel()

    def run(batches: int, lone: float) -> None:
        for _ in range(batches):
            running = 1 if random.random() < lone else 2
            noise = math.exp(sigma * random.expovariate(1))
            model.observe(4, round(10 * MS * (1.8 if running == 2 else 1) * noise), running)

    run(1000, 0.5)
    for lone in (0.01, 0.0, 0.03):
        run(10_000, lone)
        assert model.slowdown(2) / model.slowdown(1) == pytest.approx(1.8, rel=0.08)
        assert model.expected(4) == pytest.approx(18 * MS, rel=0.12)
        assert model.expected(4, 1) == pytest.approx(10 * MS, rel=0.15)


def test_between_two_numbers_it_is_speed_that_is_shared() -> None:
    random = Random(8)
    model = LatencyModel()
    for _ in range(2000):
        part = random.random()  # of its life, beside another one
        model.observe(4, round(10 * MS / ((1 - part) + part / 1.8)), 1 + part)
    assert model.slowdown(2) / model.slowdown(1) == pytest.approx(1.8, rel=0.06)
    assert model.expected(4, 1) == pytest.approx(10 * MS, rel=0.06)


def stall(random: Random) -> float:
    return random.uniform(5, 30) if random.random() < 0.04 else 1


def long_tail(random: Random) -> float:
    return random.paretovariate(3) / 2 ** (1 / 3)


def even(_random: Random) -> float:
    return 1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("tail", [even, stall, long_tail])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
@pytest.mark.parametrize("most", [2, 4, 8])
@pytest.mark.parametrize("spread", [0, 0.08, 0.35])
def test_what_large_batches_take_is_not_taken_for_a_slowdown(
    spread: float, most: int, sigma: float, tail: Callable[[Random], float], seed: int
) -> None:
    """The more run, the larger they are (spread 0: each size with its own number alone). None of
    them is slowed by that, though noise is strong and lopsided."""
    random = Random(seed)
    model = LatencyModel()
    largest = 1.0
    for _ in range(4000):
        rows = random.randint(1, 16)
        part = (rows - 1) / 16 + spread * random.gauss(0, 1)
        running = 1 + min(max(int(part * most), 0), most - 1)
        noise = math.exp(sigma * random.gauss(0, 1)) * tail(random)
        model.observe(rows, round(alone(rows) * noise), running)
        largest = max(largest, model.slowdown(most))
    assert largest < 1.15


@pytest.mark.parametrize("tail", [even, stall])
@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("spread", [0.35, 9])
def test_a_slowdown_is_found_where_large_batches_run_beside_others(
    spread: float, sigma: float, tail: Callable[[Random], float]
) -> None:
    random = Random(4)
    model = LatencyModel()
    for i in range(4000):
        rows = random.randint(1, 16)
        part = rows / 16 + spread * random.gauss(0, 1)
        running = 2 if part > 0.5 else 1
        noise = math.exp(sigma * random.gauss(0, 1)) * tail(random)
        model.observe(rows, round(alone(rows) * running * noise), running)
        assert model.slowdown(2) < 2 * 1.2
        if i >= 1000:
            assert model.slowdown(2) > 2 / 1.3
    assert model.expected(8, 1) == pytest.approx(alone(8), rel=0.05 + 0.5 * sigma)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_a_slowdown_that_comes_goes_and_grows_is_followed(sigma: float) -> None:
    random = Random(9)
    model = LatencyModel()

    def run(batches: int, first: float, last: float) -> None:
        for i in range(batches):
            rows, running = random.randint(1, 12), random.randint(1, 2)
            slow = first + (last - first) * i / batches if running == 2 else 1
            noise = math.exp(sigma * random.gauss(0, 1))
            model.observe(rows, round(alone(rows) * slow * noise), running)

    run(400, 1, 1)
    assert model.slowdown(2) == 1
    for factor in (2, 1, 1.5, 3, 1):
        run(400, factor, factor)
        assert model.slowdown(2) == pytest.approx(factor, rel=0.05 + sigma)
        assert model.expected(6, 1) == pytest.approx(alone(6), rel=0.08)
    run(1600, 1, 2)
    assert model.slowdown(2) == pytest.approx(2, rel=0.1 + sigma)
    assert model.accuracy.drifts < 12


def test_more_batches_are_never_thought_to_be_faster() -> None:
    random = Random(6)
    model = LatencyModel()
    for _ in range(3000):
        running = random.choice((1, 3, 6))
        slow = {1: 1, 3: 2.5, 6: 1.5}[running]
        noise = math.exp(0.05 * random.gauss(0, 1))
        model.observe(4, round(10 * MS * slow * noise), running)
    factors = [model.slowdown(running) for running in range(1, 20)]
    assert factors == sorted(factors)
    # Of two, nothing was seen: as of one. Of more than six: as of the most seen before them.
    assert factors[:2] == [1, 1]
    assert factors[2] == pytest.approx(2.5, rel=0.05)
    assert factors[-1] == factors[2]


def test_new_factors_leave_no_gap_in_what_is_foretold() -> None:
    """Hundreds of sizes are brought to new factors over many batches: until the last one is,
    predictions go by the former ones, or some would have the slow-down twice."""
    random = Random(5)
    model = LatencyModel()
    changes = 0
    for i in range(3000):
        rows, running = random.randint(1, 400), random.choice((1, 2))
        before = model.slowdown(2), model.expected(200)
        model.observe(rows, (40 + rows) * MS * running, running)
        changes += model.slowdown(2) != before[0]
        if i > 40:
            assert model.expected(200) == pytest.approx(before[1], rel=0.25)
            assert 0.8 * 240 * MS < model.expected(200, 1) < 1.6 * 240 * MS
    assert changes >= 2
    assert model.slowdown(2) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_load_that_comes_all_at_once_is_known_after_a_few_batches(seed: int) -> None:
    """Sizes known of batches that ran alone, then others run beside nearly all: what a drift made
    of every size was taken for what others cost once more, and the sizes followed much later."""
    random = Random(seed)
    model = LatencyModel()
    sizes = range(1, 65)

    def ran(rows: int, factor: float) -> int:
        return round((5 + rows) * MS * factor * math.exp(0.03 * random.gauss(0, 1)))

    def told() -> float:
        return sum(model.expected(rows) / ((5 + rows) * MS * 1.8) for rows in sizes) / len(sizes)

    for _ in range(12 * len(sizes)):
        rows = random.choice(sizes)
        model.observe(rows, ran(rows, 1), 1)
    parts = []
    for _ in range(600):
        running = 2 if random.random() < 0.95 else 1
        rows = random.choice(sizes)
        model.observe(rows, ran(rows, 1.8 if running == 2 else 1), running)
        parts.append(told())
    assert min(parts[8:]) > 0.85
    assert max(parts) < 1.25
