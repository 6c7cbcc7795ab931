"""Aging: what has waited long goes before all levels, without displacing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scheduler._native.engine import Engine
from tests.unit.engine.driver import MS, SECOND, Driver, users

pytestmark = pytest.mark.native

AGING = 50 * MS
BATCHES_PER_AGED = 8


def flooded(lows: int, *, turns: int, low: dict[str, Any], **policy: Any) -> list[tuple[int, int]]:
    """One backend, batches of a row and a millisecond, always ten of level 1 queued.

    (when, user) of the low ones as they were sent; `lows` of them came first, numbered from 0.
    """
    driver = Driver(rows_max=1, priority_levels=2, staged_batches_max=0, **policy)
    began = driver.now
    for user in range(lows):
        driver.submit(user, priority=2, **low)
    driver.submit_many(range(1000, 1010), priority=1)
    sent = []
    for turn in range(turns):
        for batch in driver.step():
            sent += [(driver.now - began, user) for user in users(batch) if user < 1000]
            driver.after(MS).complete(batch)
        driver.submit(2000 + turn, priority=1)
    driver.engine.check_invariants()
    return sent


@pytest.mark.parametrize("load_aware", [False, True])
def test_inside_one_queue_a_low_request_leads_once_it_has_aged(load_aware: bool) -> None:
    options = {"turns": 200, "low": {}, "load_aware": load_aware}
    assert flooded(1, **options) == [], "strict levels let it wait as long as there are others"
    ((at, _),) = flooded(1, aging_ns=AGING, **options)
    assert AGING <= at <= AGING + 2 * MS


def test_the_oldest_goes_first_and_at_most_one_batch_in_eight_is_led_so() -> None:
    sent = flooded(10, turns=200, low={}, aging_ns=AGING)
    assert [user for _, user in sent] == list(range(10))
    for order, (at, _) in enumerate(sent):
        assert at <= AGING + (order * BATCHES_PER_AGED + 2) * MS, "the bound"
        assert at >= AGING + order * BATCHES_PER_AGED * MS


def test_best_effort_ages_as_well_and_a_deadline_is_kept() -> None:
    ((at, _),) = flooded(
        1, turns=200, low={"deadline": Driver().now + SECOND}, aging_ns=AGING, load_aware=True
    )
    assert AGING <= at <= AGING + 2 * MS


def shared(lows: list[int], *, turns: int, reload: bool = False, **policy: Any) -> list[Any]:
    """One executor of several models; model 0 always has ten of level 1 queued.

    (when, model, user) of the low requests as they were sent; lows[i] is the model of the i-th.
    """
    driver = Driver(
        [(0, 1, True, 0)], rows_max=1, priority_levels=2, staged_batches_max=0, **policy
    )
    for model in {*lows} - {0}:
        driver.engine.configure_model(model, driver.placements, driver.now, **driver.policy)
    driver.step()
    began = driver.now
    for user, model in enumerate(lows):
        driver.after(1).submit(user, model=model, priority=2)
    driver.submit_many(range(1000, 1010), priority=1)
    sent = []
    for turn in range(turns):
        for batch in driver.step():
            sent += [(driver.now - began, batch.model, u) for u in users(batch) if u < 1000]
            driver.after(MS).complete(batch)
        driver.submit(2000 + turn, priority=1)
        if reload:
            copy = Engine()
            assert copy.load(driver.engine.save())
            driver.engine = copy
    driver.engine.check_invariants()
    return sent


@pytest.mark.parametrize("load_aware", [False, True])
@pytest.mark.parametrize("reload", [False, True])
def test_a_flood_of_one_model_does_not_keep_the_aged_ones_of_another(
    load_aware: bool, reload: bool
) -> None:
    sent = shared([1] * 5, turns=200, aging_ns=AGING, load_aware=load_aware, reload=reload)
    assert [user for _, _, user in sent] == list(range(5))
    for order, (at, _, _) in enumerate(sent):
        assert at <= AGING + (order * BATCHES_PER_AGED + 2) * MS, "the bound"


def test_of_all_models_on_an_executor_one_batch_in_eight_is_led_by_the_oldest_aged() -> None:
    lows = [1, 2, 0, 2, 2, 3, 1, 0, 3, 3, 1, 2]
    sent = shared(lows, turns=200, aging_ns=AGING)
    assert [(model, user) for _, model, user in sent] == [
        (model, user) for user, model in enumerate(lows)
    ]
    for order, (at, _, _) in enumerate(sent):
        assert at <= AGING + (order * BATCHES_PER_AGED + 2) * MS, "the bound"
        assert at >= AGING + order * BATCHES_PER_AGED * MS, "the flood keeps the rest"


def test_what_aged_before_models_were_added_or_removed_is_still_sent() -> None:
    driver = Driver([(0, 1, True, 0)], rows_max=1, priority_levels=2, aging_ns=AGING)
    for model in (1, 2):
        driver.engine.configure_model(model, driver.placements, driver.now, **driver.policy)
    driver.step()
    for user in range(4):
        driver.after(1).submit(user, model=1 + user % 2, priority=2)
    driver.submit_many(range(1000, 1400), priority=1)
    sent = []
    for turn in range(120):
        for batch in driver.step():
            sent += [user for user in users(batch) if user < 1000]
            driver.after(MS).complete(batch)
        if turn == AGING // MS + 2:
            driver.engine.configure_model(3, driver.placements, driver.now, **driver.policy)
        if turn == AGING // MS + 12:
            driver.engine.configure_model(3, [], driver.now, **driver.policy | {"in_use": False})
    assert sent == list(range(4))


def order_of(second: Callable[[Driver], None], **policy: Any) -> list[int]:
    """Requests of two signatures in the order they are sent in."""
    driver = Driver(rows_max=1, priority_levels=2, staged_batches_max=0, load_aware=True, **policy)
    driver.submit(9, signature=9)
    (running,) = driver.step()
    driver.submit(1, priority=2, signature=1)
    second(driver)
    order = []
    driver.after(MS).complete(running)
    while batches := driver.step():
        for batch in batches:
            order += users(batch)
            driver.after(MS).complete(batch)
    return order


def test_before_it_has_aged_another_signature_of_a_higher_level_goes_first() -> None:
    def high(driver: Driver) -> None:
        driver.submit(2, priority=1, signature=2)

    assert order_of(high, aging_ns=SECOND) == [2, 1]
    assert order_of(high) == [2, 1]


def test_a_saved_engine_ages_alike() -> None:
    driver = Driver(rows_max=1, priority_levels=2, staged_batches_max=0, aging_ns=AGING)
    driver.submit_many(range(5), priority=2)
    driver.submit_many(range(10, 40), priority=1)
    sent = []
    for _ in range(60):
        for batch in driver.step():
            sent += users(batch)
            driver.after(5 * MS).complete(batch)
        copy = Engine()
        assert copy.load(driver.engine.save())
        driver.engine = copy
    assert sorted(sent[:35]) == [*range(5), *range(10, 40)]
    assert 0 in sent[:13]
