"""Batches that fit the memory of their device: limits, learning, reservations, out-of-memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

import pytest

from scheduler._native.engine import OWN_EXECUTORS, Dispatch
from tests.unit.engine.driver import MS, SECOND, Driver, users

MIB = 1 << 20
TOTAL = 10_000 * MIB
INTERNAL, RESOURCE_EXHAUSTED = 13, 8


class Gpu(Driver):
    """One backend on device 0, whose figures the test says."""

    def __init__(self, instances: int = 1, backends: int = 1, **policy: object) -> None:
        placements = [(b, instances, True, OWN_EXECUTORS, [0]) for b in range(backends)]
        super().__init__(placements, **{"rows_max": 64, **policy})
        self.free = TOTAL
        self.headroom = 0

    def read(self, free: int | None = None, known: bool = True, **own: int) -> None:
        self.free = self.free if free is None else free
        self.engine.set_device(
            0, self.now, free_bytes=self.free, total_bytes=TOTAL, headroom_bytes=self.headroom,
            known=known, **own,
        )  # fmt: skip
        self.engine.check_invariants()

    def prime(self, per_row: float, base: float = 0, rows_high: int = 0) -> None:
        assert self.engine.prime_memory(0, 0, base, per_row, rows_high, True)

    def reserved(self) -> int:
        return self.engine.device_status(0)[2]

    def rows_of_next(self, queued: int = 64) -> int:
        """Of the batch that is sent of so many rows, which ends well."""
        self.submit_many(range(queued))
        first = 0
        while batches := self.step():
            first = first or batches[0].rows
            for batch in batches:
                self.after(MS).complete(batch)
        return first


def test_nothing_is_limited_without_a_device() -> None:
    driver = Driver(1, rows_max=64)
    driver.submit_many(range(64))
    (batch,) = driver.step()
    assert batch.rows == 64
    assert driver.engine.memory_status(0, 0).rows_limit == 0


def test_a_batch_takes_no_more_than_is_free_less_headroom() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB, base=200 * MIB)
    gpu.headroom = 300 * MIB
    gpu.read(free=2_000 * MIB)
    gpu.submit_many(range(64))
    (batch,) = gpu.step()
    assert batch.rows == 15
    assert gpu.reserved() == 1_700 * MIB
    assert gpu.engine.counters(0)["memory_limited_batches"] == 1


@pytest.mark.parametrize("policy", [{"load_aware": True, "slo_ns": SECOND}, {}])
def test_what_has_run_needs_nothing_new(policy: dict[str, object]) -> None:
    gpu = Gpu(**policy)
    gpu.prime(per_row=100 * MIB, rows_high=40)
    gpu.read(free=0)
    for _ in range(60):
        gpu.rows_of_next(200)
    gpu.submit_many(range(200))
    batch, *_ = gpu.step()
    assert batch.rows == 40
    assert gpu.reserved() == 0


def test_padded_sizes_count_as_they_are_sent() -> None:
    gpu = Gpu(mandatory_rows=(8, 16, 32, 64))
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=2_000 * MIB)
    gpu.submit_many(range(64))
    (batch,) = gpu.step()
    assert batch.rows_padded == 16


def test_bytes_stay_reserved_until_a_later_reading() -> None:
    gpu = Gpu(instances=2)
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.submit_many(range(64))
    first, second = gpu.step()
    # Each of the two instances has an allocator of its own.
    assert (first.rows, second.rows) == (10, 1)
    taken_at = gpu.now
    gpu.after(MS).complete(first)
    assert gpu.reserved() == 1_100 * MIB
    gpu.engine.set_device(0, gpu.now, free_bytes=1_000 * MIB, total_bytes=TOTAL,
                          measured_at=taken_at)  # fmt: skip
    assert gpu.reserved() == 1_100 * MIB
    gpu.after(MS).read(free=0)
    assert gpu.reserved() == 100 * MIB


def test_two_models_do_not_overcommit_a_device() -> None:
    gpu = Gpu()
    gpu.engine.configure_model(1, [(0, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    gpu.prime(per_row=100 * MIB)
    gpu.engine.prime_memory(1, 0, 0, 50 * MIB, 0, True)
    gpu.read(free=2_000 * MIB)
    gpu.submit_many(range(16))
    gpu.submit_many(range(64), model=1)
    sent = {batch.model: batch.rows for batch in gpu.step()}
    assert sent == {0: 16, 1: 8}


def arena_run(gpu: Gpu, base: int, per_row: int, others: Callable[[], int] = lambda: 0) -> int:
    """Batches of an allocator that keeps its largest, a reading after each. The largest batch.

    `others`: what another tenant has at a reading.
    """
    high = 0
    for _ in range(40):
        gpu.after(100 * MS).read(TOTAL - others() - (base + per_row * high if high else 0))
        gpu.submit_many(range(64))
        while batches := gpu.step():
            for batch in batches:
                high = max(high, batch.rows)
                gpu.after(MS).complete(batch)
    return high


def test_the_need_is_learned_from_successive_largest_batches() -> None:
    gpu = Gpu()
    assert arena_run(gpu, 800 * MIB, 64 * MIB) == 64
    status = gpu.engine.memory_status(0, 0)
    assert status.known
    assert status.samples >= 4
    assert status.bytes_per_row == pytest.approx(64 * MIB, rel=0.01)
    assert status.base_bytes == pytest.approx(800 * MIB, rel=0.01)
    assert status.error < 0.01
    assert status.rows_high == 64


@pytest.mark.parametrize("seed", range(20))
def test_what_another_tenant_takes_and_frees_is_not_learned(seed: int) -> None:
    random = Random(seed)
    gpu, has = Gpu(), [0]
    start = gpu.now

    def others() -> int:
        # The first batch is seen alone: what it takes beyond its rows is seen once.
        if gpu.now > start + 300 * MS and random.random() < 0.4:
            has[0] = random.randrange(0, 4_000 * MIB)
        return has[0]

    arena_run(gpu, 800 * MIB, 64 * MIB, others)
    status = gpu.engine.memory_status(0, 0)
    assert status.bytes_per_row == pytest.approx(64 * MIB, rel=0.03)
    assert status.base_bytes == pytest.approx(800 * MIB, rel=0.1)


def test_what_all_instances_use_bounds_what_the_first_batch_took() -> None:
    gpu, left = Gpu(), iter([0, 3_000 * MIB, 3_000 * MIB])
    arena_run(gpu, 800 * MIB, 64 * MIB, lambda: next(left, 0))
    assert gpu.engine.memory_status(0, 0).base_bytes == pytest.approx(800 * MIB, rel=0.01)


def test_a_need_is_not_trusted_before_enough_samples_agree() -> None:
    gpu, high, taken = Gpu(), 0, 0
    for turn in range(7):
        taken += 100 * MIB * 4**turn // 100
        gpu.after(100 * MS).read(TOTAL - taken)
        high = gpu.rows_of_next()
    status = gpu.engine.memory_status(0, 0)
    assert status.samples >= 5
    # By steps still: sizes do not double.
    assert high == 7


def test_sizes_grow_by_steps_while_the_need_is_not_known() -> None:
    gpu = Gpu()
    gpu.read()
    # Without a reading that shows the last step there is no further one.
    assert [gpu.rows_of_next() for _ in range(3)] == [1, 1, 1]
    seen = []
    for _ in range(6):
        gpu.after(100 * MS).read(gpu.free - 50 * MIB)
        seen.append(gpu.rows_of_next())
    assert seen[:4] == [2, 3, 4, 5]
    assert all(after <= 2 * before for before, after in itertools.pairwise(seen))


def test_what_others_take_is_no_sample() -> None:
    gpu = Gpu()
    gpu.engine.configure_model(1, [(0, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    for round_ in range(8):
        gpu.after(100 * MS).read(gpu.free - 500 * MIB)
        gpu.submit_many(range(64), model=round_ % 2)
        while batches := gpu.step():
            for batch in batches:
                gpu.after(MS).complete(batch)
        gpu.submit_many(range(64), model=1 - round_ % 2)
        while batches := gpu.step():
            for batch in batches:
                gpu.after(MS).complete(batch)
    assert gpu.engine.memory_status(0, 0).samples == 0


def test_a_lone_large_request_is_not_cut_by_what_is_not_known() -> None:
    gpu = Gpu()
    gpu.read()
    gpu.submit(1, rows=40)
    (batch,) = gpu.step()
    assert batch.rows == 40


def test_a_request_larger_than_what_fits_goes_in_parts() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.submit(1, rows=30)
    sent = []
    while batches := gpu.step():
        (batch,) = batches
        sent.append(batch.rows)
        gpu.after(MS).complete(batch)
    assert sent[0] == 10
    assert sum(sent) == 30
    assert gpu.answers() == {1: ("completed", "none")}


def run_out(gpu: Driver, fits: int) -> list[int]:
    """Plays a device on which batches of more than `fits` rows run out of memory."""
    sizes = []
    while batches := gpu.step():
        for batch in batches:
            sizes.append(batch.rows)
            if batch.rows > fits:
                gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
            else:
                gpu.after(MS).complete(batch)
    return sizes


@pytest.mark.parametrize("fits", [1, 7, 40])
@pytest.mark.parametrize("kind", ["lone", "one", "merged"])
def test_no_client_sees_that_a_batch_ran_out_of_memory(fits: int, kind: str) -> None:
    driver = Gpu() if kind == "merged" else Driver(1, rows_max=64)
    if kind == "one":
        driver.submit(1, rows=64)
    else:
        driver.submit_many(range(64))
    run_out(driver, fits)
    assert set(driver.answers().values()) == {("completed", "none")}
    assert driver.engine.requests_inflight == 0


def test_the_cap_is_a_fifth_below_what_failed_and_climbs_by_good_batches() -> None:
    driver = Driver([(0, 1, True, OWN_EXECUTORS, [0])], rows_max=64)
    driver.submit_many(range(64))
    (batch,) = driver.step()
    driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
    assert driver.engine.memory_status(0, 0).rows_cap == 51
    for _ in range(1000):
        driver.submit(1000)
        for small in driver.step():
            driver.after(MS).complete(small)
    assert driver.engine.memory_status(0, 0).rows_cap == 52
    assert driver.engine.counters(0)["out_of_memory_replies"] == 1


def test_the_cap_is_lifted_when_memory_was_freed() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=6_400 * MIB)
    gpu.submit_many(range(64))
    (batch,) = gpu.step()
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    gpu.after(MS).read(free=1_000 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_cap == 51
    gpu.after(MS).read(free=9_000 * MIB)
    assert gpu.engine.memory_status(0, 0).rows_cap == 0


def test_what_cannot_be_cut_runs_again_when_the_others_are_done() -> None:
    gpu = Gpu(instances=2)
    gpu.engine.configure_model(1, [(0, 2, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    gpu.submit(1, rows=4, mergeable=False)
    gpu.submit(2, rows=1, model=1)
    mine, other = sorted(gpu.step(), key=lambda batch: batch.model)
    gpu.after(MS).fail(mine, "out_of_memory", INTERNAL)
    gpu.submit(3, rows=1, model=1)
    assert gpu.step() == []  # the device is kept free for it
    gpu.after(MS).complete(other)
    (again,) = gpu.step()
    assert users(again) == [1]
    gpu.after(MS).complete(again)
    (held,) = gpu.step()
    assert users(held) == [3]


def test_what_waits_to_be_alone_does_not_wait_for_what_is_sent_again_before_it() -> None:
    gpu = Gpu(instances=2)
    gpu.submit_many([1, 2, 3], rows=1, mergeable=False)
    sent = gpu.step()
    assert len(sent) == 2
    for batch in sent:
        gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    run_out(gpu, 1)
    gpu.after(SECOND)
    run_out(gpu, 1)
    assert set(gpu.answers().values()) == {("completed", "none")}
    assert gpu.engine.requests_inflight == 0


def test_what_runs_out_of_memory_alone_is_refused_with_its_bytes() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB, base=200 * MIB)
    gpu.read(free=900 * MIB)
    gpu.submit(1, rows=4, mergeable=False)
    batches: list[Dispatch] = []
    while sent := gpu.step():
        batches += sent
        answers = gpu.after(MS).fail(sent[0], "out_of_memory", INTERNAL)
    assert len(batches) == 2
    (answer,) = answers
    assert (answer.outcome, answer.reason, answer.code) == (
        "failed", "device_memory", RESOURCE_EXHAUSTED,
    )  # fmt: skip
    # By what is known it would have fitted: it needs more than that.
    assert (answer.predicted_bytes, answer.free_bytes) == (900 * MIB + 1, 900 * MIB)


def test_another_device_is_tried_first() -> None:
    driver = Driver(
        [(0, 1, True, OWN_EXECUTORS, [0]), (1, 1, True, OWN_EXECUTORS, [1])], rows_max=8
    )
    driver.submit(1, mergeable=False)
    (batch,) = driver.step()
    driver.after(MS).fail(batch, "out_of_memory", INTERNAL)
    (again,) = driver.step()
    assert again.backend != batch.backend


def test_what_fits_no_device_is_refused_at_once() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.submit(1, rows=20, mergeable=False)  # what the prediction says is tried once a second
    refused = gpu.engine.submit(gpu.now, rows=20, mergeable=False)
    assert refused.reason == "device_memory"
    assert refused.retry_after_ns > 0
    assert (refused.predicted_bytes, refused.free_bytes) == (2_000 * MIB, 1_000 * MIB)
    gpu.after(SECOND).submit(2, rows=20, mergeable=False)


def test_a_refusal_tells_the_bytes_that_were_compared() -> None:
    gpu = Gpu()
    gpu.headroom = 300 * MIB
    gpu.prime(per_row=100 * MIB, rows_high=8)
    gpu.read(free=1_000 * MIB)
    gpu.submit(1, rows=16, mergeable=False)  # tried all the same
    refused = gpu.engine.submit(gpu.now, rows=16, mergeable=False)
    assert (refused.predicted_bytes, refused.free_bytes) == (800 * MIB, 700 * MIB)


@pytest.mark.parametrize("figures", [(-1, 1, 0), (0, float("nan"), 0), (0, float("inf"), 0)])
def test_nonsense_is_not_taken_for_a_need(figures: tuple[float, float, int]) -> None:
    gpu = Gpu()
    assert not gpu.engine.prime_memory(0, 0, *figures)
    assert not gpu.engine.prime_memory(0, 1, 0, 1)
    assert not gpu.engine.prime_memory(9, 0, 0, 1)
    gpu.engine.set_device(1 << 31, gpu.now, free_bytes=1)
    assert not gpu.engine.memory_status(0, 0).known


def test_the_ledger_is_saved_and_loaded() -> None:
    gpu = Gpu(instances=2)
    arena_run(gpu, 800 * MIB, 64 * MIB)
    gpu.submit_many(range(200, 300))
    gpu.step()
    state = gpu.engine.save()
    copy = type(gpu.engine)()
    assert copy.load(state)
    assert copy.save() == state
    assert copy.memory_status(0, 0) == gpu.engine.memory_status(0, 0)
    assert copy.device_status(0) == gpu.engine.device_status(0)
