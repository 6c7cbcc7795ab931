"""Who is loaded, who may be, and what room there is, as residency sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.backends.pool import BackendPool
from scheduler.config import Settings
from scheduler.control.cold.loads import Loads
from scheduler.control.device_memory.places import Places
from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.load_calls import says_out_of_memory
from scheduler.control.residency.policy import Resident, Room
from scheduler.control.residency.residents import Residents
from scheduler.memory.source import DeviceReading
from scheduler.memory.table import DeviceMemory
from tests.unit.control.triton_answers import pool_of

GIB = 2**30
ONE, TWO = "127.0.0.1:1", "127.0.0.1:2"
GPU = "instance_group { kind: KIND_GPU gpus: 0 }"
CPU = "instance_group { kind: KIND_CPU }"
SEQUENCE = f"sequence_batching {{ max_sequence_idle_microseconds: 5000000 }} {GPU}"
STEPS = "ensemble_scheduling { step { model_name: 'step' } step { model_name: 'both' } }"
OTHER = "ensemble_scheduling { step { model_name: 'both' } }"


class Counters:
    """Of the data plane; by the place of the model in the catalog."""

    valid = True

    def __init__(self) -> None:
        self.returned: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}

    def batches_returned(self, index: int) -> int:
        return self.returned.get(index, 0)

    def model(self, index: int) -> dict[str, Any]:
        return {"in_flight": self.in_flight.get(index, 0)}


@dataclass
class Devices:
    """All of KIND_GPU are on one."""

    current: dict[str, DeviceMemory] = field(default_factory=dict)

    def places(self, backend: object, spec: Any) -> Places:
        gpu = any(group.gpus for group in spec.config.instance_group)
        if spec.config.instance_group and not gpu and not spec.config.input:
            gpu = spec.config.instance_group[0].kind == 1  # of one that was never loaded
        return Places(("gpu",)) if gpu else Places()


class World:
    def __init__(self, folder: Path, pool: BackendPool, **settings: Any) -> None:
        self.plane: Any = SimpleNamespace(
            pool=pool,
            settings=Settings.model_validate({"residency": {"mode": "on_demand"}, **settings}),
            counters=Counters(),
            desired=SimpleNamespace(model_index={k: i for i, k in enumerate(pool.catalog)}),
            devices=Devices(),
            loads=Loads(folder),
            residency=SimpleNamespace(held_back=set(), loading={}, leaving=lambda address: set()),
        )
        self.learned = LearnedLoads(folder)
        self.residents = Residents(self.plane, self.learned, set(pool.watches))

    def look(self) -> dict[str, Resident]:
        self.residents.note_use(time.monotonic())
        return {resident.name: resident for resident in self.residents.all()}

    def index(self, name: str) -> int:
        return int(self.plane.desired.model_index[name, "1"])


def test_use_and_work_are_seen_by_the_counters(tmp_path: Path) -> None:
    world = World(tmp_path, pool_of(({"address": ONE}, {"a": GPU, "b": GPU})))
    world.look()
    before = world.look()
    world.plane.counters.returned[world.index("a")] = 3
    world.plane.counters.in_flight[world.index("b")] = 1
    after = world.look()
    assert after["a"].last_used_s > before["a"].last_used_s
    assert after["b"].last_used_s == before["b"].last_used_s
    assert (after["a"].busy, after["b"].busy) == (False, True)


def test_weights_are_learned_or_configured(tmp_path: Path) -> None:
    pool = pool_of(({"address": ONE}, {"a": GPU, "b": GPU, "c": CPU}))
    world = World(tmp_path, pool, defaults={"weights": GIB})
    world.learned.weighed("a", ONE, {"gpu": 2 * GIB})
    found = world.look()
    assert found["a"].weights == {"gpu": 2 * GIB}
    assert found["b"].weights == {"gpu": GIB}
    assert found["c"].weights == {ONE: GIB}, "of no device that is known"


def test_steps_leave_with_their_ensemble_but_not_those_of_two(tmp_path: Path) -> None:
    names = {"ensemble": STEPS, "other": OTHER, "step": GPU, "both": GPU}
    world = World(tmp_path, pool_of(({"address": ONE}, names)), defaults={"weights": GIB})
    world.learned.weighed("step", ONE, {"gpu": 3 * GIB})
    world.plane.counters.in_flight[world.index("step")] = 1
    found = world.look()
    assert found.keys() == {"ensemble", "other", "both"}
    assert found["ensemble"].steps == ("step",)
    assert found["ensemble"].weights == {"gpu": 3 * GIB}
    assert found["both"].weights == {"gpu": GIB}
    assert found["other"].weights == {"gpu": 0}
    assert found["ensemble"].busy, "its step is"
    assert found["both"].kept
    assert not found["ensemble"].kept
    world.plane.pool.watches[ONE].absent = frozenset({"ensemble", "step"})
    (again,) = world.residents.sites("ensemble", [ONE])
    assert again.weights == {"gpu": 3 * GIB}, "its load loads its step, too"


def test_a_model_that_its_triton_does_not_list_is_kept(tmp_path: Path) -> None:
    """Nobody would know that it can be loaded again."""
    world = World(tmp_path, pool_of(({"address": ONE}, {"a": GPU, "b": GPU})))
    world.plane.pool.watches[ONE].unlisted = {("a", "1")}
    assert {name: r.kept for name, r in world.look().items()} == {"a": True, "b": False}


def test_pinned_models_and_those_of_clients_are_kept(tmp_path: Path) -> None:
    pool = pool_of(({"address": ONE}, {"a": GPU, "b": GPU, "c": GPU}))
    kinds = {"a": {"residency": "pinned"}, "b": {"residency": "never"}}
    found = World(tmp_path, pool, models=kinds).look()
    assert {name: r.kept for name, r in found.items()} == {"a": True, "b": True, "c": False}


def test_a_sequence_keeps_its_model(tmp_path: Path) -> None:
    world = World(tmp_path, pool_of(({"address": ONE}, {"a": SEQUENCE, "b": GPU})))
    found = world.look()
    assert found["a"].protected_until_s == pytest.approx(found["a"].last_used_s + 5)
    assert found["b"].protected_until_s == 0


def test_what_may_be_loaded_is_what_no_backend_has_and_no_client_unloaded(tmp_path: Path) -> None:
    pool = pool_of(({"address": ONE}, {"a": GPU}), ({"address": TWO}, {}))
    pool.watches[ONE].absent = frozenset({"b", "c", "d", "e"})
    pool.watches[TWO].absent = frozenset({"a", "b"})
    world = World(tmp_path, pool, models={"c": {"residency": "never"}})
    world.plane.loads.unloaded("d")
    world.plane.residency.held_back.add("e")
    assert world.residents.absent() == {"a": [TWO], "b": [ONE, TWO]}
    assert world.residents.ready_names() == {"a"}
    assert world.residents.served("a")
    assert not world.residents.served("b")


def test_sites_of_a_model_that_was_never_loaded_may_be_on_any_device(tmp_path: Path) -> None:
    world = World(tmp_path, pool_of(({"address": ONE}, {"a": CPU})), defaults={"weights": GIB})
    (unseen,) = world.residents.sites("b", [ONE])
    assert (unseen.weights, unseen.certain) == ({"gpu": GIB}, True)
    world.look()
    (seen,) = world.residents.sites("a", [ONE])
    assert seen.weights == {ONE: GIB}


def device(key: str, measured_at_ns: int, free: int, total: int = 16 * GIB) -> DeviceMemory:
    reading = DeviceReading(key, measured_at_ns, total_bytes=total, free_bytes=free)
    return DeviceMemory(key, True, "nvml", "", 0, GIB, reading)


def test_rooms_are_budgets_and_what_is_free(tmp_path: Path) -> None:
    pool = pool_of(({"address": ONE}, {}))
    budgets = {"mode": "on_demand", "budget": 20 * GIB, "budgets": {"b": 4 * GIB}}
    world = World(tmp_path, pool, residency=budgets)
    world.plane.devices.current = {
        "a": device("a", 1, 8 * GIB),
        "b": device("b", 1, 8 * GIB),
        "fixed": device("fixed", 0, 8 * GIB),
    }
    assert world.residents.rooms() == {
        ONE: Room(20 * GIB),
        "a": Room(20 * GIB, 7 * GIB, 15 * GIB),
        "b": Room(4 * GIB, 7 * GIB, 15 * GIB),
        "fixed": Room(7 * GIB),
    }
    assert "above the 16GiB that device a has" in world.residents.problems["a"]
    assert "b" not in world.residents.problems


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "[TRT] Error Code 2: OutOfMemory (Requested size was 123 bytes.)",
        "BFCArena Failed to allocate memory for requested buffer of size 5",
        "Requested amount of GPU memory (5 bytes) could not be allocated",
        "Internal: unable to allocate: cudaErrorMemoryAllocation",
    ],
)
def test_texts_of_loads_that_found_no_memory(text: str) -> None:
    assert says_out_of_memory(f"failed to load 'a', version 1: {text}")
    assert not says_out_of_memory("failed to load 'a', version 1: no such file")
