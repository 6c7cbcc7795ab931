"""Rows of one model that differ in their bytes: what they take of a device goes with them."""

from __future__ import annotations

import itertools

import pytest

from scheduler._native.engine import OWN_EXECUTORS, TritonBlock
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.memory.test_memory import INTERNAL, MIB, TOTAL, Gpu

SMALL = {"signature": 1, "row_bytes": 64}
LARGE = {"signature": 2, "row_bytes": 256}


def first_batch(gpu: Driver, of: dict[str, int], count: int = 64) -> int:
    """Rows of the first batch of so many requests; all of them end well."""
    gpu.submit_many(range(count), **of)
    first = 0
    while batches := gpu.step():
        first = first or batches[0].rows_padded
        for batch in batches:
            gpu.after(MS).complete(batch)
    return first


def primed(free: int, per_row: float = 100 * MIB, **policy: object) -> Gpu:
    """The need of a row of SMALL is told: those come first."""
    gpu = Gpu(**policy)
    gpu.prime(per_row)
    gpu.read(free)
    first_batch(gpu, SMALL, 1)
    return gpu


def cut_at(gpu: Driver, of: dict[str, int], count: int) -> None:
    """One batch of so many rows runs out of memory, and nobody waits for its halves."""
    handles = gpu.submit_many(range(1000, 1000 + count), **of)
    (batch,) = gpu.step()
    assert batch.rows == count
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    for handle in handles:
        gpu.cancel(handle)


@pytest.mark.parametrize("policy", [{}, {"slo_ns": SECOND}])
@pytest.mark.parametrize(("of", "rows"), [(SMALL, 20), (LARGE, 5)])
def test_a_batch_takes_what_its_rows_do(
    policy: dict[str, object], of: dict[str, int], rows: int
) -> None:
    gpu = primed(free=2_000 * MIB, **policy)
    for _ in range(40):  # of models batched by latency, until sizes are trusted
        first_batch(gpu, of, 128)
    assert first_batch(gpu, of, 128) == rows
    assert gpu.engine.memory_status(0, 0).rows_high == 20


def test_bytes_are_reserved_by_the_size_of_rows() -> None:
    gpu = Gpu()
    gpu.prime(100 * MIB, base=200 * MIB)
    gpu.read(free=2_000 * MIB)
    gpu.submit(1, **SMALL)
    (small,) = gpu.step()
    assert gpu.reserved() == 300 * MIB
    gpu.after(MS).complete(small)
    gpu.submit_many(range(2, 6), **LARGE)
    (large,) = gpu.step()
    assert large.rows == 4
    # The one row that has run is a quarter of a large one.
    assert gpu.reserved() == 300 * MIB + 15 * 100 * MIB


def test_what_has_run_of_one_shape_is_proven_for_the_others() -> None:
    gpu = primed(free=2_000 * MIB)
    assert first_batch(gpu, SMALL) == 20
    gpu.after(MS).read(free=0)
    assert first_batch(gpu, LARGE) == 5
    assert first_batch(gpu, SMALL) == 20


def test_a_row_that_does_not_fit_goes_alone() -> None:
    gpu = primed(free=200 * MIB)
    assert first_batch(gpu, LARGE, 3) == 1


