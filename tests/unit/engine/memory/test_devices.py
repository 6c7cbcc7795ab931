"""A model with instances on several devices of one backend, which picks the one for a batch."""

from __future__ import annotations

import pytest

from benchmarks.device_memory import (
    BASE,
    HEADROOM,
    LATENCY,
    OFFERED_PER_S,
    PER_ROW,
    ROWS_MAX,
    TOTAL,
    tenant,
)
from scheduler._native.engine import OWN_EXECUTORS, Answer
from scheduler.simulation.engine import (
    Device,
    EngineOutcome,
    EngineSettings,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import Arrivals, Model, Scenario, engine, simulate
from tests.unit.engine.driver import MS
from tests.unit.engine.memory.test_memory import INTERNAL, MIB, Gpu, arena_run


class Gpus(Gpu):
    """One backend with as many instances on each of two devices."""

    def __init__(self, on_device: int = 1, told: int = 0) -> None:
        super().__init__()
        self.configure([(0, 2 * on_device, True, OWN_EXECUTORS, [0, 1], told)])

    def read_each(self, *free_mib: int, known: bool = True) -> None:
        for device, mib in enumerate(free_mib):
            self.engine.set_device(
                device, self.now, free_bytes=mib * MIB, total_bytes=10_000 * MIB, known=known
            )
        self.engine.check_invariants()

    def reserved_mib(self) -> list[float]:
        return [self.engine.device_status(device)[2] / MIB for device in (0, 1)]

    def limit(self) -> int:
        return int(self.engine.memory_status(0, 0).rows_limit)


def seconds_simulated(
    placements: tuple[Placement, ...], seed: int, seconds: float, offered_per_s: float
) -> EngineOutcome:
    """A model on two devices; another tenant takes and frees memory of the first."""
    setup = ModelSetup(
        placements=placements,
        classes=(RequestClass(objective_ms=float("inf")),),
        rows_max=ROWS_MAX,
        load_aware=False,
        queue_requests_max=1000,
        base_bytes=BASE,
        bytes_per_row=PER_ROW,
    )
    uses = tenant(seed, seconds / 60)
    settings = EngineSettings(
        models=(setup,),
        devices=(
            Device(TOTAL, HEADROOM, 100.0, uses),
            Device(TOTAL, HEADROOM, 100.0, ()),
        ),
        stop_ns=round(seconds * 1e9),
    )
    scenario = Scenario(
        models=(Model(LATENCY, 1000.0, Arrivals("poisson", offered_per_s)),),
        executors=2,
        seed=seed,
        warm_up_ms=0.0,
        requests=round(offered_per_s * seconds),
    )
    found = simulate(scenario, engine(settings)).engine
    assert found is not None
    return found


BOTH = (Placement(0, instances=2, devices=(0, 1)),)
EACH = (Placement(0, devices=(0,)), Placement(1, devices=(1,)))


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_need_is_learned_beside_another_tenant_of_one_device(seed: int) -> None:
    found = seconds_simulated(BOTH, seed, 15.0, 2 * OFFERED_PER_S)
    assert (found.failed_batches, found.memory_failures, found.classes[0][0].failed) == (0, 0, 0)
    (need, _) = found.memory
    assert need.known
    assert need.base_bytes == pytest.approx(BASE, rel=0.01)
    assert need.bytes_per_row == pytest.approx(PER_ROW, rel=0.01)


def test_one_backend_with_two_devices_does_as_much_as_two_with_one_each() -> None:
    """Once each instance has had room for the largest batch, as both keep it."""
    done = [
        seconds_simulated(placements, 1, 60.0, 2 * OFFERED_PER_S).classes[0][0].in_time
        for placements in (BOTH, EACH)
    ]
    assert done[0] > 0.95 * done[1]


def test_few_requests_teach_it_too() -> None:
    found = seconds_simulated(BOTH, 1, 20.0, 1_000.0)
    assert (found.failed_batches, found.classes[0][0].failed) == (0, 0)
    assert found.memory[0].known


def test_the_device_with_the_least_room_sets_the_limit() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB, base=200 * MIB)
    gpu.read_each(4_000, 1_200)
    assert gpu.limit() == 10


def test_no_device_has_more_batches_than_instances() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(1_000, 1_500)
    gpu.submit_many(range(64))
    assert [batch.rows for batch in gpu.step()] == [10, 10]
    assert gpu.reserved_mib() == [1_000, 1_000]


@pytest.mark.parametrize(("on_device", "told", "sent"), [(2, 0, 2), (2, 3, 3)])
def test_as_many_instances_are_on_each_device_unless_more_are_told_to_be_on_one(
    on_device: int, told: int, sent: int
) -> None:
    gpu = Gpus(on_device, told)
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(5_000, 5_000)
    gpu.submit_many(range(4), rows=5, mergeable=False)
    assert len(gpu.step()) == 4
    assert gpu.reserved_mib() == [500 * sent, 500 * sent]


def test_what_has_ended_counts_by_device_until_that_is_read() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(1_000, 1_000)
    gpu.submit_many(range(64))
    for batch in gpu.step():
        gpu.after(MS).complete(batch)
    assert gpu.reserved_mib() == [1_000, 1_000]
    gpu.engine.set_device(0, gpu.after(MS).now, free_bytes=0, total_bytes=TOTAL)
    gpu.engine.check_invariants()
    assert gpu.reserved_mib() == [0, 1_000]
    gpu.read_each(0, 0)
    assert gpu.reserved_mib() == [0, 0]
    assert gpu.engine.memory_status(0, 0).rows_high == 10


