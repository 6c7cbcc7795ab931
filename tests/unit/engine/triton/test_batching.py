"""`batching: triton`: the engine forms the batches that Triton's dynamic batcher forms.

One backend with one instance and batches of 8 rows at most, where a test does not say otherwise.
"""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import Engine, TritonBlock, TritonPolicy
from tests.unit.engine.driver import MS, Driver, users

UNAVAILABLE = 14
DEADLINE_EXCEEDED = 4


def driver(instances: int = 1, **block: Any) -> Driver:
    return Driver([(0, instances, True)], rows_max=8, triton=TritonBlock(**block))


def levels(*policies: TritonPolicy) -> tuple[TritonPolicy, ...]:
    return policies


def dispatched(d: Driver) -> list[list[int]]:
    return [users(batch) for batch in d.step()]


def run_out(d: Driver) -> list[list[int]]:
    """Users of all batches that follow one another without time passing."""
    batches = []
    out = d.step()
    while out:
        batches.append(users(out[0]))
        d.complete(out.pop(0))
        out += d.step()
    return batches


class TestSizes:
    def test_a_free_instance_takes_what_is_there(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit_many([1, 2, 3])
        assert dispatched(d) == [[1, 2, 3]]

    def test_a_preferred_size_is_not_exceeded_without_a_delay(self) -> None:
        d = driver(preferred_rows=(4,))
        d.submit_many(range(10))
        assert run_out(d) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_the_largest_preferred_size_that_is_filled_wins(self) -> None:
        d = driver(preferred_rows=(2, 6))
        d.submit_many(range(9))
        assert run_out(d) == [[0, 1, 2, 3, 4, 5], [6, 7], [8]]

    def test_a_request_that_passes_the_largest_preferred_size_waits_for_the_next_batch(
        self,
    ) -> None:
        d = driver(preferred_rows=(4,))
        for user in range(3):
            d.submit(user, rows=3)
        assert run_out(d) == [[0], [1], [2]]

    def test_the_largest_batch_bounds_what_a_delay_gathered(self) -> None:
        d = driver(preferred_rows=(4,), queue_delay_max_ns=10 * MS,
                   levels=levels(TritonPolicy(requests_max=100)))  # fmt: skip
        d.submit(0)
        (first,) = d.step() or d.after(10 * MS).step()
        d.submit_many(range(1, 11))
        d.step()
        d.after(20 * MS).complete(first)
        assert dispatched(d) == [list(range(1, 9))]

    def test_without_the_block_every_request_runs_alone_in_order(self) -> None:
        d = driver(dynamic=False)
        d.submit(1, priority=2)
        d.submit(2, priority=1)
        assert run_out(d) == [[1], [2]]

    def test_rows_count(self) -> None:
        d = driver(preferred_rows=(8,))
        for user, rows in enumerate((3, 3, 3, 1)):
            d.submit(user, rows=rows)
        assert run_out(d) == [[0, 1], [2, 3]]

    def test_nothing_is_split_or_reordered_to_fill_a_batch(self) -> None:
        d = driver(preferred_rows=(8,))
        for user, rows in enumerate((5, 5, 3)):
            d.submit(user, rows=rows)
        assert run_out(d) == [[0], [1, 2]]


class TestShapes:
    def test_another_shape_ends_the_batch(self) -> None:
        d = driver(preferred_rows=(8,))
        for user, signature in enumerate((1, 1, 2, 1)):
            d.submit(user, signature=signature)
        assert run_out(d) == [[0, 1], [2], [3]]

    def test_another_shape_sends_the_batch_before_its_delay(self) -> None:
        d = driver(preferred_rows=(8,), queue_delay_max_ns=10 * MS)
        d.submit(1, signature=1)
        assert dispatched(d) == []
        d.submit(2, signature=2)
        assert dispatched(d) == [[1]]

    def test_what_cannot_be_merged_runs_alone(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit(1)
        d.submit(2, mergeable=False)
        d.submit(3)
        assert run_out(d) == [[1], [2], [3]]

    def test_a_model_whose_reply_cannot_be_cut_runs_requests_alone(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit_many([1, 2])
        (batch,) = d.step()
        d.fail(batch, "unsplittable")
        d.submit_many([3, 4])
        assert run_out(d) == [[1], [2], [3], [4]]


class TestDelay:
    def test_a_batch_waits_for_its_delay(self) -> None:
        d = driver(preferred_rows=(4,), queue_delay_max_ns=10 * MS)
        d.submit(1)
        d.after(4 * MS).submit(2)
        assert dispatched(d) == []
        assert d.wakes()[-1] == d.now + 6 * MS
        assert dispatched(d.after(6 * MS - 1)) == []
        assert dispatched(d.after(1)) == [[1, 2]]

    def test_a_preferred_size_does_not_wait(self) -> None:
        d = driver(preferred_rows=(2, 4), queue_delay_max_ns=10 * MS)
        d.submit_many([1, 2, 3])
        assert dispatched(d) == [[1, 2]]

    def test_what_a_preferred_size_left_waits_for_its_own_delay(self) -> None:
        d = driver(instances=2, preferred_rows=(2, 6), queue_delay_max_ns=10 * MS)
        d.submit_many([1, 2, 3])
        assert dispatched(d) == [[1, 2]]
        assert dispatched(d.after(10 * MS)) == [[3]]

    def test_an_exceeded_delay_sends_more_than_the_preferred_size(self) -> None:
        policy = levels(TritonPolicy(requests_max=100))
        d = driver(preferred_rows=(4,), queue_delay_max_ns=10 * MS, levels=policy)
        d.submit_many(range(4))
        (first,) = d.step()
        d.submit_many(range(4, 11))
        d.after(10 * MS).complete(first)
        assert dispatched(d) == [[4, 5, 6, 7, 8, 9, 10]]


class TestFormedAhead:
    """Without queue policies batches are formed before an instance is free."""

    def test_a_batch_grows_until_an_instance_takes_it(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit(0)
        (first,) = d.step()
        for user in (1, 2, 3):
            d.submit(user)
            d.step()
        d.complete(first)
        assert dispatched(d) == [[1, 2, 3]]

    def test_a_batch_of_a_preferred_size_is_closed_when_it_is_reached(self) -> None:
        d = driver(preferred_rows=(2, 4))
        d.submit(0)
        (first,) = d.step()
        for user in (1, 2, 3, 4):
            d.submit(user)
            d.step()
        d.complete(first)
        assert dispatched(d) == [[1, 2]]

    def test_two_batches_an_instance_are_formed(self) -> None:
        d = driver(preferred_rows=(2, 4))
        d.submit(0)
        d.step()
        d.submit_many(range(1, 11))
        d.step()
        # Two of four rows are formed; the last two wait.
        assert d.engine.queue_status(0).requests == 2

    def test_formed_batches_that_waited_longer_than_the_delay_join(self) -> None:
        d = driver(preferred_rows=(2,), queue_delay_max_ns=MS)
        d.submit_many([0, 1])
        (first,) = d.step()
        for pair in ((2, 3), (4, 5)):
            d.submit_many(pair)
            d.step()
        d.after(5 * MS).complete(first)
        assert dispatched(d) == [[2, 3, 4, 5]]

    def test_a_cancelled_member_leaves_its_batch(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit(0)
        (first,) = d.step()
        handles = d.submit_many([1, 2])
        d.step()
        d.cancel(handles[0])
        d.complete(first)
        assert dispatched(d) == [[2]]

    def test_a_batch_nobody_waits_for_is_not_sent(self) -> None:
        d = driver(preferred_rows=(8,))
        d.submit(0)
        (first,) = d.step()
        handle = d.submit(1)
        d.step()
        d.cancel(handle)
        d.complete(first)
        assert dispatched(d) == []

    def test_with_a_queue_policy_nothing_is_formed_ahead(self) -> None:
        d = driver(preferred_rows=(2,), levels=levels(TritonPolicy(requests_max=100)))
        d.submit_many([0, 1])
        d.step()
        d.submit_many([2, 3, 4, 5])
        d.step()
        assert d.engine.queue_status(0).requests == 4


class TestPriorities:
    THREE = levels(TritonPolicy(), TritonPolicy(), TritonPolicy())

    def test_a_higher_level_goes_first(self) -> None:
        d = driver(preferred_rows=(2,), levels=self.THREE, default_level=2)
        for user, priority in enumerate((3, 2, 1, 1, 2, 3)):
            d.submit(user, priority=priority)
        assert run_out(d) == [[2, 3], [1, 4], [0, 5]]

    @pytest.mark.parametrize("priority", [0, 4, 2**63])
    def test_no_or_an_unknown_priority_is_the_default_level(self, priority: int) -> None:
        d = driver(preferred_rows=(1,), levels=self.THREE, default_level=2)
        d.submit(0, priority=3)
        d.submit(1, priority=priority)
        d.submit(2, priority=1)
        assert run_out(d) == [[2], [1], [0]]

    def test_a_batch_takes_several_levels(self) -> None:
        d = driver(preferred_rows=(4,), levels=self.THREE, default_level=3)
        d.submit(0, priority=3)
        d.submit(1, priority=1)
        assert dispatched(d) == [[1, 0]]


class TestQueuePolicies:
    def test_a_full_level_refuses_in_tritons_code(self) -> None:
        d = driver(preferred_rows=(1,), levels=levels(TritonPolicy(requests_max=2)))
        d.submit(0)
        d.step()
        d.submit_many([1, 2])
        refused = d.engine.submit(d.now)
        assert (refused.handle, refused.reason, refused.code) == (0, "queue_full", UNAVAILABLE)
        assert d.engine.model_stats(0)["rejected"] == 0

    def test_levels_are_full_one_by_one(self) -> None:
        policies = levels(TritonPolicy(requests_max=1), TritonPolicy())
        d = driver(preferred_rows=(1,), levels=policies, default_level=2)
        d.submit(0)
        d.step()
        d.submit(1, priority=1)
        assert d.refusal(priority=1) == "queue_full"
        d.submit_many([2, 3])
        assert run_out(d) == []

    def test_a_timeout_refuses_where_a_batch_would_take_the_request(self) -> None:
        d = driver(preferred_rows=(4,), levels=levels(TritonPolicy(timeout_ns=5 * MS)))
        d.submit(0)
        (first,) = d.step()
        d.submit(1)
        d.after(5 * MS).submit(2)
        assert dispatched(d) == []
        d.after(1).complete(first)
        assert dispatched(d) == [[2]]
        answer = next(a for a in d.actions if getattr(a, "user", None) == 1)
        assert (answer.outcome, answer.reason) == ("expired", "expired_in_queue")
        assert answer.code == UNAVAILABLE

    def test_while_no_instance_is_free_timeouts_are_looked_at_every_half_second(self) -> None:
        d = driver(preferred_rows=(4,), levels=levels(TritonPolicy(timeout_ns=5 * MS)))
        d.submit(0)
        d.step()
        d.submit(1)
        d.step()
        assert d.wakes()[-1] == d.now + 500 * MS
        d.after(499 * MS).step()
        assert 1 not in d.answers()
        d.after(MS).step()
        assert d.answers()[1] == ("expired", "expired_in_queue")

    def test_a_timeout_within_a_waiting_batch_is_told_at_once(self) -> None:
        policy = TritonPolicy(timeout_ns=5 * MS)
        d = driver(preferred_rows=(4,), queue_delay_max_ns=20 * MS, levels=levels(policy))
        d.submit(1)
        d.step()
        assert d.wakes()[-1] == d.now + 5 * MS + 1
        assert dispatched(d.after(5 * MS + 1)) == []
        assert d.answers()[1] == ("expired", "expired_in_queue")

    def test_a_delayed_request_goes_behind_its_level_but_before_the_next(self) -> None:
        first = TritonPolicy(timeout_ns=5 * MS, delay_timed_out=True)
        d = driver(preferred_rows=(1,), levels=levels(first, TritonPolicy()), default_level=1)
        d.submit(0)
        (out,) = d.step()
        d.submit_many([1, 2], priority=1)
        d.submit(3, priority=2)
        d.after(6 * MS).submit(4, priority=1)
        d.complete(out)
        assert run_out(d) == [[4], [1], [2], [3]]

    def test_a_request_shortens_its_timeout_where_that_is_allowed(self) -> None:
        policy = TritonPolicy(timeout_ns=50 * MS, timeout_override=True)
        d = driver(preferred_rows=(1,), levels=levels(policy))
        d.submit(0)
        (out,) = d.step()
        d.submit(1, timeout_ns=5 * MS)
        d.submit(2, timeout_ns=500 * MS)
        d.submit(3)
        d.after(6 * MS).complete(out)
        assert dispatched(d) == [[2]]
        assert d.answers()[1] == ("expired", "expired_in_queue")

    @pytest.mark.parametrize(
        "policy", [TritonPolicy(timeout_override=True), TritonPolicy(timeout_ns=50 * MS)]
    )
    def test_otherwise_its_timeout_means_nothing(self, policy: TritonPolicy) -> None:
        d = driver(preferred_rows=(1,), levels=levels(policy))
        d.submit(0)
        (out,) = d.step()
        d.submit(1, timeout_ns=MS)
        d.after(6 * MS).complete(out)
        assert dispatched(d) == [[1]]

    def test_the_clients_own_deadline_is_kept(self) -> None:
        d = driver(preferred_rows=(1,))
        d.submit_many([0, 1])
        d.step()
        d.submit(2, deadline=d.now + MS)
        d.after(MS).step()
        answer = next(a for a in d.actions if getattr(a, "user", None) == 2)
        assert (answer.reason, answer.code) == ("expired_in_queue", DEADLINE_EXCEEDED)


class TestAround:
    def test_batches_are_held_until_enough_requests_are_queued(self) -> None:
        block = TritonBlock(preferred_rows=(4,))
        d = Driver(1, rows_max=8, triton=block, hold_requests=6)
        d.submit_many(range(5))
        assert dispatched(d) == []
        d.submit(5)
        assert run_out(d) == [[0, 1, 2, 3], [4, 5]]
        d.submit(6)
        assert dispatched(d) == [[6]]

    def test_one_bad_request_does_not_fail_its_batch(self) -> None:
        d = driver(preferred_rows=(4,))
        d.submit_many([1, 2, 3])
        (batch,) = d.step()
        assert d.fail(batch, "rejected") == []
        (first,) = d.step()
        d.complete(first)
        (second,) = d.step()
        assert [users(first), users(second)] == [[1, 2], [3]]
        d.fail(second, "rejected")
        assert d.answers() == {
            1: ("completed", "none"),
            2: ("completed", "none"),
            3: ("failed", "backend_error"),
        }

    def test_a_batch_that_did_not_run_goes_elsewhere(self) -> None:
        d = Driver(2, rows_max=8, triton=TritonBlock(preferred_rows=(8,)))
        d.submit_many([1, 2])
        (batch,) = d.step()
        d.fail(batch, "nothing_ran", UNAVAILABLE)
        (again,) = d.step()
        assert (users(again), again.backend) == ([1, 2], 1 - batch.backend)

    def test_the_instances_of_all_backends_take_batches(self) -> None:
        d = Driver(
            [(0, 1, True), (1, 2, True)], rows_max=8, triton=TritonBlock(preferred_rows=(1,))
        )
        d.submit_many(range(4))
        assert sorted(batch.backend for batch in d.step()) == [0, 1, 1]

    def test_requests_survive_a_change_of_the_block(self) -> None:
        d = driver(preferred_rows=(2,))
        d.submit(0)
        (out,) = d.step()
        d.submit_many(range(1, 8))
        d.step()
        d.configure(triton=TritonBlock(preferred_rows=(8,)))
        d.complete(out)
        # What was formed goes as it was formed.
        assert run_out(d) == [[1, 2], [3, 4], [5, 6, 7]]

    @pytest.mark.parametrize("to_triton", [True, False])
    def test_requests_survive_a_change_of_the_batcher(self, to_triton: bool) -> None:
        block = TritonBlock(preferred_rows=(8,), levels=levels(TritonPolicy(requests_max=9)))
        before, after = (None, block) if to_triton else (block, None)
        d = Driver(1, rows_max=8, staged_batches_max=0, triton=before)
        d.submit(0)
        (out,) = d.step()
        d.submit_many([1, 2])
        d.step()
        d.configure(triton=after)
        d.submit(3)
        d.complete(out)
        assert run_out(d) == [[1, 2, 3]]

    def test_a_removed_model_fails_what_waits(self) -> None:
        d = driver(preferred_rows=(2,))
        d.submit_many(range(8))
        d.step()
        d.configure(in_use=False)
        d.step()
        assert {u: o for u, (o, _) in d.answers().items()} == dict.fromkeys(range(2, 8), "failed")

    def test_without_any_backend_what_waits_is_failed_after_a_while(self) -> None:
        d = driver(preferred_rows=(2,))
        d.submit_many(range(8))
        d.step()
        d.engine.set_backend(0, False, d.now)
        d.step()
        d.after(5_000 * MS).step()
        reasons = {user: reason for user, (_, reason) in d.answers().items()}
        assert reasons == dict.fromkeys(range(2, 8), "no_backend")

    def test_a_loaded_engine_goes_on_as_the_saved_one(self) -> None:
        policy = TritonPolicy(timeout_ns=5 * MS, delay_timed_out=True)
        d = driver(preferred_rows=(2,), levels=levels(policy, policy), default_level=2)
        d.submit(0)
        (out,) = d.step()
        d.submit_many([1, 2, 3], priority=2)
        d.submit(4, priority=1)
        d.step()
        other = Engine()
        assert other.load(d.engine.save())
        other.check_invariants()
        d.engine, saved = other, d.engine
        d.after(6 * MS).complete(out)
        loaded = run_out(d)
        d.engine = saved
        d.engine.complete(out.batch, d.now)
        assert loaded == run_out(d) == [[4, 1], [2, 3]]
