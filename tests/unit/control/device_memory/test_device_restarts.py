"""Devices while they are not known: a control plane that starts, GPUs that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.config.device_memory import DEVICES_MAX
from scheduler.control.device_memory import devices as devices_module
from scheduler.control.device_memory.last_places import FILE_NAME
from scheduler.control.device_memory.readings import DeviceReadings
from scheduler.memory.headroom import Ages
from scheduler.memory.source import DeviceReading
from tests.unit.control.device_memory.world import (
    BOTH,
    CPU,
    GIB,
    GPU_0,
    GPU_1,
    LOCAL,
    UNSAID,
    A,
    B,
    DataPlane,
    World,
    device,
    two_gpus,
    world,
)
from tests.unit.control.triton_answers import pool_of, spec


def test_a_control_plane_that_comes_back_keeps_numbers_until_all_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    two_gpus(monkeypatch, tmp_path)
    pool = pool_of((LOCAL, {"left": GPU_0, "right": GPU_1}))

    async def scenario() -> None:
        found = []
        for _ in range(3):
            async with world(tmp_path, pool) as made:
                devices, numbers = made.devices, dict(made.devices.index)
                assert not devices.ready  # nothing is said yet
                devices.assign()  # as once nobody waits any longer
                assert devices.index == numbers
                assert not devices.assigned_heard
                await made.until(made.hears_all, "the sources")
                await made.until(lambda: made.moves > 0, "word of it")
                found.append(devices.assign())
                assert devices.assigned_heard
        wanted = {(("left", "1"), "127.0.0.1:1"): (0,), (("right", "1"), "127.0.0.1:1"): (1,)}
        assert found == [wanted] * 3

    asyncio.run(scenario())


def test_sources_that_hang_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices_module, "SOURCES_WAIT_S", 0.0)
    assert World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {}).devices.ready


def test_where_nothing_is_to_be_asked_nobody_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, pool_of((LOCAL, {"m": CPU})), nvml="off") as made:
            assert not made.devices.ready  # which hosts are local is not known
            await made.until(lambda: made.moves > 0, "word that all is heard")
            assert made.devices.heard

    asyncio.run(scenario())


def test_a_lost_gpu_is_the_models_device_still(tmp_path: Path) -> None:
    pool = pool_of((LOCAL, {"m": GPU_1}))
    made = World(tmp_path, pool, {})
    made.find_hosts()
    table = made.devices.table

    def assigned() -> tuple[int, ...]:
        return made.devices.assign()[("m", "1"), "127.0.0.1:1"]

    table.take("nvml", 0, Ages(1, 2), [A, B])
    before = assigned()
    assert before == (made.devices.index["GPU-b"],)
    table.take("nvml", 0, Ages(1, 2), [A])
    assert assigned() == before
    assert not table.devices(1)["GPU-b"].known
    table.take("nvml", 0, Ages(1, 2), [])
    assert assigned() == before
    assert made.devices.models_on("GPU-b") == [("m", "1")]
    # Another group is another question, which the old keys do not answer.
    pool.watches["127.0.0.1:1"].models["m", "1"] = spec(f'name: "m" {BOTH}')
    assert assigned() == ()


def test_where_models_are_is_known_after_a_restart_while_the_driver_hangs(tmp_path: Path) -> None:
    pool = pool_of((LOCAL, {"m": GPU_1, "other": GPU_0}))
    before = World(tmp_path, pool, {})
    before.find_hosts()
    before.devices.table.take("nvml", 0, Ages(1, 2), [A, B])
    before.devices.assign()
    (tmp_path / "devices.json").unlink()  # of the runtime directory, which ends with the scheduler

    after = World(tmp_path, pool, {})  # of which NVML tells nothing
    after.find_hosts()
    pool.watches["127.0.0.1:1"].models["other", "1"] = spec(f'name: "other" {BOTH}')
    assigned = after.devices.assign()
    assert assigned[("m", "1"), "127.0.0.1:1"] == (after.devices.index["GPU-b"],)
    assert after.devices.models_on("GPU-b") == [("m", "1")]
    assert assigned[("other", "1"), "127.0.0.1:1"] == (), "another group is another question"
    after.devices.table.take("nvml", 0, Ages(1, 2), [B])
    assert after.devices.models_on("GPU-b") == [("m", "1")]


@pytest.mark.parametrize(("backend", "nvml"), [({"metrics": "gpus:8002"}, "auto"), ({}, "off")])
def test_where_other_sources_are_wanted_the_last_places_are_forgotten(
    tmp_path: Path, backend: dict[str, str], nvml: str
) -> None:
    before = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {})
    before.find_hosts()
    before.devices.table.take("nvml", 0, Ages(1, 2), [A])
    before.devices.assign()
    assert before.devices.models_on("GPU-a") == [("m", "1")]

    settings = {"device_memory": {"nvml": nvml}}
    after = World(tmp_path, pool_of(({**LOCAL, **backend}, {"m": GPU_0})), settings)
    after.find_hosts()
    assert after.devices.assign()[("m", "1"), "127.0.0.1:1"] == ()


@pytest.mark.parametrize("text", ["", "{", '{"format": "x"}', '{"places": [{"model": ""}]}'])
def test_last_places_that_cannot_be_read_are_told_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    made = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {})
    assert "last places of models are ignored" in caplog.text
    made.find_hosts()
    made.devices.table.take("nvml", 0, Ages(1, 2), [A])
    made.devices.assign()
    caplog.clear()
    again = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {})
    again.find_hosts()
    again.devices.assign()
    assert again.devices.models_on("GPU-a") == [("m", "1")]
    assert "are ignored" not in caplog.text


def test_gpus_that_are_divided_again_and_again_use_up_no_numbers(tmp_path: Path) -> None:
    made = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {})
    made.find_hosts()
    for number in range(3 * DEVICES_MAX):
        instance = DeviceReading(f"MIG-{number}", 1, ordinal=0, mig=True)
        made.devices.table.take("nvml", 0, Ages(1, 2), [instance])
        assert [len(found) for found in made.devices.assign().values()] == [1]
        assert list(made.devices.index) == [instance.key]


def test_what_changes_beside_a_problem_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(({**LOCAL, "devices": ["typo"]}, {f"m{n}": UNSAID for n in range(4)}))
    made = World(tmp_path, pool, {})
    for found in ([A], [A, B], [B]):
        made.devices.table.take("nvml", 0, Ages(1, 2), found)
        made.devices.assign()
    assert len([m for m in caplog.messages if "device typo" in m]) == 1


def test_more_problems_than_are_remembered_are_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices_module, "SAID_MAX", 4)
    made = World(tmp_path, pool_of((LOCAL, {f"m{n}": UNSAID for n in range(20)})), {})
    made.devices.table.take("nvml", 0, Ages(1, 2), [A, B])
    for _ in range(3):
        made.devices.assign()
    assert len([m for m in caplog.messages if "on which devices it runs" in m]) == 20


def test_what_a_data_plane_may_know_from_before_is_told_once_all_is_heard() -> None:
    plane = DataPlane()
    readings = DeviceReadings(plane.send, lambda: False, inherited=range(3))
    readings.tell({}, {"GPU-a": 1, "GPU-b": 0}, heard=False)
    assert plane.told == []
    found = {"GPU-a": device(4 * GIB)}
    readings.tell(found, {"GPU-a": 1, "GPU-b": 0}, heard=False)
    readings.tell(found, {"GPU-a": 1}, heard=True)
    readings.tell(found, {"GPU-a": 1}, heard=True)
    assert plane.told == [{1: (True, 4 * GIB)}, {0: (False, 0), 2: (False, 0)}]
    readings.forget()
    readings.tell({"GPU-a": device(4 * GIB, 2, known=False)}, {"GPU-a": 1}, heard=True)
    assert plane.told[2:] == [{0: (False, 0), 1: (False, 0), 2: (False, 0)}]