@pytest.mark.parametrize(
    ("counts", "told"), [((3, 1), 3), ((1, 3), 3), ((2, 1), 0), ((1, 2), 0), ((2, 2), 0)]
)
def test_the_need_is_learned_whichever_device_has_more_instances(
    counts: tuple[int, ...], told: int
) -> None:
    gpu = Gpu(rows_max=4096)
    gpu.configure([(0, sum(counts), True, OWN_EXECUTORS, [0, 1], told)])

    def read(rows: int) -> None:
        for device, count in enumerate(counts):
            used = count * (200 + 100 * rows) * MIB if rows else 0
            gpu.engine.set_device(
                device, gpu.now, free_bytes=40_000 * MIB - used, total_bytes=40_000 * MIB
            )
            gpu.after(MS)

    read(0)
    for rows in range(2, 24, 2):
        gpu.submit_many(range(100 * rows, 100 * rows + sum(counts)), rows=rows, mergeable=False)
        batches = gpu.step()
        assert len(batches) == sum(counts)
        gpu.after(10 * MS)
        for batch in batches:
            gpu.complete(batch)
        gpu.after(MS)
        read(rows)
    need = gpu.engine.memory_status(0, 0)
    assert need.known
    assert need.bytes_per_row == pytest.approx(100 * MIB)
    assert need.base_bytes == pytest.approx(200 * MIB)


@pytest.mark.parametrize("first", [0, 1])
def test_lone_batches_that_fill_one_device_do_not_cut_those_of_all(first: int) -> None:
    """A reading that shows on one device what a batch takes tells that it ran there."""
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    free = [1_000, 1_000]
    gpu.read_each(*free)
    for rows in (4, 10, 10):
        gpu.submit_many(range(rows))
        (batch,) = gpu.step()
        assert batch.rows == rows
        gpu.after(MS).complete(batch)
        free[first] = min(free[first], 1_000 - 100 * rows)
        gpu.after(MS).read_each(*free)
        gpu.after(MS)
    assert gpu.reserved_mib() == [0, 0]
    gpu.submit_many(range(64))
    assert [batch.rows for batch in gpu.step()][:2] == [10, 10]
    # The one that has run so much takes nothing new.
    assert gpu.reserved_mib()[first] == 0
    assert gpu.reserved_mib()[1 - first] == 1_000


def test_memory_that_another_tenant_takes_says_nothing_of_where_a_batch_ran() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(2_000, 1_000)
    gpu.submit_many(range(10))
    (batch,) = gpu.step()
    gpu.after(MS).complete(batch)
    gpu.after(MS).read_each(1_000, 300)  # the batch on the first; a tenant on the second
    assert gpu.limit() == 3


def test_sizes_that_follow_each_other_count_once() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=5_000 * MIB)
    for rows in (10, 15, 12):
        gpu.submit(rows, rows=rows, mergeable=False)
        (batch,) = gpu.step()
        gpu.after(MS).complete(batch)
    assert gpu.reserved() == 1_500 * MIB


def test_an_instance_may_run_a_size_that_another_has_grown_to() -> None:
    gpu = Gpu(instances=3)
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=5_000 * MIB)
    for turn in range(9):  # one at a time, whichever instance takes it
        gpu.submit(turn, rows=10, mergeable=False)
        (batch,) = gpu.step()
        gpu.after(MS).complete(batch)
    assert gpu.reserved() == 3_000 * MIB


def test_what_a_placement_that_is_gone_has_taken_counts_until_it_is_read() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(1_000, 1_000)
    gpu.submit_many(range(64))
    first, second = gpu.step()
    gpu.after(MS).complete(first)
    gpu.configure([(1, 1, True, OWN_EXECUTORS, [1])])
    gpu.engine.check_invariants()
    assert gpu.reserved_mib() == [1_000, 1_000]
    gpu.after(MS).complete(second)
    gpu.engine.check_invariants()
    assert gpu.reserved_mib() == [1_000, 1_000]
    gpu.after(MS).read_each(1_000, 1_000)
    assert gpu.reserved_mib() == [0, 0]


def test_memory_of_another_device_lifts_no_cap() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(1_000, 9_000)
    gpu.submit_many(range(64))
    batch, *_ = gpu.step()
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    for _ in range(2):
        gpu.after(MS).read_each(1_000, 9_000)
    assert gpu.engine.memory_status(0, 0).rows_cap == 8
    gpu.after(MS).read_each(5_000, 9_000)
    assert gpu.engine.memory_status(0, 0).rows_cap == 0


def test_a_refusal_tells_of_the_device_with_the_least() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB)
    gpu.read_each(300, 9_000)
    gpu.submit(1, rows=4, mergeable=False)
    answers: list[Answer] = []
    while sent := gpu.step():
        answers += gpu.after(MS).fail(sent[0], "out_of_memory", INTERNAL)
    assert [(a.predicted_bytes, a.free_bytes) for a in answers] == [(400 * MIB, 300 * MIB)]


def test_a_server_that_was_away_keeps_what_it_proved_on_both() -> None:
    gpu = Gpus()
    gpu.prime(per_row=100 * MIB, rows_high=40)
    gpu.read_each(500, 700)
    gpu.engine.set_backend(0, False, gpu.now)
    gpu.engine.set_backend(0, True, gpu.after(MS).now)
    gpu.after(MS).read_each(500, 700)
    assert (gpu.engine.memory_status(0, 0).rows_high, gpu.limit()) == (40, 45)


def test_it_is_saved_and_loaded() -> None:
    gpu = Gpus(on_device=2)
    gpu.read_each(9_000, 9_000)
    arena_run(gpu, 800 * MIB, 64 * MIB)
    gpu.submit_many(range(200, 300))
    gpu.complete(gpu.step()[0])
    state = gpu.engine.save()
    copy = type(gpu.engine)()
    assert copy.load(state)
    copy.check_invariants()
    assert copy.save() == state
    assert copy.device_status(1) == gpu.engine.device_status(1)
