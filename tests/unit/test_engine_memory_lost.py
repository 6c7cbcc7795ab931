"""Device memory whose source of figures is lost: batches keep to what has run."""

from __future__ import annotations

from tests.unit.engine_driver import MS
from tests.unit.test_engine_memory import INTERNAL, MIB, Gpu, arena_run, run_out


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
