"""Batches formed by learned latency: when they go, how large they are, and what is given up."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import Answer, Dispatch, Engine
from tests.unit.engine.driver import MS, SECOND, Driver, users

pytestmark = pytest.mark.native

ALPHA, BETA = 1 * MS, 5 * MS


def latency(rows: int) -> int:
    return ALPHA * rows + BETA


def learned(**policy: Any) -> Driver:
    """One backend of which it is known how long batches of 1 to 32 rows take."""
    driver = Driver(rows_max=32, load_aware=True, **policy)
    for rows in range(1, 33):
        assert driver.engine.prime_latency(0, 0, rows, latency(rows), 20)
    driver.step()
    return driver


def load(driver: Driver, per_s: int, slo: int, duration: int) -> list[Dispatch]:
    """Requests at even distances, each batch done after its latency. The batches."""
    batches: list[Dispatch] = []
    running: list[tuple[int, Dispatch]] = []
    ends = driver.now + duration
    arrival = driver.now
    while driver.now < ends:
        if running and running[0][0] <= driver.now:
            driver.complete(running.pop(0)[1])
        if arrival <= driver.now:
            driver.engine.submit(driver.now, deadline=driver.now + slo)
            arrival += SECOND // per_s
        for batch in driver.step():
            batches.append(batch)
            running.append((driver.now + latency(batch.rows), batch))
        wakes = [at for at in driver.wakes()[-1:] if at > driver.now]
        driver.now = min([arrival, *(end for end, _ in running), *wakes])
    for _, batch in running:
        driver.complete(batch)
    return batches


def test_light_load_waits_for_nothing() -> None:
    driver = learned()
    batches = load(driver, per_s=20, slo=100 * MS, duration=2 * SECOND)
    assert {batch.rows for batch in batches} == {1}
    assert all(answer == ("completed", "none") for answer in outcomes(driver))


def outcomes(driver: Driver) -> list[tuple[str, str]]:
    return [(a.outcome, a.reason) for a in driver.actions if isinstance(a, Answer)]


def test_batches_are_as_large_as_the_load_needs() -> None:
    """500 rows a second need at least 5 rows a batch: with 1 + 5 / b ms a row, half the time."""
    driver = learned()
    batches = load(driver, per_s=500, slo=60 * MS, duration=4 * SECOND)
    late = batches[len(batches) // 2 :]
    assert 5 <= sum(batch.rows for batch in late) / len(late) <= 12
    assert {answer[0] for answer in outcomes(driver)} == {"completed"}


def test_overload_serves_what_can_be_in_time_and_gives_up_the_rest_before_it_is_late() -> None:
    driver = learned()
    slo = 40 * MS
    batches = load(driver, per_s=2_000, slo=slo, duration=4 * SECOND)
    answers = [a for a in driver.actions if isinstance(a, Answer)]
    completed = sum(a.outcome == "completed" for a in answers)
    # 35 rows in 40 ms is the most one batch after the other can do.
    assert completed > 4 * 1000 / 40 * 20
    assert {a.reason for a in answers if a.outcome == "expired"} <= {
        "expired_in_queue",
        "expired_in_flight",
    }
    in_flight = sum(a.reason == "expired_in_flight" for a in answers)
    assert in_flight <= completed // 50
    assert sum(batch.rows for batch in batches[50:]) / len(batches[50:]) > 12


def test_a_request_that_cannot_be_in_time_is_answered_at_once() -> None:
    driver = learned()
    driver.submit(1, deadline=driver.now + SECOND)
    (first,) = driver.step()
    driver.submit(2, deadline=driver.now + 15 * MS)
    # The batch takes longer than it usually does.
    driver.after(12 * MS).step()
    assert driver.answers() == {2: ("expired", "expired_in_queue")}
    assert users(first) == [1]


def test_what_nothing_is_known_of_goes_at_once() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    driver.submit(1, deadline=driver.now + MS)
    (batch,) = driver.step()
    assert users(batch) == [1]


def test_three_batches_make_the_latency_known() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    for user in range(3):
        assert not driver.engine.latency_status(0, 0).known
        driver.submit(user)
        (batch,) = driver.step()
        driver.after(7 * MS).complete(batch)
    status = driver.engine.latency_status(0, 0)
    assert status.known
    assert status.observations == 3
    assert [(size.rows, size.batches) for size in status.sizes] == [(1, 3)]
    assert status.sizes[0].backend_ns == pytest.approx(7 * MS, rel=0.01)


def test_nonsense_is_no_prior() -> None:
    driver = Driver(rows_max=8, load_aware=True)
    engine = driver.engine
    assert not engine.prime_latency(0, 0, 0, MS, 1)
    assert not engine.prime_latency(0, 0, 1, -MS, 1)
    assert not engine.prime_latency(0, 0, 1, MS, 0)
    assert not engine.prime_latency(0, 7, 1, MS, 1)
    assert not engine.prime_latency(9, 0, 1, MS, 1)
    assert not engine.latency_status(0, 0).known


def test_a_batch_never_takes_a_request_that_would_make_it_late() -> None:
    """The lead has time for a few rows."""
    driver = learned()
    budget = 15 * MS
    driver.submit_many([1], deadline=driver.now + budget)
    driver.submit_many(range(2, 12), deadline=driver.now + SECOND)
    (batch,) = driver.step()
    margin = driver.engine.latency_status(0, 0).margin
    assert latency(batch.rows) * margin <= budget < latency(batch.rows + 1) * margin * 1.01
    assert users(batch) == [*range(1, batch.rows + 1)]


def test_requests_without_a_deadline_fill_batches_and_never_expire() -> None:
    driver = learned()
    driver.submit_many([1, 2])
    driver.submit(3, deadline=driver.now + 50 * MS)
    (batch,) = driver.step()
    assert users(batch) == [3, 1, 2]


def shared(models: int, groups: int = 1, **policy: Any) -> Engine:
    """Models on backends whose instances exclude each other."""
    engine = Engine()
    placements = [(b, 1, True, b) for b in range(groups)]
    for model in range(models):
        engine.configure_model(
            model, placements, SECOND, **({"rows_max": 8, "load_aware": True} | policy)
        )
    for backend in range(groups):
        engine.set_backend(backend, True, SECOND)
    return engine


def dispatched(engine: Engine) -> list[Dispatch]:
    engine.check_invariants()
    return [a for a in engine.take_actions() if isinstance(a, Dispatch)]


@pytest.mark.parametrize("load_aware", [False, True])
def test_models_that_share_an_executor_run_one_after_the_other(load_aware: bool) -> None:
    engine = shared(3, load_aware=load_aware)
    for model in range(3):
        engine.submit(SECOND, model=model)
    for turn in range(3):
        engine.step(SECOND + turn)
        (batch,) = dispatched(engine)
        assert batch.model == turn
        engine.complete(batch.batch, SECOND + turn)
    engine.step(SECOND + 9)
    assert dispatched(engine) == []


def test_each_executor_of_a_group_takes_one_batch() -> None:
    engine = shared(5, groups=2)
    for model in range(5):
        engine.submit(SECOND, model=model)
    engine.step(SECOND)
    assert [(b.model, b.backend) for b in dispatched(engine)] == [(0, 0), (1, 1)]


def test_a_free_executor_takes_the_most_urgent_model() -> None:
    engine = shared(3)
    for model in range(3):
        for rows in range(1, 9):
            engine.prime_latency(model, 0, rows, latency(rows), 20)
    engine.submit(SECOND, model=0, deadline=2 * SECOND)
    engine.step(SECOND)
    (running,) = dispatched(engine)
    engine.submit(SECOND, model=0)
    engine.submit(SECOND, model=1, deadline=SECOND + 40 * MS)
    engine.submit(SECOND, model=2, deadline=SECOND + 30 * MS)
    order = []
    now = SECOND
    for _ in range(3):
        now += 6 * MS
        engine.complete(running.batch, now)
        engine.step(now)
        (running,) = dispatched(engine)
        order.append(running.model)
    assert order == [2, 1, 0]


def test_a_model_with_executors_of_its_own_is_not_held_up() -> None:
    engine = shared(1)
    engine.configure_model(1, [(0, 2, True)], SECOND, rows_max=8)
    engine.submit(SECOND, model=0)
    for signature in (1, 2):
        engine.submit(SECOND, model=1, signature=signature)
    engine.step(SECOND)
    assert [b.model for b in dispatched(engine)] == [1, 1, 0]


def test_pinned_requests_wait_for_their_executor() -> None:
    engine = shared(2, groups=2)
    engine.submit(SECOND, model=0, pinned_backend=1)
    engine.submit(SECOND, model=1, pinned_backend=1)
    engine.step(SECOND)
    (first,) = dispatched(engine)
    assert (first.model, first.backend) == (0, 1)
    engine.complete(first.batch, SECOND + MS)
    engine.step(SECOND + MS)
    assert [(b.model, b.backend) for b in dispatched(engine)] == [(1, 1)]


def test_ticks_end_with_the_traffic() -> None:
    driver = learned()
    load(driver, per_s=200, slo=50 * MS, duration=SECOND)
    wakes = 0
    for _ in range(2_000):
        driver.step()
        at = driver.wakes()[-1]
        if at > 1 << 62:
            break
        assert at >= driver.now
        driver.now = max(at, driver.now)
        wakes += 1
    assert driver.wakes()[-1] > 1 << 62
    assert wakes < 250


def test_a_backend_that_gives_every_batch_up_is_known_to_be_slow() -> None:
    """What takes longer than the objective never replies in time, and is learned all the same."""
    driver = Driver(rows_max=8, load_aware=True)
    for user in range(3):
        driver.submit(user, deadline=driver.now + 20 * MS)
        (batch,) = driver.step()
        driver.after(20 * MS).fail(batch, "given_up", 4)
        driver.after(2 * SECOND).step()
    # One more is tried, as the three may have been the first of three instances.
    driver.submit(3, deadline=driver.now + 19 * MS)
    assert driver.refusal(deadline=driver.now + 19 * MS) == "deadline_infeasible"
    status = driver.engine.latency_status(0, 0)
    assert status.known
    assert {rows: ns for rows, _, ns in status.sizes}[1] >= 20 * MS


def next_batches(driver: Driver) -> list[Dispatch]:
    """Of the next wake that dispatches something."""
    for _ in range(100):
        if batches := driver.step():
            return batches
        driver.now = max(driver.wakes()[-1], driver.now)
    raise AssertionError(f"nothing goes; last wakes {driver.wakes()[-3:]}, now {driver.now}")


def test_one_client_left_of_many_waits_no_longer_than_a_batch_takes() -> None:
    """The rate that is remembered of the many asks for batches that cannot come together."""
    driver = learned()
    load(driver, per_s=700, slo=30 * SECOND, duration=4 * SECOND)
    while driver.engine.queue_status(0).requests:
        batch = next_batches(driver)[0]
        driver.after(latency(batch.rows)).complete(batch)
    for user in range(20):
        asked = driver.now
        driver.submit(10_000 + user, deadline=driver.now + 30 * SECOND)
        batches = next_batches(driver)
        assert driver.now - asked <= latency(1)
        driver.after(latency(batches[0].rows)).complete(batches[0])


def test_a_higher_level_of_another_signature_goes_first() -> None:
    driver = learned(priority_levels=2)
    driver.submit(1, deadline=driver.now + SECOND)
    (first,) = driver.step()
    driver.submit(2, signature=1, priority=2, deadline=driver.now + 200 * MS)
    driver.submit(3, signature=2, priority=1, deadline=driver.now + 400 * MS)
    driver.after(latency(1)).complete(first)
    assert users(next_batches(driver)[0]) == [3]
