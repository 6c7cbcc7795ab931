"""What is refused because it is foreseen to be late, and what never is."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from scheduler._native.engine import Admitted, Engine, Level
from tests.unit.engine.driver import MS, SECOND, Driver, users
from tests.unit.engine.load import Stream, latency, learned, run

pytestmark = pytest.mark.native


def ask(driver: Driver, budget: int, **request: Any) -> Admitted:
    return driver.engine.submit(driver.now, deadline=driver.now + budget, **request)


def floor(driver: Driver, rows: int = 1) -> int:
    """What a batch takes, as the engine sees it."""
    refused = ask(driver, 1, rows=rows)
    assert (refused.reason, refused.handle) == ("deadline_infeasible", 0)
    return refused.predicted_ns


def test_a_deadline_below_the_floor_is_infeasible_however_idle_the_model_is() -> None:
    driver = learned()
    least = floor(driver)
    assert least == latency(1)
    refused = ask(driver, least - 1)
    assert (refused.reason, refused.handle) == ("deadline_infeasible", 0)
    assert (refused.predicted_ns, refused.budget_ns) == (least, least - 1)
    assert refused.retry_after_ns == 0
    assert ask(driver, least).handle


def test_the_floor_of_a_request_is_that_of_its_rows() -> None:
    driver = learned()
    assert ask(driver, floor(driver, 8), rows=8).handle


def test_what_would_come_after_the_running_batch_waits_for_its_end() -> None:
    driver = learned(staged_batches_max=0)
    driver.submit(1, rows=10, deadline=driver.now + SECOND)
    driver.step()
    driver.after(5 * MS)
    done = latency(10) - 5 * MS + floor(driver)
    refused = ask(driver, done - 1)
    assert refused.reason == "predicted_late"
    assert (refused.predicted_ns, refused.budget_ns) == (done, done - 1)
    assert refused.retry_after_ns == MS, "the time after which it fits, at least a millisecond"
    assert ask(driver, done).handle


def test_the_retry_time_is_what_the_forecast_is_late() -> None:
    driver = learned(staged_batches_max=0)
    driver.submit(1, rows=32, deadline=driver.now + SECOND)
    driver.step()
    refused = ask(driver, 10 * MS)
    assert refused.retry_after_ns == latency(32) + floor(driver) - 10 * MS
    driver.after(refused.retry_after_ns)
    assert ask(driver, 10 * MS).handle


def test_queued_work_of_a_lower_level_is_not_waited_for() -> None:
    driver = learned(priority_levels=2, staged_batches_max=0)
    driver.submit(1, rows=20, deadline=driver.now + SECOND)
    driver.step()
    budget = latency(20) + floor(driver)
    driver.submit(2, priority=2, rows=30, deadline=driver.now + SECOND)
    assert ask(driver, budget, priority=1).handle
    above = learned(priority_levels=2, staged_batches_max=0)
    above.submit(1, rows=20, deadline=above.now + SECOND)
    above.step()
    above.submit(2, priority=1, rows=30, deadline=above.now + SECOND)
    assert ask(above, budget, priority=2).reason == "predicted_late"


def test_queued_work_without_a_deadline_is_not_waited_for() -> None:
    driver = learned(staged_batches_max=0)
    driver.submit(1, rows=20, deadline=driver.now + SECOND)
    driver.step()
    driver.submit_many(range(2, 202))
    budget = latency(20) + floor(driver)
    assert ask(driver, budget - 1).reason == "predicted_late"
    assert ask(driver, budget).handle


def test_what_will_have_come_of_age_is_waited_for() -> None:
    """It goes before all levels, whether it has a deadline or not."""

    def asked(aging_ns: int) -> Admitted:
        driver = learned(priority_levels=2, aging_ns=aging_ns, staged_batches_max=0)
        driver.submit(1, rows=20, deadline=driver.now + SECOND)
        driver.step()
        driver.submit(2, priority=2, rows=30)
        return ask(driver, latency(20) + floor(driver), priority=2)

    assert asked(latency(20) * 2).handle
    assert asked(latency(20) // 2).reason == "predicted_late"


def test_a_flood_without_deadlines_does_not_keep_out_what_has_one() -> None:
    driver = learned(queue_requests_max=10**6)
    flood, few = streams = [Stream(1_500, {}), Stream(20, {}, 100 * MS)]
    run(driver, streams, 2 * SECOND)
    assert set(few.counts) == {"in_time"}
    assert set(flood.counts) == {"in_time"}


def test_without_objective_and_deadline_only_full_queues_refuse() -> None:
    driver = learned(queue_requests_max=500, levels=[Level(slo_ns=20 * MS, best_effort=True)])
    none = learned(queue_requests_max=500)
    for _ in range(500):
        driver.submit(deadline=driver.now + 30 * MS)  # of a class without objective
        none.submit()
    assert driver.refusal(deadline=driver.now + 30 * MS) == "queue_full"
    assert none.refusal() == "queue_full"


def test_what_nothing_is_known_of_is_admitted() -> None:
    driver = Driver(rows_max=32, load_aware=True)
    for _ in range(1000):
        driver.submit(deadline=driver.now + 1)


def test_fixed_delay_batching_refuses_nothing_for_being_late() -> None:
    driver = learned(load_aware=False)
    for _ in range(1000):
        driver.submit(deadline=driver.now + 1)


def test_a_refused_request_leaves_no_trace_but_its_counters() -> None:
    driver = learned(staged_batches_max=0)
    driver.submit(1, rows=32, deadline=driver.now + SECOND)
    driver.step()
    before = driver.engine.queue_status(0)
    assert ask(driver, 10 * MS, signature=7).reason == "predicted_late"
    assert driver.engine.queue_status(0) == before
    assert driver.engine.requests_inflight == 1
    counters = driver.engine.counters(0)
    assert counters["outcomes"]["refused", "predicted_late"] == 1
    assert (counters["admitted"], counters["refused"]) == (1, 1)
    driver.engine.check_invariants()


def test_one_request_a_second_goes_against_a_forecast_that_refuses_all() -> None:
    """Only what runs is learned from: a bad spell must not last for ever."""
    driver = learned()
    admitted = 0
    for _ in range(40):
        admitted += bool(ask(driver.after(100 * MS), 2 * MS).handle)
        driver.step()
    assert 1 <= admitted <= 5


def test_a_probe_that_was_never_run_is_not_followed_by_another_at_once() -> None:
    driver = learned()
    driver.submit(1, rows=32, deadline=driver.now + SECOND)
    (batch,) = driver.step()
    driver.after(latency(32) // 3).complete(batch)
    # What ran last denied what is foreseen: the next one goes in.
    probe = ask(driver.after(MS), 2 * MS).handle
    assert probe
    driver.cancel(probe)
    for _ in range(20):
        assert ask(driver.after(MS), 2 * MS).reason == "deadline_infeasible"


def test_what_is_refused_does_not_change_for_whom_batches_are_planned() -> None:
    """One backend is fast with small batches, the other with large ones."""
    driver = Driver(2, rows_max=16, load_aware=True, staged_batches_max=0)
    for backend, one_ns, eight_ns in ((0, 5 * MS, 80 * MS), (1, 40 * MS, 50 * MS)):
        for rows, ns in ((1, one_ns), (8, eight_ns)):
            assert driver.engine.prime_latency(0, backend, rows, ns, 20)
    driver.submit_many([1, 2], mergeable=False, deadline=driver.now + 60 * MS)
    first, _ = driver.step()
    assert first.backend == 0
    driver.submit(3, deadline=driver.now + 20 * MS)
    assert ask(driver, 45 * MS, rows=8, mergeable=False).reason == "deadline_infeasible"
    driver.after(5 * MS).complete(first)
    assert [(batch.backend, users(batch)) for batch in driver.step()] == [(0, [3])]


def test_less_work_is_never_foreseen_to_take_longer() -> None:
    for seed in range(50):
        random = Random(seed)
        work = [random.randint(1, 12) for _ in range(random.randint(1, 12))]
        predicted = []
        for count in range(len(work) + 1):
            driver = learned(staged_batches_max=0)
            driver.submit(rows=32, deadline=driver.now + SECOND)
            driver.step()
            for rows in work[:count]:
                driver.submit(rows=rows, deadline=driver.now + SECOND)
            predicted.append(ask(driver, floor(driver)).predicted_ns)
        assert predicted == sorted(predicted), f"seed {seed}"


def test_a_loaded_engine_foresees_what_the_saved_one_does() -> None:
    for seed in range(20):
        random = Random(seed)
        driver = learned(2, priority_levels=3)
        driver.engine.set_tenants([1, 2, 1])
        for _ in range(200):
            driver.after(random.choice([0, MS // 4, MS]))
            priority, tenant = random.randint(1, 3), random.randint(0, 2)
            kind = {"priority": priority, "tenant": tenant, "signature": random.randint(0, 3)}
            ask(driver, random.randint(5, 60) * MS, **kind)
            if random.random() < 0.3:
                driver.step()
        twin = Engine()
        state = driver.engine.save()
        assert twin.load(state)
        assert twin.save() == state
        for _ in range(100):
            driver.after(random.choice([0, MS]))
            request = {
                "deadline": driver.now + random.randint(5, 60) * MS,
                "priority": random.randint(1, 3),
                "tenant": random.randint(0, 2),
                "signature": random.randint(0, 3),
            }
            assert twin.submit(driver.now, **request) == driver.engine.submit(
                driver.now, **request
            ), f"seed {seed}"
            twin.step(driver.now)
            driver.engine.step(driver.now)
            assert twin.take_actions() == driver.engine.take_actions(), f"seed {seed}"
        assert twin.save() == driver.engine.save(), f"seed {seed}"


def test_overload_is_refused_at_arrival_and_not_in_the_queue() -> None:
    driver = learned(8)
    (flood,) = streams = [Stream(20_000, {}, 40 * MS)]
    run(driver, streams, 2 * SECOND)
    refused, expired = flood.counts["predicted_late"], flood.counts["expired_in_queue"]
    assert refused > 10 * expired
    # 26 rows in 31 ms on each of eight backends is what 40 ms allow.
    assert flood.counts["in_time"] > 0.9 * 2 * 8 * 26 / 0.031
    assert flood.counts["in_time"] + refused + expired == sum(flood.counts.values())


def test_light_load_is_never_refused() -> None:
    driver = learned(8)
    streams = [Stream(2_000, {}, 40 * MS)]
    run(driver, streams, 2 * SECOND)
    assert set(streams[0].counts) == {"in_time"}
