"""Batches that leave before an instance is free: the way there and back costs it no time."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import Dispatch, Engine
from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine
from tests.unit.engine.driver import MS, SECOND, US, Driver
from tests.unit.engine.far_backends import SLO, Far, holds

pytestmark = pytest.mark.native

PER_S = 1200  # half more than an instance can do


def overloaded(wire: int, instances: int = 1, seconds: int = 10, **policy: Any) -> Far:
    policy = {"rows_max": 16, "load_aware": True} | policy
    far = Far(Driver([(0, instances, True)], **policy), wire)
    far.run(PER_S * instances, seconds * SECOND)
    return far


def sent_until(far: Far, count: int) -> list[Dispatch]:
    """So many batches, of which none is answered."""
    driver = far.driver
    sent: list[Dispatch] = []
    for _ in range(4000):
        driver.engine.submit(driver.now, deadline=driver.now + SLO)
        sent += driver.step()
        if len(sent) == count:
            return sent
        driver.now += 100 * US
    raise AssertionError("none left early")


@pytest.mark.parametrize("wire", [1 * MS, 1500 * US, 2 * MS])
def test_the_way_there_and_back_is_hidden(wire: int) -> None:
    far = overloaded(wire)
    far.run(PER_S, 5 * SECOND)
    # Without a head start an instance is idle for both ways before each batch.
    assert far.idle < 0.25 * 2 * wire * len(far.sent)
    assert far.usual() == pytest.approx(2 * wire, rel=0.25)


@pytest.mark.parametrize("instances", [2, 4, 8])
def test_several_instances_that_end_together_are_learned_of(instances: int) -> None:
    wire = 2 * MS
    far = overloaded(wire, instances, staged_batches_max=instances)
    far.run(PER_S * instances, 2 * SECOND)
    assert far.idle < 0.25 * 2 * wire * len(far.sent)


@pytest.mark.parametrize("wire", [0, 300 * US])
def test_where_there_is_hardly_a_way_batches_leave_when_an_instance_is_free(wire: int) -> None:
    far = overloaded(wire)
    far.run(PER_S, 5 * SECOND)
    assert len(far.sent) > 200
    assert len(far.early) <= 0.02 * len(far.sent)


def test_a_way_that_becomes_shorter_and_longer_is_followed() -> None:
    far = overloaded(2 * MS)
    for wire in (1 * MS, 1600 * US):
        far.wire = wire
        far.run(PER_S, 90 * SECOND)
        far.run(PER_S, 5 * SECOND)
        assert far.usual() == pytest.approx(2 * wire, rel=0.3)


def test_a_stall_while_it_is_learned_does_not_keep_it_from_being_learned() -> None:
    far = overloaded(2 * MS, seconds=0)
    stalls_from = far.driver.now + 500 * MS
    stalled: list[Dispatch] = []

    def takes(batch: Dispatch, start: int) -> int:
        stalls = not stalled and start >= stalls_from
        stalled.extend([batch] * stalls)
        return holds(batch.rows) + 200 * MS * stalls

    far.takes = takes
    far.run(PER_S, 20 * SECOND)
    assert stalled
    far.run(PER_S, 5 * SECOND)
    assert far.usual() == pytest.approx(4 * MS, rel=0.25)


def test_a_way_there_that_comes_late_is_learned_soon() -> None:
    far = overloaded(0, seconds=60)
    far.wire = 2 * MS
    far.run(PER_S, 250 * SECOND)
    far.run(PER_S, 5 * SECOND)
    assert far.usual() == pytest.approx(4 * MS, rel=0.25)


def test_no_more_batches_are_out_than_may_be_staged() -> None:
    none = overloaded(2 * MS, staged_batches_max=0)
    assert none.out_max == 1
    one = overloaded(2 * MS, 4, staged_batches_max=1)
    one.run(4 * PER_S, 2 * SECOND)
    assert one.out_max == 5


def test_what_is_sent_again_does_not_wait_behind_what_leaves_early() -> None:
    far = overloaded(1 * MS)
    sent = 0
    failed = 0

    def rejected(batch: Dispatch) -> bool:
        nonlocal sent, failed
        sent += 1
        failed += sent % 50 == 0
        return sent % 50 == 0

    far.rejected = rejected
    far.run(720, 10 * SECOND, 300 * MS)
    assert failed >= 5
    assert {answer.outcome for _, answer in far.answers} == {"completed"}


def test_what_is_more_urgent_and_cannot_leave_early_is_not_overtaken() -> None:
    far = overloaded(1 * MS, priority_levels=2, default_priority=2)
    driver = far.driver
    (running,) = sent_until(far, 1)
    takes = holds(running.rows) + 2 * far.wire
    urgent = driver.submit(priority=1, pinned_backend=0, signature=1)
    for _ in range(100):
        driver.engine.submit(driver.now, deadline=driver.now + SLO)
        assert driver.step() == []
        driver.now += takes // 100
    driver.complete(running)
    assert [member.request for member in driver.step()[0].members] == [urgent]


def test_what_may_not_overtake_goes_to_an_instance_that_is_free() -> None:
    policy = {"rows_max": 16, "load_aware": True, "priority_levels": 2, "default_priority": 2}
    far = Far(Driver([(0, 1, True), (1, 1, True)], **policy), 1 * MS)
    far.takes = lambda batch, start: holds(batch.rows) * (100 + 20 * batch.backend) // 100
    far.run(2 * PER_S, 14 * SECOND)
    assert far.early
    driver = far.driver
    driver.now += 200 * MS
    (running,) = sent_until(far, 1)
    assert running.backend == 0
    driver.submit(priority=1, pinned_backend=0, signature=1)
    assert driver.step() == []
    driver.now += holds(running.rows) + 2 * far.wire - 1 * MS
    for _ in range(20):
        driver.engine.submit(driver.now, deadline=driver.now + SLO)
    assert [batch.backend for batch in driver.step()] == [1]


def test_a_hung_instance_is_not_preferred_to_a_free_one() -> None:
    far = Far(Driver([(0, 1, True), (1, 1, True)], rows_max=16, load_aware=True), 2 * MS)
    far.takes = lambda batch, start: holds(batch.rows) * (100 + 15 * batch.backend) // 100
    far.run(2 * PER_S, 12 * SECOND)
    far.takes = lambda batch, start: holds(batch.rows) + SECOND * (batch.backend == 0)
    far.driver.now += 200 * MS
    far.run(100, 400 * MS)
    # When the next ones leave, the one that hangs should have ended.
    assert [sent.batch.backend for sent in far.sent[:4]] == [0, 1, 1, 1]


def test_replies_of_a_batch_and_its_follower_in_one_reading_teach_nothing_of_the_latter() -> None:
    far = overloaded(1 * MS)
    first, second = sent_until(far, 2)
    far.driver.now += 60 * MS
    before = far.driver.engine.latency_status(0, 0).observations
    far.driver.complete(first)
    far.driver.complete(second)
    assert far.driver.engine.latency_status(0, 0).observations == before + 1


def test_a_batch_that_waits_while_the_clock_goes_back_has_started_by_then() -> None:
    far = overloaded(1 * MS)
    first, second = sent_until(far, 2)
    far.driver.now -= 15 * MS
    far.driver.complete(first)
    before = far.driver.engine.latency_status(0, 0).error_mean
    far.driver.now += holds(second.rows)
    far.driver.complete(second)
    after = far.driver.engine.latency_status(0, 0)
    assert after.error_mean == pytest.approx(before, abs=0.001)


def test_each_batch_that_left_early_is_expected_to_follow_another_one() -> None:
    """As many are counted as there are instances; the driver checks it."""
    far = overloaded(2 * MS, 2, staged_batches_max=2)
    sent = sent_until(far, 4)
    for batch in (sent[1], sent[2], sent[0], sent[3]):
        far.driver.after(1 * MS).complete(batch)
        far.driver.step()


def test_of_a_model_that_is_not_in_use_it_is_forgotten() -> None:
    far = overloaded(2 * MS)
    for in_use in (False, True):
        far.driver.configure(in_use=in_use)
        far.driver.step()
    far.run(PER_S, 1 * SECOND)
    assert len(far.early) < 0.25 * len(far.sent)


def test_a_loaded_engine_knows_it() -> None:
    far = overloaded(600 * US)
    state = far.driver.engine.save()
    loaded = Engine()
    assert loaded.load(state)
    assert loaded.save() == state


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_a_way_costs_less_goodput_than_batches_that_take_as_much_longer(sigma: float) -> None:
    """Both are the same as long as no batch leaves before an instance is free."""

    def goodput(added_ms: float, wire_ms: float) -> float:
        latency = Latency(1.053, 5.072 + added_ms)
        setup = ModelSetup((Placement(0, 4),), slo_ms=25.0)

        def at(rate: float) -> Scenario:
            model = Model(latency, 25.0, Arrivals(rate_per_s=rate))
            return Scenario([model], 1, seed=1, requests=20_000, noise_sigma=sigma)

        settings = EngineSettings(models=(setup,), wire_ms=wire_ms)
        return search(at, engine(settings), from_per_s=2_800, to_per_s=1_000).per_s

    assert goodput(0, 1.0) > 1.05 * goodput(2.0, 0) > 0
