"""What a failed batch means: another try, smaller batches, or the error for its members."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import MS, SECOND, Dispatch, Driver, users

INVALID, INTERNAL, UNAVAILABLE = 3, 13, 14


def run_rejecting(driver: Driver, bad: set[int], code: int = INVALID) -> int:
    """Plays a backend that rejects batches with a bad member. Returns the batches it got."""
    sent = 0
    while batches := driver.step():
        for batch in batches:
            sent += 1
            if bad.intersection(users(batch)):
                driver.fail(batch, "rejected", code)
            else:
                driver.complete(batch)
    return sent


def rest(driver: Driver, batch: Dispatch) -> list[Dispatch]:
    """The next dispatch after the backend of a failed batch has rested."""
    driver.fail(batch, "nothing_ran")
    return driver.after(SECOND).step()


def test_what_did_not_run_goes_to_another_backend() -> None:
    driver = Driver(2, rows_max=2)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    assert driver.fail(batch, "nothing_ran", UNAVAILABLE) == []
    (again,) = driver.step()
    assert (again.backend, users(again)) == (1, [1, 2])
    driver.complete(again)
    assert set(driver.answers().values()) == {("completed", "none")}


def test_a_failed_batch_goes_before_queued_work() -> None:
    driver = Driver(2, rows_max=1, priority_levels=2, default_priority=2)
    driver.submit(1)
    (batch,) = driver.step()
    driver.submit(2, priority=1)
    driver.fail(batch, "nothing_ran")
    assert [(users(b), b.backend) for b in driver.step()] == [([1], 1)]


def test_the_only_backend_rests_longer_after_every_failure_in_a_row() -> None:
    driver = Driver(1)
    driver.submit(1)
    (batch,) = driver.step()
    for pause in (10 * MS, 20 * MS, 40 * MS):
        driver.fail(batch, "nothing_ran")
        assert driver.step() == []
        assert driver.wakes()[-1] == driver.now + pause
        assert driver.after(pause - 1).step() == []
        (batch,) = driver.after(1).step()
    driver.complete(batch)
    driver.submit(2)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    assert len(driver.after(10 * MS).step()) == 1


def test_batches_lost_together_are_one_failure() -> None:
    driver = Driver([(0, 4, True)])
    driver.submit_many(range(4))
    for batch in driver.step():
        driver.fail(batch, "connection")
    assert driver.after(10 * MS - 1).step() == []
    assert len(driver.after(1).step()) == 4


def test_a_reconnected_backend_need_not_rest() -> None:
    driver = Driver(1)
    driver.submit(1)
    (batch,) = driver.step()
    driver.engine.set_backend(0, False, driver.now)
    driver.fail(batch, "connection")
    driver.engine.set_backend(0, True, driver.now)
    assert len(driver.step()) == 1


def test_a_failure_after_the_step_asks_for_another_one() -> None:
    driver = Driver(2)
    driver.submit(1)
    assert driver.engine.needs_step
    (batch,) = driver.step()
    assert not driver.engine.needs_step
    driver.fail(batch, "nothing_ran")
    assert driver.engine.needs_step


def test_eight_tries_are_the_end() -> None:
    driver = Driver(1)
    driver.submit(1)
    (batch,) = driver.step()
    for _ in range(7):
        (batch,) = rest(driver, batch)
    (answer,) = driver.fail(batch, "nothing_ran", UNAVAILABLE)
    assert (answer.outcome, answer.reason, answer.code) == ("failed", "backend_error", UNAVAILABLE)
    assert driver.after(SECOND).step() == []


def test_a_rest_is_never_longer_than_a_second() -> None:
    driver = Driver(1)
    driver.submit_many([1, 2])
    for _ in range(2):  # 14 failures in a row, the second request's seven after long rests
        (batch,) = driver.step() or driver.after(SECOND).step()
        for _ in range(7):
            (batch,) = rest(driver, batch)
        driver.fail(batch, "nothing_ran")
    assert driver.answers().keys() == {1, 2}
    driver.submit(3)
    assert driver.after(SECOND - 1).step() == []
    assert len(driver.after(1).step()) == 1


def test_a_lost_batch_runs_again_only_when_the_model_is_idempotent() -> None:
    for idempotent in (True, False):
        driver = Driver(2, idempotent=idempotent)
        driver.submit(1)
        (batch,) = driver.step()
        driver.fail(batch, "connection", UNAVAILABLE)
        again = driver.step()
        assert len(again) == idempotent
        assert driver.answers() == ({} if idempotent else {1: ("failed", "backend_error")})


def test_work_that_never_ran_goes_again_for_any_model() -> None:
    driver = Driver(2, idempotent=False)
    driver.submit(1)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    assert len(driver.step()) == 1


def test_neither_the_cancelled_nor_the_expired_are_sent_again() -> None:
    driver = Driver(2, rows_max=4)
    handle = driver.submit(1)
    driver.submit(2, deadline=driver.now + MS)
    driver.submit(3)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    driver.cancel(handle)
    (again,) = driver.after(MS).step()
    assert users(again) == [3]


def test_a_group_that_nobody_waits_for_is_not_sent_again() -> None:
    driver = Driver(2)
    handle = driver.submit(1)
    (batch,) = driver.step()
    driver.fail(batch, "nothing_ran")
    driver.cancel(handle)
    assert driver.step() == []


def test_an_answer_of_unavailable_is_asked_of_another_backend_once() -> None:
    driver = Driver(3, rows_max=1)
    driver.submit(1)
    (batch,) = driver.step()
    assert driver.fail(batch, "unavailable", UNAVAILABLE) == []
    (again,) = driver.step()
    assert again.backend != batch.backend
    (answer,) = driver.fail(again, "unavailable", UNAVAILABLE)
    assert (answer.outcome, answer.reason, answer.code) == ("failed", "backend_error", UNAVAILABLE)
    assert driver.step() == []


@pytest.mark.parametrize("usable", ["missing", "not ready", "down", "resting"])
def test_without_another_backend_an_answer_of_unavailable_counts(usable: str) -> None:
    driver = Driver(1 if usable == "missing" else [(0, 1, True), (1, 1, usable != "not ready")])
    if usable == "down":
        driver.engine.set_backend(1, False, driver.now)
    if usable == "resting":
        driver.submit_many([7, 8], mergeable=False)
        batches = driver.step()
        for batch in batches:
            driver.fail(batch, "nothing_ran" if batch.backend == 1 else "final")
        driver.answers()
        (moved,) = driver.step()
        driver.complete(moved)
    driver.submit(1)
    (batch,) = driver.step()
    assert batch.backend == 0
    (answer,) = driver.fail(batch, "unavailable", UNAVAILABLE)
    assert (answer.user, answer.code) == (1, UNAVAILABLE)
    driver.submit(2)
    assert len(driver.step()) == 1, "nobody rests for it"


def test_what_is_not_idempotent_or_is_pinned_gets_its_answer_of_unavailable() -> None:
    driver = Driver(2, idempotent=False)
    driver.submit(1)
    (batch,) = driver.step()
    assert len(driver.fail(batch, "unavailable", UNAVAILABLE)) == 1
    driver.configure(idempotent=True)
    driver.submit(2, pinned_backend=0)
    (batch,) = driver.step()
    assert len(driver.fail(batch, "unavailable", UNAVAILABLE)) == 1
    assert driver.step() == []


def test_a_merged_batch_goes_elsewhere_as_a_whole_and_then_in_halves() -> None:
    driver = Driver(2, rows_max=8)
    driver.submit_many(range(4))
    seen = []
    while batches := driver.step():
        for batch in batches:
            seen.append((batch.backend, users(batch)))
            if 3 in users(batch):
                driver.fail(batch, "unavailable", UNAVAILABLE)
            else:
                driver.complete(batch)
    assert [members for _, members in seen[:2]] == [[0, 1, 2, 3]] * 2
    assert {backend for backend, _ in seen[:2]} == {0, 1}
    assert sorted(members for _, members in seen[2:]) == [[0, 1], [2], [2, 3], [3]]
    assert {user for user, end in driver.answers().items() if end[0] == "failed"} == {3}


def test_a_backend_that_is_unavailable_several_times_in_a_row_rests() -> None:
    driver = Driver(2, rows_max=1)

    def ask(user: int) -> list[int]:
        """The backends that the request was sent to; the first one is unavailable."""
        driver.submit(user)
        backends = []
        while batches := driver.step():
            (batch,) = batches
            backends.append(batch.backend)
            if batch.backend == 0:
                driver.fail(batch, "unavailable", UNAVAILABLE)
            else:
                driver.complete(batch)
        return backends

    assert [ask(user) for user in range(3)] == [[0, 1]] * 3
    assert [ask(user) for user in range(3, 6)] == [[1]] * 3
    driver.after(SECOND)
    assert ask(6) == [0, 1]
    assert ask(7) == [1], "and again, after one more"


def test_a_good_answer_ends_the_row_of_the_unavailable_ones() -> None:
    driver = Driver(2, rows_max=1)
    for user in range(6):
        driver.submit(user)
        (batch,) = driver.step()
        assert batch.backend == 0
        if user % 3 == 2:
            driver.complete(batch)
            continue
        driver.fail(batch, "unavailable", UNAVAILABLE)
        (again,) = driver.step()
        driver.complete(again)


def test_one_bad_request_does_not_fail_its_neighbours() -> None:
    driver = Driver(rows_max=64, staged_batches_max=0)
    driver.submit_many(range(64))
    sent = run_rejecting(driver, {37})
    answers = driver.answers()
    assert answers.pop(37) == ("failed", "backend_error")
    assert set(answers.values()) == {("completed", "none")}
    assert len(answers) == 63
    assert sent == 1 + 2 * 6


def test_the_bad_request_gets_the_code_of_the_backend() -> None:
    driver = Driver(rows_max=2)
    driver.submit_many([1, 2])
    run_rejecting(driver, {2}, code=INVALID)
    failed = [a for a in driver.actions if getattr(a, "outcome", "") == "failed"]
    assert [(a.user, a.code) for a in failed] == [(2, INVALID)]


def test_a_model_that_is_not_idempotent_is_not_bisected() -> None:
    driver = Driver(rows_max=2, idempotent=False)
    driver.submit_many([1, 2])
    assert run_rejecting(driver, {2}) == 1
    assert set(driver.answers().values()) == {("failed", "backend_error")}


def test_a_batch_of_64_is_taken_apart_to_the_last() -> None:
    driver = Driver(rows_max=64, staged_batches_max=0)
    driver.submit_many(range(64))
    poisoned = {n for n in range(64) if n % 2}
    run_rejecting(driver, poisoned)
    failed = {user for user, (outcome, _) in driver.answers().items() if outcome == "failed"}
    assert failed == poisoned


def test_bisecting_stops_at_its_budget_and_everybody_gets_the_error() -> None:
    driver = Driver(rows_max=128, staged_batches_max=0)
    driver.submit_many(range(128))
    sent = run_rejecting(driver, set(range(128)))
    assert sent == 1 + 128
    assert len(driver.answers()) == 128
    driver.submit_many([200, 201])
    assert run_rejecting(driver, {200}) == 1


@pytest.mark.parametrize(("good", "sent"), [(18, 1), (19, 3)])
def test_the_budget_grows_by_one_execution_in_ten(good: int, sent: int) -> None:
    driver = Driver(rows_max=128, staged_batches_max=0)
    driver.submit_many(range(128))
    run_rejecting(driver, set(range(128)))
    driver.after(10 * SECOND)
    # The failing batch earns a tenth itself; with 19 more there is enough for two halves.
    for user in range(1000, 1000 + good):
        driver.submit(user)
        assert run_rejecting(driver, set()) == 1
    driver.submit_many([1, 2])
    assert run_rejecting(driver, {1, 2}) == sent


def test_final_failures_are_answered_with_their_code() -> None:
    driver = Driver(rows_max=2)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    assert [a.code for a in driver.fail(batch, "final", 8)] == [8, 8]
    assert driver.step() == []


@pytest.mark.parametrize("kind", ["rejected", "unsplittable"])
def test_what_failed_alone_is_answered(kind: str) -> None:
    driver = Driver(rows_max=2)
    driver.submit(1)
    (batch,) = driver.step()
    (answer,) = driver.fail(batch, kind, 0)
    assert (answer.outcome, answer.code) == ("failed", INTERNAL)
    assert driver.engine.queue_status(0).merging


def test_a_reply_that_cannot_be_cut_ends_merging_until_the_batching_is_changed() -> None:
    driver = Driver([(0, 4, True)], rows_max=4, staged_batches_max=0)
    driver.submit_many([1, 2])
    (batch,) = driver.step()
    driver.fail(batch, "unsplittable", INTERNAL)
    assert not driver.engine.queue_status(0).merging
    driver.submit_many([3, 4])
    assert [users(b) for b in driver.step()] == [[1], [2], [3], [4]]
    driver.configure(slo_ns=SECOND)
    assert not driver.engine.queue_status(0).merging
    driver.configure(rows_max=2)
    assert driver.engine.queue_status(0).merging


def test_a_signature_that_fails_repeatedly_runs_unmerged_for_five_seconds() -> None:
    driver = Driver([(0, 4, True)], rows_max=2, staged_batches_max=0)
    for round_ in range(4):
        driver.submit_many([10 * round_, 10 * round_ + 1], signature=5)
        run_rejecting(driver, {10 * round_})
    driver.submit_many([100, 101], signature=5)
    driver.submit_many([200, 201], signature=6)
    batches = driver.step()
    assert [users(b) for b in batches] == [[100], [101], [200, 201]]
    for batch in batches:
        driver.complete(batch)
    driver.after(5 * SECOND - 1).submit_many([102, 103], signature=5)
    assert [users(b) for b in driver.step()] == [[102], [103]]
    driver.after(1).submit_many([104, 105], signature=5)
    assert [users(b) for b in driver.step()] == [[104, 105]]


def test_many_good_batches_clear_a_signature() -> None:
    driver = Driver([(0, 4, True)], rows_max=2, staged_batches_max=0)
    user = 0
    for _ in range(8):
        driver.submit_many([user, user + 1])
        run_rejecting(driver, {user})
        user += 2
        for _ in range(8):
            driver.submit_many([user, user + 1])
            run_rejecting(driver, set())
            user += 2
    driver.submit_many([user, user + 1])
    assert [users(b) for b in driver.step()] == [[user, user + 1]]


def test_a_backend_that_fails_fast_does_not_draw_all_the_work() -> None:
    driver = Driver(2, rows_max=1, staged_batches_max=0)
    driver.submit_many(range(40))
    failures = 0
    for _ in range(400):
        for batch in driver.step():
            if batch.backend == 0:
                failures += 1
                driver.fail(batch, "nothing_ran")
            else:
                driver.after(MS).complete(batch)
        driver.after(MS // 10)
    assert set(driver.answers().values()) == {("completed", "none")}
    assert len(driver.answers()) == 40
    assert failures <= 4
