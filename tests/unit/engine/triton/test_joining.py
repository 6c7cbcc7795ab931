"""`batching: triton`: batches that waited longer than the delay join the one that is sent."""

from __future__ import annotations

from scheduler._native.engine import TritonBlock, TritonPolicy
from tests.unit.engine.driver import MS, Driver


def test_what_joins_a_batch_that_waits_for_an_instance_is_sent_from_its_first_row() -> None:
    d = Driver([(0, 1, True)], rows_max=8, triton=TritonBlock(queue_delay_max_ns=2 * MS))
    d.submit(0)
    (first,) = d.after(4 * MS).step()
    for user in range(1, 4):
        d.submit(user, rows=3)
        d.step()
        d.after(MS // 2)
    d.after(5 * MS).complete(first)
    (batch,) = d.step()
    assert [(m.user, m.row_begin, m.rows) for m in batch.members] == [(1, 0, 3), (2, 0, 3)]


def test_what_is_refused_counts_at_the_level_that_it_would_have_joined() -> None:
    """In the attainment, beside what was let in there; a request without a deadline has none."""
    block = TritonBlock(levels=(TritonPolicy(), TritonPolicy(requests_max=1)), default_level=2)
    d = Driver([(0, 1, True)], rows_max=8, triton=block)
    for user, priority in enumerate((2, 2, 0, 1)):
        d.engine.submit(d.now, user=user, priority=priority, deadline=d.now + 10 * MS)
    d.engine.submit(d.now, user=4, priority=2)
    assert d.engine.counters(0)["refused"] == 3
    assert d.engine.counters(0)["levels"] == {2: (2, 0)}
    out = d.step()
    while out:
        d.complete(out.pop(0))
        out += d.step()
    assert d.engine.counters(0)["levels"] == {1: (1, 1), 2: (3, 1)}


def test_a_formed_batch_that_waits_when_the_model_is_to_batch_by_load_expires() -> None:
    """It is of no group, of which the time to retry would be told."""
    block = TritonBlock(preferred_rows=(1,))
    d = Driver(1, rows_max=8, load_aware=True, staged_batches_max=0)
    for rows in range(1, 9):
        d.engine.prime_latency(0, 0, rows, 5 * MS, 20)
    d.configure(triton=block)
    for user in range(6):
        d.engine.submit(d.now, user=user, deadline=d.now + 20 * MS)
    d.step()
    d.after(MS).step()
    d.configure(triton=None)
    d.after(30 * MS).step()
    assert d.answers() == {
        user: ("expired", "expired_in_queue" if user else "expired_in_flight") for user in range(6)
    }