@pytest.mark.parametrize("unit", [1, 64, 1000])
def test_the_need_is_learned_from_rows_of_all_sizes(unit: int) -> None:
    gpu = Gpu()
    base, per_unit = 800 * MIB, 16 * MIB
    sizes = (unit, 4 * unit, 3 * unit)
    high = 0
    for round_ in range(120):
        gpu.after(100 * MS).read(TOTAL - (base + per_unit * high if high else 0))
        row = sizes[round_ % 3]
        gpu.submit_many(range(64), signature=row, row_bytes=row)
        while batches := gpu.step():
            for batch in batches:
                high = max(high, batch.rows * row // unit)
                gpu.after(MS).complete(batch)
    status = gpu.engine.memory_status(0, 0)
    assert high == 256
    assert status.bytes_per_row == pytest.approx(per_unit, rel=0.01)
    assert status.base_bytes == pytest.approx(base, rel=0.01)
    assert status.error < 0.01


@pytest.mark.parametrize("first", [1, 64, 100_000])
def test_sizes_grow_by_rows_whatever_came_first(first: int) -> None:
    gpu = Gpu()
    gpu.cancel(gpu.submit(1, signature=1, row_bytes=first))
    seen = []
    for _ in range(6):
        gpu.after(100 * MS).read(gpu.free - 50 * MIB)
        seen.append(first_batch(gpu, LARGE))
    assert seen[:2] == [1, 2]
    assert all(after <= 2 * before for before, after in itertools.pairwise(seen))
    assert seen[-1] >= 4


def test_a_cap_counts_for_rows_of_all_sizes() -> None:
    gpu = Driver([(0, 1, True, OWN_EXECUTORS, [0])], rows_max=64)
    first_batch(gpu, SMALL, 1)
    cut_at(gpu, LARGE, 10)
    assert gpu.engine.memory_status(0, 0).rows_cap == 32
    assert first_batch(gpu, SMALL) == 32
    assert first_batch(gpu, LARGE) == 8
    for _ in range(1000):
        first_batch(gpu, SMALL, 1)
    # By a row of what had failed.
    assert gpu.engine.memory_status(0, 0).rows_cap == 36
    assert first_batch(gpu, LARGE) == 9


def test_a_cap_holds_for_rows_that_are_smaller_than_the_first() -> None:
    gpu = Driver([(0, 1, True, OWN_EXECUTORS, [0])], rows_max=64)
    first_batch(gpu, {"signature": 1, "row_bytes": 64_000}, 1)
    cut_at(gpu, SMALL, 50)
    assert first_batch(gpu, SMALL) == 40
    assert first_batch(gpu, LARGE) == 10


def test_a_failed_batch_is_cut_to_what_fits_its_rows() -> None:
    gpu = Driver([(0, 1, True, OWN_EXECUTORS, [0])], rows_max=64)
    first_batch(gpu, SMALL, 1)
    gpu.submit_many(range(1, 33), **LARGE)
    sizes = []
    while batches := gpu.step():
        for batch in batches:
            sizes.append(batch.rows)
            if batch.rows > 5:
                gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
            else:
                gpu.after(MS).complete(batch)
    assert sizes[0] == 32
    assert set(gpu.answers().values()) == {("completed", "none")}


def test_mandatory_sizes_are_weighed_as_well() -> None:
    sizes = (4, 16, 64)
    gpu = primed(free=9_000 * MIB, mandatory_rows=sizes)
    assert first_batch(gpu, SMALL) == 64
    assert first_batch(gpu, LARGE) == 16
    unknown = Gpu(mandatory_rows=sizes)
    unknown.read()
    first_batch(unknown, SMALL, 1)
    seen = []
    for _ in range(6):
        unknown.after(100 * MS).read(unknown.free - 50 * MIB)
        seen.append(first_batch(unknown, LARGE))
    assert seen[0] == 4
    assert 16 in seen


def test_a_request_that_fits_no_device_is_refused_by_its_bytes() -> None:
    gpu = primed(free=1_000 * MIB)
    gpu.after(MS).read()
    gpu.submit(1, rows=5, mergeable=False, row_bytes=64)
    gpu.submit(2, rows=5, mergeable=False, row_bytes=256)  # one is let in, a second
    refused = gpu.engine.submit(gpu.now, rows=5, mergeable=False, row_bytes=256)
    assert refused.reason == "device_memory"
    assert (refused.predicted_bytes, refused.free_bytes) == (1_900 * MIB, 1_000 * MIB)
    gpu.submit(3, rows=5, mergeable=False, row_bytes=64)


@pytest.mark.parametrize(("of", "rows"), [(SMALL, 20), (LARGE, 5)])
def test_batches_formed_as_triton_does_fit_as_well(of: dict[str, int], rows: int) -> None:
    gpu = primed(free=2_000 * MIB, triton=TritonBlock(preferred_rows=(64,)))
    assert first_batch(gpu, of) == rows


def test_rows_of_all_sizes_are_saved_and_loaded() -> None:
    gpu = primed(free=2_000 * MIB)
    cut_at(gpu, LARGE, 4)
    gpu.submit_many(range(200, 230), **LARGE)
    gpu.submit_many(range(300, 330), **SMALL)
    gpu.step()
    state = gpu.engine.save()
    copy = type(gpu.engine)()
    assert copy.load(state)
    assert copy.save() == state
    assert copy.memory_status(0, 0) == gpu.engine.memory_status(0, 0)
    sent = []
    for engine in (gpu.engine, copy):
        engine.take_actions()
        engine.submit(gpu.now, user=1, signature=3, row_bytes=128)
        for _ in range(20):
            engine.step(gpu.now)
            actions = engine.take_actions()
            sent.append([str(action) for action in actions])
            for action in actions:
                if hasattr(action, "members"):
                    engine.complete(action.batch, gpu.now)
    assert sent[:20] == sent[20:]
