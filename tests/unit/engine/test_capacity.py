"""What a change of placements, policies and backends means for the forecasts of others."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import Engine
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import Stream, latency, learned, run

pytestmark = pytest.mark.native


def fits_beside_a_batch(driver: Driver) -> bool:
    """Whether a request that can wait for nothing is let in while one backend is busy."""
    driver.submit(rows=32, deadline=driver.now + SECOND)
    assert len(driver.step()) == 1
    asked = driver.engine.submit(driver.now, deadline=driver.now + latency(1))
    assert asked.handle or asked.predicted_ns == latency(32) + latency(1)
    return asked.handle != 0


@pytest.mark.parametrize("how", ["backend away", "placement not ready"])
def test_what_is_down_is_no_capacity(how: str) -> None:
    driver = learned(2)
    assert fits_beside_a_batch(learned(2))
    if how == "backend away":
        driver.engine.set_backend(1, False, driver.now)
    else:
        driver.configure([(0, 1, True), (1, 1, False)])
    assert not fits_beside_a_batch(driver)


def test_what_comes_back_is_capacity_at_once() -> None:
    driver = learned(2)
    driver.engine.set_backend(1, False, driver.now)
    driver.step()
    driver.engine.set_backend(1, True, driver.now)
    assert fits_beside_a_batch(driver)


def test_after_the_loss_of_all_backends_nothing_is_foreseen() -> None:
    driver = learned(2)
    for backend in range(2):
        driver.engine.set_backend(backend, False, driver.now)
    assert driver.submit(deadline=driver.now + latency(1))


def test_half_of_the_backends_answer_as_many_in_time_as_if_there_were_no_others() -> None:
    halved, half = learned(8), learned(4)
    for backend in range(4, 8):
        halved.engine.set_backend(backend, False, halved.now)
    in_time = []
    for driver in (halved, half):
        stream = Stream(8_000, {}, 40 * MS)
        run(driver, [stream], SECOND)
        in_time.append(stream.counts["in_time"])
    assert in_time[0] > 0.97 * in_time[1]


def loaded_with_levels() -> Driver:
    """Its cursor has learned to shed."""
    driver = learned(1, priority_levels=2)
    streams = [Stream(2_000, {"priority": 1}, 20 * MS), Stream(2_000, {"priority": 2}, 20 * MS)]
    run(driver, streams, 2 * SECOND)
    return driver


def shed(driver: Driver, again: bool) -> int:
    streams = [Stream(2_000, {"priority": 1}, 20 * MS), Stream(2_000, {"priority": 2}, 20 * MS)]
    if again:
        driver.engine.configure_model(1, [(9, 1, True)], driver.now, rows_max=4, load_aware=True)
        driver.step()
    run(driver, streams, SECOND // 5)
    return streams[1].counts["priority_shed"]


def test_a_new_model_leaves_alone_what_was_learned_of_others() -> None:
    alone, beside = (shed(loaded_with_levels(), again) for again in (False, True))
    assert alone > 0
    assert beside == alone


def test_a_state_saved_between_a_change_and_its_step_is_whole() -> None:
    driver = loaded_with_levels()
    driver.engine.configure_model(1, [(9, 1, True)], driver.now, rows_max=4, load_aware=True)
    state = driver.engine.save()
    twin = Engine()
    assert twin.load(state)
    assert twin.save() == state
    for _ in range(300):
        driver.after(MS // 4)
        request = {"deadline": driver.now + 20 * MS, "priority": 2}
        assert twin.submit(driver.now, **request) == driver.engine.submit(driver.now, **request)
        twin.step(driver.now)
        driver.engine.step(driver.now)
        assert twin.take_actions() == driver.engine.take_actions()


def paused(driver: Driver, backend: int, failures: int) -> int:
    """A backend where nothing ran, so many times in a row. When it is tried again."""
    for user in range(failures):
        driver.submit(user, pinned_backend=backend, deadline=driver.now + 1000 * MS)
        (batch,) = driver.step()
        driver.fail(batch, "nothing_ran")
        driver.cancel(batch.members[0].request)
        pause = (10 << user) * MS
        if user < failures - 1:
            driver.after(pause)
    return driver.now + pause


def test_a_backend_that_pauses_after_failures_is_no_capacity() -> None:
    driver = learned(2)
    until = paused(driver, backend=0, failures=5)  # 160 ms
    driver.submit(10, rows=32, deadline=driver.now + 1000 * MS)
    (batch,) = driver.step()
    assert batch.backend == 1
    assert driver.refusal(deadline=driver.now + 30 * MS) == "predicted_late"
    # Behind the batch on the other one.
    driver.submit(11, deadline=driver.now + 60 * MS)
    driver.now = until
    driver.submit(12, deadline=driver.now + 30 * MS)


def test_what_a_backend_can_do_after_its_pause_is_let_in() -> None:
    driver = learned(1)
    until = paused(driver, backend=0, failures=5)
    assert driver.refusal(deadline=driver.now + 100 * MS) == "predicted_late"
    refused = driver.engine.submit(driver.now, deadline=driver.now + 100 * MS)
    assert driver.now + refused.retry_after_ns == pytest.approx(
        until + latency(1) - 100 * MS, abs=MS
    )
    driver.submit(10, deadline=until + 10 * MS)
    driver.now = until
    (batch,) = driver.step()
    driver.after(latency(1)).complete(batch)
    assert driver.answers()[10] == ("completed", "none")
    # A batch that ran ends all of it.
    driver.submit(11, deadline=driver.now + 10 * MS)


def test_an_executor_that_another_model_uses_is_capacity() -> None:
    driver = Driver([(0, 1, True, 0)], rows_max=32, load_aware=True)
    driver.engine.configure_model(1, [(1, 1, True, 0)], driver.now, rows_max=32, load_aware=True)
    driver.engine.set_backend(1, True, driver.now)
    for model in (0, 1):
        for rows in range(1, 33):
            assert driver.engine.prime_latency(model, model, rows, latency(rows), 20)
    driver.submit(20, model=1, deadline=driver.now + 1000 * MS)
    (batch,) = driver.step()
    driver.after(latency(1)).complete(batch)
    paused(driver, backend=0, failures=5)
    driver.submit(21, model=1, deadline=driver.now + 10 * MS)


FACTORS = {1: 20}  # the second backend


def of_unequal_backends(**policy: Any) -> Driver:
    """A slow backend, of which batches of its own are known, beside a fast one."""
    driver = learned(2, FACTORS, rows_max=8, **policy)
    for user in range(12):
        driver.submit(user, pinned_backend=1)
        (batch,) = driver.step()
        driver.after(latency(1) * FACTORS[1]).complete(batch)
    run(driver, [Stream(100, {"signature": 1}, 60 * MS)], SECOND, factors=FACTORS)
    return driver


@pytest.mark.parametrize("loose", [{"signature": 2}, {"signature": 2, "priority": 2}])
def test_requests_with_much_time_let_no_more_in_that_only_a_fast_backend_has_in_time(
    loose: dict[str, int],
) -> None:
    """A third of what was let in ran out of time in the queue."""
    in_time = []
    for per_s in (0, 20):
        driver = of_unequal_backends(priority_levels=2)
        tight = Stream(700, {"signature": 1, "priority": 1}, 60 * MS)
        beside = [Stream(per_s, loose, 3 * SECOND)] if per_s else []
        run(driver, [tight, *beside], 4 * SECOND, factors=FACTORS)
        in_time.append(tight.counts["in_time"])
    assert in_time[1] > 0.9 * in_time[0]


def test_after_the_loss_of_a_fast_backend_what_a_slow_one_can_do_is_let_in() -> None:
    driver = of_unequal_backends()
    driver.engine.set_backend(0, False, driver.now)
    driver.submit(100, signature=1, deadline=driver.now + 5 * SECOND)
    (batch,) = driver.step()
    assert batch.backend == 1


def test_a_batch_on_a_slow_backend_leaves_the_fast_one_free() -> None:
    driver = of_unequal_backends()
    driver.submit(100, pinned_backend=1)
    (batch,) = driver.step()
    assert batch.backend == 1
    driver.submit(101, signature=1, deadline=driver.now + 30 * MS)
    (batch,) = driver.step()
    assert batch.backend == 0
