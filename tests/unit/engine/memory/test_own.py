"""Needs that are learned from what the servers' own processes use, whatever other tenants do."""

from __future__ import annotations

from random import Random

import pytest

from tests.unit.engine.driver import MS
from tests.unit.engine.memory.test_memory import MIB, TOTAL, Gpu

WEIGHTS, BASE, PER_ROW = 500 * MIB, 800 * MIB, 64 * MIB


class Creeping:
    """A tenant that takes 230 MiB again and again, and frees all."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._has = 0

    def moves(self) -> int:
        self._has = (self._has + 230 * MIB * self._random.randint(1, 8)) % (3_000 * MIB)
        return self._has


class Loads:
    """Turns at which another model of the same server is loaded, bit by bit, and unloaded."""

    def __init__(self, load_bytes: int, loaded_at: int, load_turns: int, unloaded_at: int) -> None:
        self._bytes, self._turns = load_bytes, load_turns
        self._at, self._until = loaded_at, unloaded_at

    def kept(self, turn: int) -> int:
        if turn >= self._until:
            return 0
        return self._bytes * min(max(turn - self._at + 1, 0), self._turns) // self._turns


def runs(gpu: Gpu, tenant: Creeping, turns: int, own_every: int) -> int:
    """Batches of an arena and a reading after each, of which every so-manyth tells of the servers'
    processes; 0: none does. Returns the largest batch."""
    high, own, own_at = 0, 0, 0
    for turn in range(turns):
        kept = WEIGHTS + (BASE + PER_ROW * high if high else 0)
        gpu.after(100 * MS)
        if own_every and turn % own_every == 0:
            own, own_at = kept, gpu.now
        gpu.read(TOTAL - tenant.moves() - kept, own_bytes=own, own_measured_at=own_at)
        gpu.submit_many(range(64))
        while batches := gpu.step():
            for batch in batches:
                high = max(high, batch.rows)
                gpu.after(MS).complete(batch)
    return high


@pytest.mark.parametrize("seed", range(10))
def test_beside_a_tenant_that_creeps_the_need_is_right(seed: int) -> None:
    gpu = Gpu()
    assert runs(gpu, Creeping(seed), 200, own_every=6) == 64
    status = gpu.engine.memory_status(0, 0)
    predicted = status.base_bytes + status.bytes_per_row * 64
    assert predicted == pytest.approx(BASE + PER_ROW * 64, rel=0.03)


def test_what_a_server_that_was_started_anew_uses_is_not_compared_with_before() -> None:
    gpu, tenant = Gpu(), Creeping(1)
    runs(gpu, tenant, 200, own_every=6)
    learned = gpu.engine.memory_status(0, 0)
    gpu.engine.set_backend(0, False, gpu.now)
    gpu.engine.set_backend(0, True, gpu.after(MS).now)
    assert runs(gpu, tenant, 100, own_every=6) == 64
    status = gpu.engine.memory_status(0, 0)
    assert status.bytes_per_row == pytest.approx(learned.bytes_per_row)
    assert status.base_bytes == pytest.approx(learned.base_bytes)


def test_figures_of_the_configuration_hold_against_those_of_the_servers() -> None:
    gpu = Gpu()
    gpu.prime(per_row=100 * MIB, base=MIB)
    runs(gpu, Creeping(1), 100, own_every=6)
    status = gpu.engine.memory_status(0, 0)
    assert (status.base_bytes, status.bytes_per_row) == (MIB, 100 * MIB)


NEVER = 1_000


@pytest.mark.parametrize("loaded_at", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("load_turns", [1, 2, 4])
@pytest.mark.parametrize("unloaded_at", [NEVER, 50])
def test_a_model_that_is_loaded_meanwhile_is_not_taken_for_what_rows_need(
    loaded_at: int, load_turns: int, unloaded_at: int
) -> None:
    gpu = Gpu()
    loads = Loads(3_072 * MIB, loaded_at, load_turns, unloaded_at)
    high = 0
    for turn in range(150):
        kept = WEIGHTS + (BASE + PER_ROW * high if high else 0) + loads.kept(turn)
        gpu.after(100 * MS)
        gpu.read(TOTAL - kept, own_bytes=kept, own_measured_at=gpu.now)
        gpu.submit_many(range(64))
        while batches := gpu.step():
            for batch in batches:
                high = max(high, batch.rows)
                gpu.after(MS).complete(batch)
    assert high == 64
    assert gpu.engine.memory_status(0, 0).bytes_per_row == pytest.approx(PER_ROW, rel=0.05)


@pytest.mark.parametrize("own", [False, True])
def test_a_load_before_the_first_batch_is_not_taken_for_what_that_needs(own: bool) -> None:
    """Another model is loaded between the last reading without and the first with a batch."""
    gpu, high, loads, loaded = Gpu(), 0, 0, 0
    for turn in range(150):
        kept = WEIGHTS + (BASE + PER_ROW * high if high else 0) + loaded
        gpu.after(100 * MS)
        more = {"own_bytes": kept, "own_measured_at": gpu.now} if own else {}
        gpu.read(TOTAL - kept, loads=loads, **more)
        if turn == 0:
            loaded, loads = 3_072 * MIB, 2  # it has begun and ended
        gpu.submit_many(range(64))
        while batches := gpu.step():
            for batch in batches:
                high = max(high, batch.rows)
                gpu.after(MS).complete(batch)
    assert high == 64
    status = gpu.engine.memory_status(0, 0)
    assert status.bytes_per_row == pytest.approx(PER_ROW, rel=0.05)
    assert status.base_bytes <= 1.05 * BASE
