"""What the data plane is told of device memory before a first batch, and what is kept of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import profiled_model
from scheduler.config import Batching, Settings
from scheduler.config.device_memory import MemoryNeed
from scheduler.config.profile import MemoryProfile, MemorySize, Profile, save_profile
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from scheduler.control.device_memory.learned import LearnedMemory
from scheduler.control.device_memory.needs import FILE_NAME
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.test_executors import pool_of
from tests.unit.control.triton_answers import spec
from tests.unit.profiling.test_profile import profile_of

MIB, GIB = 2**20, 2**30
KEY = ("identity", "1")
GPU = "GPU-a"
SERVED = profiled_model(spec('name: "identity" max_batch_size: 8'))


class World:
    """One model of one backend on one device, and the data planes that come and go."""

    def __init__(self, folder: Path, configuration: str = "", **batching: Any) -> None:
        self.pool = pool_of(({"address": "a:1"}, {"identity": configuration}))
        self.desired = DesiredState(folder)
        self.learned = LearnedMemory(folder, self.pool, self.desired, lambda: {GPU: 3})
        self.desired.memory_priors = self.learned.priors
        models = {"identity": batching} if batching else {}
        self.settings = Settings.model_validate({"models": models})

    @property
    def instances(self) -> int:
        return self.pool.catalog[KEY].spec.instances

    def prior(self) -> pb.MemoryPrior | None:
        """As an Apply has it."""
        devices = {(KEY, "a:1"): (3,)}
        regions = Regions(self.desired.runtime_directory)
        numbers = {GPU: 3}
        apply = self.desired.build(
            self.pool, self.settings, regions, None, devices, device_numbers=numbers
        )
        (placement,) = apply.models[0].placements
        return placement.memory_prior if placement.HasField("memory_prior") else None

    def figures(self) -> tuple[float, float, int, bool] | None:
        prior = self.prior()
        if prior is None:
            return None
        return prior.base_bytes, prior.bytes_per_row, prior.rows_high, prior.fixed

    def learns(self, **need: Any) -> None:
        told = {"known": True, "confirmed": True, "base_bytes": GIB, "bytes_per_row": 64 * MIB,
                "samples": 9, "rows_high": 16, **need}  # fmt: skip
        model = pb.ModelSnapshot(index=0, memory=[pb.MemorySnapshot(device_index=3, **told)])
        self.prior()  # numbers the models
        self.learned.take(pb.Snapshot(models=[model]))
        self.learned.store()

    def runs(self, *sizes: int) -> bool:
        return self.learned.offer_statistics("a:1", [statistics(*sizes)])


def statistics(*sizes: int) -> service_pb2.ModelStatistics:
    found = service_pb2.ModelStatistics(name="identity", version="1")
    for rows in sizes:
        entry = found.batch_stats.add(batch_size=rows)
        entry.compute_infer.count = 2
    return found


NEED = MemoryProfile(
    device="GPU-b", source="nvml", instances=1, base_bytes=2 * GIB, bytes_per_row=32 * MIB,
    r_squared=1.0, sizes=(MemorySize(rows=1, need_bytes=2 * GIB),),
)  # fmt: skip


def saved_profile(folder: Path) -> str:
    base: Profile = profile_of({1: 5.0})
    of_model = base.model_copy(update={"model": SERVED, "memory": NEED})
    save_profile(of_model, folder / "p.json")
    return str(folder / "p.json")


def test_nothing_known_is_no_prior(tmp_path: Path) -> None:
    assert World(tmp_path).prior() is None


def test_a_profile_is_told_until_something_was_learned_here(tmp_path: Path) -> None:
    world = World(tmp_path, profile=saved_profile(tmp_path))
    assert world.figures() == (2 * GIB, 32 * MIB, 0, False)
    world.learns()
    assert world.figures() == (2 * GIB, 32 * MIB, 0, False)  # said once
    world.learned.priors.renew()
    assert world.figures() == (GIB, 64 * MIB, 0, False)


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    World(tmp_path).learns()
    again = World(tmp_path)
    assert again.figures() == (GIB, 64 * MIB, 0, False)


def test_what_is_not_confirmed_is_not_kept(tmp_path: Path) -> None:
    World(tmp_path).learns(confirmed=False)
    World(tmp_path).learns(bytes_per_row=float("nan"))
    assert World(tmp_path).prior() is None


def test_a_model_that_has_changed_has_learned_nothing(tmp_path: Path) -> None:
    World(tmp_path).learns()
    assert World(tmp_path, 'input { name: "A" data_type: TYPE_FP32 dims: 1 }').prior() is None


@pytest.mark.parametrize(
    ("instances", "ran", "rows_high"),
    [
        (1, (1, 8), 8),  # the server's own word
        (1, (), 0),  # started anew
        (2, (1, 64), 16),  # both instances had room for 16
        (2, (1, 8), 8),
        (2, (), 0),
    ],
)
def test_room_that_instances_have_counts_while_their_server_lives(
    tmp_path: Path, instances: int, ran: tuple[int, ...], rows_high: int
) -> None:
    groups = f"instance_group {{ kind: KIND_GPU count: {instances} gpus: 0 }}"
    World(tmp_path, groups).learns(rows_high=16)
    world = World(tmp_path, groups)
    assert world.instances == instances
    assert world.runs(*ran) is True
    assert world.figures() == (GIB, 64 * MIB, rows_high, False)
    assert world.runs(*ran) is False
    world.learned.priors.lost("a:1")
    assert world.figures() == (GIB, 64 * MIB, 0, False)


def test_the_configuration_is_above_all_where_it_is_fixed(tmp_path: Path) -> None:
    World(tmp_path).learns()
    told = {"base": "3GiB", "per_row": "128MiB"}
    assert World(tmp_path, memory=told).figures() == (3 * GIB, 128 * MIB, 0, True)
    beginning = World(tmp_path, memory={**told, "fixed": False})
    assert beginning.figures() == (GIB, 64 * MIB, 0, False)
    (tmp_path / FILE_NAME).unlink()
    beginning = World(tmp_path, memory={**told, "fixed": False})
    assert beginning.figures() == (3 * GIB, 128 * MIB, 0, False)


def test_rows_of_variable_length_are_not_taken_from_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from scheduler.control.device_memory.priors import MemoryPriors

    variable = spec('name: "identity" max_batch_size: 8 input { name: "A" data_type: TYPE_FP32 '
                    "dims: -1 }")  # fmt: skip
    assert any(-1 in tensor.dims for tensor in variable.inputs)
    base: Profile = profile_of({1: 5.0})
    of_model = base.model_copy(update={"model": profiled_model(variable), "memory": NEED})
    save_profile(of_model, tmp_path / "p.json")
    priors = MemoryPriors(World(tmp_path).learned.needs)
    batching = Batching(profile=tmp_path / "p.json")
    with caplog.at_level(logging.WARNING):
        assert priors.of(variable, "a:1", batching, [GPU]) is None
    assert "variable dims" in caplog.text
    told = Batching(memory=MemoryNeed(per_row=64 * MIB))
    assert priors.of(variable, "a:1", told, [GPU]) == pb.MemoryPrior(
        bytes_per_row=64 * MIB, fixed=True
    )


def test_a_torn_file_is_told_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    World(tmp_path).learns()
    file = tmp_path / FILE_NAME
    file.write_text(file.read_text()[:-20])
    with caplog.at_level(logging.WARNING):
        world = World(tmp_path)
    assert "learned needs of device memory are ignored" in caplog.text
    assert world.prior() is None
    world.learns()
    assert World(tmp_path).prior() is not None


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        ({}, "per_row"),
        ({"per_row": "64"}, "write 64MiB"),
        ({"per_row": "-1MiB"}, "expected a size"),
        ({"per_row": "2000TiB"}, "less than or equal"),
        ({"base": "2000TiB", "per_row": "64MiB"}, "base"),
        ({"per_row": "64MiB", "rows": 3}, "rows"),
    ],
)
def test_figures_that_make_no_sense_are_refused(memory: dict[str, Any], reason: str) -> None:
    settings = Settings.model_validate({"models": {"m": {"memory": memory}}})
    with pytest.raises(ValidationError, match=reason):
        settings.batching_for("m")


def test_figures_are_of_one_model() -> None:
    with pytest.raises(ValidationError, match=r"memory in defaults: .* models\.NAME\.memory"):
        Settings.model_validate({"defaults": {"memory": {"per_row": "64MiB"}}})


def test_a_model_that_was_unloaded_has_no_room(tmp_path: Path) -> None:
    world = World(tmp_path, memory={"per_row": "64MiB"})
    world.runs(1, 8)
    assert world.figures() == (0, 64 * MIB, 8, True)
    entry = world.pool.catalog.pop(KEY)
    regions = Regions(world.desired.runtime_directory)
    assert not world.desired.build(world.pool, world.settings, regions).models
    world.pool.catalog[KEY] = entry
    assert world.figures() == (0, 64 * MIB, 0, True)
