"""Device memory whose source of figures is lost: batches keep to what has run."""

from __future__ import annotations

from scheduler._native.engine import OWN_EXECUTORS
from tests.unit.engine.driver import MS
from tests.unit.engine.memory.test_memory import INTERNAL, MIB, Gpu, arena_run, run_out


def test_a_lost_source_leaves_the_learned_cap() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.submit_many(range(64))
    (batch,) = gpu.step()
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    gpu.after(MS).read(known=False)
    assert gpu.engine.memory_status(0, 0).rows_limit == 8
    run_out(gpu, 8)
    assert set(gpu.answers().values()) == {("completed", "none")}


def serve(gpu: Gpu, batches: int, queued: int = 64) -> list[int]:
    """The rows of so many batches that end well, while there are more rows than fit."""
    sizes: list[int] = []
    while len(sizes) < batches:
        gpu.submit_many(range(queued))
        for batch in gpu.step():
            sizes.append(batch.rows)
            gpu.after(MS).complete(batch)
    return sizes


def test_without_its_source_a_known_need_allows_what_has_run() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    assert gpu.rows_of_next() == 10
    gpu.after(MS).read(known=False)
    assert gpu.engine.memory_status(0, 0).rows_limit == 10
    assert max(serve(gpu, 50)) == 10
    gpu.submit(1, rows=40)
    assert gpu.step()[0].rows == 10


def test_without_its_source_what_has_never_run_is_limited_by_the_last_figures() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.after(MS).read(known=False)
    gpu.after(MS).read(known=False)
    assert serve(gpu, 1) == [10]


def test_without_its_source_a_learned_need_grows_by_steps_after_many_good_batches() -> None:
    gpu = Gpu()
    arena_run(gpu, 800 * MIB, 64 * MIB, lambda: 7_300 * MIB)
    largest = gpu.engine.memory_status(0, 0).rows_high
    assert 20 < largest < 64
    gpu.after(MS).read(known=False)
    assert max(serve(gpu, 900)) == largest
    assert max(serve(gpu, 900)) in range(largest + 1, round(1.1 * largest) + 1)
    # Of small ones, many prove nothing.
    high = gpu.engine.memory_status(0, 0).rows_limit
    serve(gpu, 3000, queued=2)
    assert gpu.engine.memory_status(0, 0).rows_limit == high


def test_a_model_that_comes_after_its_source_was_lost_begins_with_the_last_figures() -> None:
    gpu = Gpu()
    gpu.configure([])
    gpu.read(free=1_000 * MIB)
    gpu.after(MS).read(free=0, known=False)
    gpu.configure([(0, 1, True, OWN_EXECUTORS, [0])])
    assert serve(gpu, 1)[0] == 1
    gpu.configure([(1, 1, True, OWN_EXECUTORS, [0])])
    gpu.prime(per_row=100 * MIB)
    gpu.engine.set_backend(1, True, gpu.now)
    assert serve(gpu, 1) == [10]


def test_a_model_that_is_moved_to_a_device_whose_source_was_lost_begins_anew() -> None:
    gpu = Gpu()
    gpu.configure([(0, 1, True, OWN_EXECUTORS, [1])])
    gpu.read(free=1_000 * MIB)
    gpu.after(MS).read(known=False)
    assert serve(gpu, 1) == [64]
    gpu.configure([(0, 1, True, OWN_EXECUTORS, [0])])
    assert serve(gpu, 1)[0] == 1


def test_the_last_figures_are_handed_out_once() -> None:
    gpu = Gpu()
    gpu.engine.configure_model(1, [(0, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    for model in (0, 1):
        assert gpu.engine.prime_memory(model, 0, 0, 100 * MIB, 0, True)
    gpu.read(free=1_000 * MIB)
    gpu.after(MS).read(known=False)
    gpu.submit_many(range(64))
    gpu.submit_many(range(100, 164), model=1)
    assert [batch.rows for batch in gpu.step()] == [5, 5]


def test_instances_share_the_last_figures() -> None:
    gpu = Gpu(instances=4)
    gpu.prime(per_row=100 * MIB)
    gpu.read(free=1_000 * MIB)
    gpu.after(MS).read(known=False)
    gpu.submit_many(range(64))
    assert [batch.rows for batch in gpu.step()] == [2, 2, 2, 2]


def test_figures_that_grew_old_before_the_loss_are_taken_as_they_were_when_new() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB)
    gpu.headroom = 200 * MIB
    gpu.read(free=2_000 * MIB)
    measured_at = gpu.now
    for old in range(1, 11):
        gpu.headroom = 200 * MIB * old
        gpu.after(100 * MS).read(measured_at=measured_at)
    gpu.after(MS).read(known=False)
    assert serve(gpu, 1) == [18]
