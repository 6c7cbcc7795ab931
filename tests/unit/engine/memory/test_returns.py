"""What is kept of a server's device memory when it was away: it may have been started anew."""

from __future__ import annotations

import pytest

from scheduler._native.engine import OWN_EXECUTORS
from tests.unit.engine.driver import MS, SECOND
from tests.unit.engine.memory.test_memory import MIB, TOTAL, Gpu


def read_all(gpu: Gpu, devices: int, free: int) -> None:
    for device in range(devices):
        gpu.engine.set_device(device, gpu.now, free_bytes=free, total_bytes=TOTAL)
    gpu.engine.check_invariants()


def come_back(gpu: Gpu, backend: int = 0) -> None:
    gpu.engine.set_backend(backend, False, gpu.now)
    gpu.engine.set_backend(backend, True, gpu.after(MS).now)


@pytest.mark.parametrize(("free", "limit"), [(500, 45), (4_500, 45)], ids=["was there", "anew"])
def test_a_server_that_was_away_keeps_what_it_proved_unless_memory_was_freed(
    free: int, limit: int
) -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB, rows_high=40)
    gpu.read(free=500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_limit == 45
    gpu.engine.set_backend(0, False, gpu.now)
    gpu.after(MS).read(free=4_500 * MIB)  # not there: says nothing
    gpu.engine.set_backend(0, True, gpu.after(MS).now)
    gpu.after(MS).read(free=free * MIB)
    assert gpu.engine.memory_status(0, 0).rows_limit == limit
    assert gpu.engine.memory_status(0, 0).rows_high == (0 if free > 500 else 40)


def test_of_several_devices_nothing_is_kept() -> None:
    gpu = Gpu()
    gpu.configure([(0, 1, True, OWN_EXECUTORS, [0, 1])])
    gpu.prime(per_row=100 * MIB, rows_high=40)
    read_all(gpu, 2, 500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_high == 40
    come_back(gpu)
    # A reading from before says nothing.
    gpu.engine.set_device(0, gpu.now, free_bytes=500 * MIB, total_bytes=TOTAL, measured_at=0)
    assert gpu.engine.memory_status(0, 0).rows_high == 40
    read_all(gpu.after(MS), 2, 4_500 * MIB)
    status = gpu.engine.memory_status(0, 0)
    assert (status.rows_high, status.rows_limit) == (0, 45)
    read_all(gpu.after(MS), 2, 500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_limit == 5


def test_nothing_is_kept_where_no_reading_has_shown_what_was() -> None:
    gpu = Gpu()
    gpu.engine.configure_model(1, [(1, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    gpu.engine.set_backend(1, True, gpu.now)
    gpu.engine.prime_memory(1, 0, 0, MIB, 0, True)
    # A batch of the other model, which takes memory all the time.
    gpu.submit(1, model=1)
    gpu.step()
    gpu.prime(per_row=100 * MIB, rows_high=40)
    gpu.read(free=500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_high == 40
    come_back(gpu)
    gpu.after(MS).read(free=4_500 * MIB)
    status = gpu.engine.memory_status(0, 0)
    assert (status.rows_high, status.rows_limit) == (0, 44)


def test_what_was_shown_waits_for_a_reading_that_can_be_compared() -> None:
    gpu = Gpu()
    gpu.engine.configure_model(1, [(1, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    gpu.engine.set_backend(1, True, gpu.now)
    gpu.engine.prime_memory(1, 0, 0, MIB, 0, True)
    gpu.prime(per_row=100 * MIB, rows_high=40)
    gpu.read(free=500 * MIB)
    gpu.submit(1, model=1)
    (other,) = gpu.step()
    come_back(gpu)
    gpu.after(MS).read(free=4_500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_high == 40
    gpu.complete(other)
    gpu.after(SECOND).read(free=4_500 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_high == 0


def test_sizes_that_ran_are_tried_anew_where_their_need_is_not_known() -> None:
    gpu = Gpu()
    for _ in range(2):
        gpu.after(100 * MS).read(TOTAL)
        gpu.rows_of_next()
    assert gpu.engine.memory_status(0, 0).rows_high == 2
    come_back(gpu)
    gpu.after(MS).read(TOTAL)
    assert gpu.engine.memory_status(0, 0).rows_high == 0


def test_what_is_told_of_a_server_that_has_come_back_needs_no_reading() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=500 * MIB)
    come_back(gpu)
    gpu.prime(per_row=100 * MIB, rows_high=30)
    gpu.after(MS).read(free=500 * MIB)
    status = gpu.engine.memory_status(0, 0)
    assert (status.rows_high, status.rows_limit) == (30, 35)


def test_figures_that_are_fixed_no_more_give_way_to_others() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    for rows in range(1, 8):  # by which as much is learned
        gpu.read(free=gpu.free - 50 * MIB)
        gpu.rows_of_next(rows)
        gpu.after(MS).read()
    assert gpu.engine.memory_status(0, 0).bytes_per_row == 100 * MIB
    assert gpu.engine.prime_memory(0, 0, MIB, 60 * MIB, 0, False)
    status = gpu.engine.memory_status(0, 0)
    assert (status.base_bytes, status.bytes_per_row) == (MIB, 60 * MIB)
