"""Device memory by figures of the configuration, which show nothing of what batches take."""

from __future__ import annotations

from scheduler._native.engine import OWN_EXECUTORS
from tests.unit.engine.driver import MS, SECOND
from tests.unit.engine.memory.test_memory import INTERNAL, MIB, TOTAL, Gpu


class FixedGpu(Gpu):
    """Figures of the configuration: nothing that runs changes them."""

    def fix(self, free: int) -> None:
        self.free = free
        self.engine.set_device(
            0, self.now, free_bytes=free, total_bytes=TOTAL, measured_at=0, fixed=True
        )
        self.engine.check_invariants()


def test_fixed_figures_teach_nothing() -> None:
    gpu = FixedGpu()
    for _ in range(40):
        gpu.after(100 * MS).fix(TOTAL)
        gpu.rows_of_next()
    status = gpu.engine.memory_status(0, 0)
    assert (status.known, status.samples) == (False, 0)
    # Nothing but the answers can prove a size: sizes climb by steps.
    assert status.rows_high == 64


def test_what_batches_took_stays_counted_where_figures_are_fixed() -> None:
    gpu = FixedGpu()
    gpu.engine.configure_model(1, [(0, 1, True, OWN_EXECUTORS, [0])], gpu.now, rows_max=64)
    gpu.prime(per_row=100 * MIB, base=200 * MIB)
    gpu.engine.prime_memory(1, 0, 0, 50 * MIB, 0, True)
    gpu.fix(free=2_000 * MIB)
    assert gpu.rows_of_next(16) == 16
    assert gpu.reserved() == 1_800 * MIB
    gpu.after(SECOND).fix(free=2_000 * MIB)
    assert gpu.reserved() == 1_800 * MIB
    # The other model has the rest; what has run here needs nothing new.
    gpu.submit_many(range(100, 164), model=1)
    (batch,) = gpu.step()
    assert batch.rows == 4
    gpu.after(MS).complete(batch)
    assert gpu.rows_of_next(16) == 16
    assert gpu.reserved() == 2_000 * MIB
    gpu.engine.set_backend(0, False, gpu.now)
    gpu.engine.set_backend(0, True, gpu.now)
    assert gpu.reserved() == 2_000 * MIB  # nothing says that it is gone


def test_every_instance_may_hold_what_ran_where_figures_are_fixed() -> None:
    gpu = FixedGpu(instances=2)
    gpu.prime(per_row=100 * MIB)
    gpu.fix(free=1_000 * MIB)
    assert gpu.rows_of_next(6) == 6
    # Another one may come to the other instance.
    assert gpu.rows_of_next(6) == 4
    assert gpu.reserved() == 1_000 * MIB
    assert gpu.rows_of_next(6) == 4


def test_a_batch_that_ran_out_of_memory_holds_none_where_figures_are_fixed() -> None:
    gpu = FixedGpu()
    gpu.prime(per_row=100 * MIB)
    gpu.fix(free=6_400 * MIB)
    gpu.submit_many(range(64))
    (batch,) = gpu.step()
    gpu.after(MS).fail(batch, "out_of_memory", INTERNAL)
    halves = gpu.step()
    assert [half.rows for half in halves] == [32]
    assert gpu.reserved() == 3_200 * MIB
    gpu.engine.check_invariants()
