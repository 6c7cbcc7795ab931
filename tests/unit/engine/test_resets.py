"""Streams that a backend resets: for what a request is, or for what the backend has itself."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import SECOND, Driver, users

INTERNAL, UNAVAILABLE = 13, 14
POISON = 3


def run_resetting(driver: Driver, resets: set[int]) -> list[tuple[int, list[int]]]:
    """Plays backends that reset batches with such a member. What they got, in order."""
    got = []
    while batches := driver.step():
        for batch in batches:
            got.append((batch.backend, users(batch)))
            if resets.intersection(users(batch)):
                driver.fail(batch, "reset", INTERNAL)
            else:
                driver.complete(batch)
    return got


@pytest.mark.parametrize("backends", [1, 2])
def test_a_reset_batch_goes_again_as_a_whole_and_then_in_halves(backends: int) -> None:
    driver = Driver(backends, rows_max=8)
    driver.submit_many(range(4))
    got = run_resetting(driver, {POISON})
    assert [members for _, members in got[:2]] == [[0, 1, 2, 3]] * 2
    assert {backend for backend, _ in got[:2]} == set(range(backends))
    assert sorted(members for _, members in got[2:]) == [[0, 1], [2], [2, 3], [3]]
    answers = driver.answers()
    assert answers.pop(POISON) == ("failed", "backend_error")
    assert set(answers.values()) == {("completed", "none")}
    driver.submit(9)
    assert len(driver.step()) == 1, "nobody rests for it"


def test_a_reset_request_is_run_twice_and_has_its_code() -> None:
    driver = Driver(3, rows_max=1)
    driver.submit(POISON)
    got = run_resetting(driver, {POISON})
    assert len({backend for backend, _ in got}) == len(got) == 2
    (answer,) = [a for a in driver.actions if getattr(a, "user", None) == POISON]
    assert (answer.outcome, answer.code) == ("failed", INTERNAL)


def test_what_was_reset_once_may_still_lose_its_connection() -> None:
    driver = Driver(1)
    driver.submit(1)
    (batch,) = driver.step()
    assert driver.fail(batch, "reset") == []
    for _ in range(3):
        (batch,) = driver.step()
        assert driver.fail(batch, "connection") == []
        driver.after(SECOND)
    (batch,) = driver.step()
    driver.complete(batch)
    assert driver.answers() == {1: ("completed", "none")}


def test_a_pinned_request_that_was_reset_goes_again_where_it_was() -> None:
    driver = Driver(2)
    driver.submit(1, pinned_backend=1)
    assert [backend for backend, _ in run_resetting(driver, {1})] == [1, 1]


def test_what_is_not_idempotent_is_not_run_again_after_a_reset() -> None:
    driver = Driver(2, rows_max=2, idempotent=False)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    assert [a.code for a in driver.fail(batch, "reset", INTERNAL)] == [INTERNAL] * 2
    assert driver.step() == []


def sent_by(driver: Driver, bad: int, user: int) -> list[int]:
    """The backends that the request is sent to; the bad one resets it."""
    driver.submit(user)
    got = []
    while batches := driver.step():
        (batch,) = batches
        got.append(batch.backend)
        if batch.backend == bad:
            driver.fail(batch, "reset")
        else:
            driver.complete(batch)
    return got


def test_a_backend_that_resets_several_batches_in_a_row_rests() -> None:
    driver = Driver(2, rows_max=1)
    assert [sent_by(driver, 0, user) for user in range(3)] == [[0, 1]] * 3
    assert [sent_by(driver, 0, user) for user in range(3, 6)] == [[1]] * 3
    driver.after(SECOND)
    assert sent_by(driver, 0, 6) == [0, 1]


@pytest.mark.parametrize("kind", ["reset", "unavailable"])
def test_tries_of_one_request_rest_no_backend(kind: str) -> None:
    driver = Driver(2, rows_max=8)
    driver.submit_many(range(8))
    asked = []
    while batches := driver.step():
        for batch in batches:
            asked.append(batch.backend)
            assert driver.fail(batch, kind) == [] or len(users(batch)) == 1
    assert min(asked.count(backend) for backend in (0, 1)) > 3, "often enough to rest"
    driver.submit_many([10, 11], mergeable=False)
    assert {batch.backend for batch in driver.step()} == {0, 1}
