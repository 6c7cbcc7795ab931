"""`batching: triton`: batches that fit the device that runs them."""

from __future__ import annotations

import pytest

from scheduler._native.engine import OWN_EXECUTORS, TritonBlock
from tests.unit.engine.driver import MS, Driver, users
from tests.unit.engine.memory.test_memory import MIB, TOTAL


class Gpus(Driver):
    """Backends with a device each, on which a row takes 100 MiB."""

    def __init__(self, *free_rows: int, preferred_rows: tuple[int, ...]) -> None:
        block = TritonBlock(preferred_rows=preferred_rows, queue_delay_max_ns=MS)
        placements = [(b, 1, True, OWN_EXECUTORS, [b]) for b in range(len(free_rows))]
        super().__init__(placements, rows_max=64, triton=block)
        for device, rows in enumerate(free_rows):
            assert self.engine.prime_memory(0, device, 0, 100 * MIB, 0, True)
            self.read(device, rows)

    def read(self, device: int, rows: int) -> None:
        self.engine.set_device(device, self.now, free_bytes=rows * 100 * MIB, total_bytes=TOTAL)
        self.engine.check_invariants()

    def limited(self) -> int:
        return int(self.engine.counters(0)["memory_limited_batches"])


def test_each_backend_gets_what_fits_there() -> None:
    gpus = Gpus(10, 60, preferred_rows=(32,))
    gpus.submit_many(range(200))
    sent = gpus.step()
    gpus.engine.check_invariants()
    assert sorted((batch.backend, batch.rows) for batch in sent) == [(0, 10), (1, 22)]
    assert gpus.limited() == 1
    # All are served in their order, what was put back before what came later.
    order = [user for batch in sent for user in users(batch)]
    while sent:
        for batch in sent:
            gpus.after(MS).complete(batch)
        sent = gpus.after(2 * MS).step()
        order += [user for batch in sent for user in users(batch)]
        gpus.engine.check_invariants()
    assert order == list(range(200))


def test_a_batch_that_memory_keeps_smaller_is_counted() -> None:
    gpus = Gpus(10, preferred_rows=(64,))
    gpus.submit_many(range(64))
    (batch,) = gpus.step()
    assert batch.rows == 10
    assert gpus.limited() >= 1  # those formed ahead are, too


def test_what_was_formed_ahead_fits_what_is_free_when_it_is_sent() -> None:
    gpus = Gpus(60, preferred_rows=(16,))
    gpus.submit(0)
    (first,) = gpus.after(2 * MS).step()
    gpus.submit_many(range(100, 132))
    gpus.step()
    gpus.after(MS)
    gpus.read(0, 5)
    gpus.complete(first)
    (batch,) = gpus.after(MS).step()
    assert users(batch) == [100, 101, 102, 103, 104]
    assert gpus.limited() >= 1


@pytest.mark.parametrize("before", range(1, 8))
def test_a_batch_is_cut_however_many_others_are_out(before: int) -> None:
    gpus = Gpus(*[64] * before, 10, preferred_rows=(64,))
    gpus.submit_many(range(64 * (before + 1)))
    assert [batch.rows for batch in gpus.step()] == [64] * before + [10]
    assert gpus.limited() == 1


def test_a_request_that_fits_no_device_is_sent_in_parts() -> None:
    gpus = Gpus(10, preferred_rows=(64,))
    gpus.submit(0, rows=35)
    gpus.submit(1, rows=3)
    sizes = []
    while sent := gpus.after(2 * MS).step():
        for batch in sent:
            sizes.append(batch.rows)
            gpus.after(MS).complete(batch)
    assert sizes == [10, 10, 10, 5, 3]
    assert gpus.limited() > 0
    assert set(gpus.answers().values()) == {("completed", "none")}
