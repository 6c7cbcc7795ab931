"""Devices in the control plane: which sources are asked, and on which devices a model is."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from scheduler._native.counters import CountersPage
from scheduler.config import Backend, Settings
from scheduler.config.device_memory import DEVICES_MAX
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from scheduler.control.device_memory.devices import UNKNOWN_SHOWN
from scheduler.control.device_memory.places import Places, places_of
from scheduler.control.device_memory.readings import CHANGE_BYTES, DeviceReadings
from scheduler.control.steering import SteeringClient
from scheduler.memory.headroom import Ages, Headroom
from scheduler.memory.source import DeviceReading, SourceAbsent
from scheduler.memory.table import DeviceTable, fixed_reading
from scheduler.memory.triton_metrics import READING_PERIOD_NS
from scheduler.v1 import dataplane_pb2 as pb
from tests.nvml import figures as nvml
from tests.nvml.loaded import unload
from tests.unit.control.device_memory.world import (
    BOTH,
    CPU,
    ENSEMBLE,
    GIB,
    GPU_0,
    GPU_1,
    LOCAL,
    REMOTE,
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
from tests.unit.counters_twin import WrittenPage
from tests.unit.memory.test_metrics_port import HEAD, answering, port, told

MIG_1, MIG_2 = (DeviceReading(f"MIG-{n}", 1, ordinal=0, mig=True) for n in (1, 2))


@pytest.mark.parametrize(
    ("groups", "devices", "local", "port", "keys"),
    [
        (GPU_1, [], [A, B], [], "GPU-b"),
        (BOTH, [], [A, B], [], "GPU-a GPU-b"),
        (BOTH, [], [MIG_1, MIG_2, B], [], "MIG-1 GPU-b"),
        (CPU, [], [A, B], [], ""),
        (CPU, ["GPU-x"], [A], [], ""),
        (ENSEMBLE, ["GPU-x"], [A], [], ""),
        (UNSAID, [], [A], [], "GPU-a"),
        (GPU_1, ["GPU-x", "GPU-y"], [A, B], [], "GPU-y"),
        (UNSAID, ["GPU-x", "GPU-y"], [A, B], [], "GPU-x GPU-y"),
        ("", ["GPU-x"], [], [], "GPU-x"),
        (GPU_0, [], None, [A], "GPU-a"),
        (BOTH, [], None, [B, A], "GPU-b GPU-a"),
        (UNSAID, [], None, [B], "GPU-b"),
    ],
)
def test_the_devices_of_a_model(
    groups: str,
    devices: list[str],
    local: list[DeviceReading] | None,
    port: list[DeviceReading],
    keys: str,
) -> None:
    backend = Backend.model_validate({"address": "a:1", "devices": devices})
    found = places_of(backend, spec(f'name: "m" {groups}'), (), local, port)
    assert found == Places(tuple(keys.split()))


@pytest.mark.parametrize(
    ("groups", "devices", "local", "port", "problem"),
    [
        (GPU_1, [], [A], [], "GPU 1, which NVML does not tell of"),
        (BOTH, ["GPU-x"], [A, B], [], "GPU 1, and `devices` of the backend names 1"),
        (UNSAID, [], [A, B], [], "several devices are there"),
        (GPU_0, [], None, [], "GPU 0, and no source tells of them"),
        (GPU_0, [], None, [A, B], "name them in `devices` of the backend"),
        (UNSAID, [], None, [], "no source tells of a device"),
    ],
)
def test_devices_that_are_not_known(
    groups: str,
    devices: list[str],
    local: list[DeviceReading] | None,
    port: list[DeviceReading],
    problem: str,
) -> None:
    backend = Backend.model_validate({"address": "a:1", "devices": devices})
    found = places_of(backend, spec(f'name: "m" {groups}'), (), local, port)
    assert found.keys == ()
    assert problem in found.problem


def test_a_model_that_uses_a_gpu_beside_its_instance_group() -> None:
    backend = Backend.model_validate("a:1")
    assert places_of(backend, spec(f'name: "m" {CPU}'), (1,), [A, B], ()).keys == ("GPU-b",)


def test_nvml_tells_and_models_have_their_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures, page = two_gpus(monkeypatch, tmp_path), WrittenPage()
    pool = pool_of((LOCAL, {"left": GPU_0, "right": GPU_1, "both": BOTH, "cpu": CPU}))

    async def scenario() -> None:
        ages = {"stale_after": "1h", "lost_after": "2h"}  # however long a look stalls
        async with world(tmp_path, pool, headroom_min="1GiB", **ages) as made:
            devices = made.devices
            await made.until(lambda: len(devices.current) == 2 and devices.heard, "two devices")
            assert devices.assign() == {
                (("left", "1"), "127.0.0.1:1"): (0,),
                (("right", "1"), "127.0.0.1:1"): (1,),
                (("both", "1"), "127.0.0.1:1"): (0, 1),
                (("cpu", "1"), "127.0.0.1:1"): (),
            }
            assert devices.models_on("GPU-b") == [("right", "1"), ("both", "1")]
            figures.devices[0].other_bytes = 6 * GIB
            await made.until(
                lambda: devices.current["GPU-a"].reading.free_bytes == 10 * GIB, "the new figure"
            )
            assert devices.current["GPU-b"].headroom_bytes == GIB
            own = {"GPU-b": {"headroom_min": "2GiB"}}
            made.configure({"device_memory": {**ages, "devices": own}})
            await made.until(
                lambda: devices.current["GPU-b"].headroom_bytes == 2 * GIB, "the new headroom"
            )
            page.page.devices[0].seen = 1
            page.page.devices[0].reserved_bytes = 3 * GIB
            scope = devices.metrics_scope({}, CountersPage(page.fd))
            assert scope.nvml_calls > 0
            assert scope.devices["GPU-a"].free_bytes == 10 * GIB
            assert scope.devices["GPU-a"].reserved_bytes == 3 * GIB
            assert scope.devices["GPU-b"].reserved_bytes == 0
            page.close()
            moves = made.moves
            figures.devices[1].error = nvml.GPU_IS_LOST
            await made.until(lambda: not devices.current["GPU-b"].known, "the loss")
            assert made.moves > moves
            assert any("GPU-b" in problem for problem in devices.problems)
            figures.devices[1].error = 0

    asyncio.run(scenario())


def test_numbers_of_devices_outlive_the_control_plane(tmp_path: Path) -> None:
    pool = pool_of(({**LOCAL, "devices": ["left", "right"]}, {"m": BOTH, "n": GPU_1}))
    fixed = {"device_memory": {"nvml": "off"}}
    first = World(tmp_path, pool, fixed).devices.assign()
    pool.watches["127.0.0.1:1"].models.pop(("m", "1"))
    again = World(tmp_path, pool, fixed).devices.assign()
    assert again[("n", "1"), "127.0.0.1:1"] == first[("n", "1"), "127.0.0.1:1"]


def test_fixed_figures_and_devices_that_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unload(monkeypatch)
    pool = pool_of(({**REMOTE, "devices": ["left", "GPU-typo"]}, {"m": GPU_0, "n": GPU_1}))
    own = {"left": {"total": "4GiB", "used": "1GiB"}, "GPU-spare": {"headroom_min": "1GiB"}}

    async def scenario() -> None:
        async with world(tmp_path, pool, devices=own) as made:
            devices = made.devices
            await made.until(lambda: devices.table.heard_of(["nvml"]), "a look for NVML")
            await made.until(lambda: "left" in devices.current, "the fixed device")
            assert devices.current["left"].reading == fixed_reading("left", 4 * GIB, GIB)
            for _ in range(2):
                found = devices.assign()
            assert [len(numbers) for numbers in found.values()] == [1, 1]
            assert devices.current["left"].known
            made.configure({"device_memory": {}})
            await made.until(lambda: "left" not in devices.current, "the reload")

    asyncio.run(scenario())
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2
    typo, spare = sorted(said, key=lambda text: "spare" in text)
    assert "device GPU-typo: devices of backend 192.0.2.1:1 names it" in typo
    assert "there are: left" in typo
    assert "learned from out-of-memory replies only" in typo
    assert "device GPU-spare: device_memory.devices names it" in spare
    assert "it has no effect" in spare


def test_a_metrics_port_is_asked_for_a_backend_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unload(monkeypatch)
    scrape = told("17179869184", "1073741824")

    async def scenario(address: str) -> None:
        pool = pool_of(({"address": "192.0.2.1:1", "metrics": address}, {"m": GPU_0}))
        async with world(tmp_path, pool, metrics_poll_period="500ms") as made:
            devices = made.devices
            await made.until(lambda: "GPU-a" in devices.current, "the device of the port")
            assert devices.current["GPU-a"].source == f"metrics of {address}"
            assert devices.current["GPU-a"].reading.free_bytes == 15 * GIB
            assert devices.current["GPU-a"].age_ns >= READING_PERIOD_NS
            assert devices._told.ages(of_port=True) == Ages(
                1_500_000_000 + READING_PERIOD_NS, 5_000_000_000 + READING_PERIOD_NS
            )
            assert list(devices.assign().values()) == [(0,)]
            pool.backends["192.0.2.1:1"] = Backend.model_validate(REMOTE)
            devices.look()
            await made.until(lambda: not devices.current, "the port's end")

    with port(answering(HEAD, scrape)) as source:
        host, number = source._address
        asyncio.run(scenario(f"{host}:{number}"))


@pytest.mark.parametrize(
    ("backend", "groups", "ports"),
    [
        ({"address": "192.0.2.1:1"}, GPU_0, ["metrics of 192.0.2.1:8002"]),
        ({"address": "192.0.2.1:1"}, CPU, []),
        ({"address": "192.0.2.1:1", "metrics": "off"}, GPU_0, []),
        ({"address": "192.0.2.1:1", "metrics": "192.0.2.9:99"}, CPU, ["metrics of 192.0.2.9:99"]),
        ({"address": "192.0.2.1:1", "devices": ["left"]}, GPU_0, []),
        ({"address": "192.0.2.1:1", "devices": ["GPU-x"]}, GPU_0, ["metrics of 192.0.2.1:8002"]),
    ],
)
def test_which_ports_are_asked(
    tmp_path: Path, backend: dict[str, Any], groups: str, ports: list[str]
) -> None:
    fixed = {"nvml": False, "devices": {"left": {"total": "1GiB"}}}
    made = World(tmp_path, pool_of((backend, {"m": groups})), {"device_memory": fixed})
    made.find_hosts()
    assert sorted(wanted.name for wanted in made.devices._wanted()) == ports


def test_what_nobody_tells_of_is_a_problem_until_it_is_told(tmp_path: Path) -> None:
    pool = pool_of((LOCAL, {"m": GPU_1}))
    made = World(tmp_path, pool, {"device_memory": {"devices": {"GPU-x": {"headroom_min": 1}}}})
    made.find_hosts()
    made.devices.table.take("nvml", 0, Ages(1, 2), [A])
    made.devices.assign()
    assert made.devices.problems == [
        "model m: it is not known on which devices it runs: it has instances on GPU 1, which NVML "
        "does not tell of",
        "device GPU-x: device_memory.devices names it, and no source tells of it",
    ]
    made.devices.table.take("nvml", 0, Ages(1, 2), [A, B, DeviceReading("GPU-x", 1, ordinal=2)])
    made.devices.assign()
    assert made.devices.problems == []
    for number in range(UNKNOWN_SHOWN + 4):
        pool.watches["127.0.0.1:1"].models[f"m{number}", "1"] = spec(
            f'name: "m{number}" instance_group {{ kind: KIND_GPU gpus: 7 }}'
        )
    made.devices.assign()
    assert len(made.devices.problems) == UNKNOWN_SHOWN + 1
    assert made.devices.problems[-1] == "and 4 more like these"


def test_a_port_that_is_known_is_asked_instead_of_the_usual_one(tmp_path: Path) -> None:
    pool = pool_of((LOCAL, {"m": GPU_0}))
    listen = {"server": {"metrics_listen": "127.0.0.1:8002"}, "device_memory": {"nvml": False}}
    made = World(tmp_path, pool, listen, metrics_ports={"127.0.0.1:1": 9002})
    made.find_hosts()
    assert [wanted.name for wanted in made.devices._wanted()] == ["metrics of 127.0.0.1:9002"]


def test_the_port_of_a_backend_of_this_host_is_asked_where_nvml_tells_nothing(
    tmp_path: Path,
) -> None:
    listen = {"server": {"metrics_listen": "127.0.0.1:9002"}}
    made = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), listen)

    def wanted() -> list[str]:
        return sorted(source.name for source in made.devices._wanted())

    assert wanted() == ["nvml"]  # whether it is here is not known
    made.find_hosts()
    assert wanted() == ["nvml"]  # NVML may tell yet
    ages = Ages(1, 2)
    made.devices.table.take("nvml", 0, ages, [], SourceAbsent("no driver"))
    assert wanted() == ["metrics of 127.0.0.1:8002", "nvml"]
    for own in ("127.0.0.1:8002", "localhost:8002", ":8002"):
        made.configure({"server": {"metrics_listen": own}})
        assert wanted() == ["nvml"]  # that one is not a Triton's
    made.configure(listen)
    made.devices.table.take("nvml", 0, ages, [A])
    assert wanted() == ["nvml"]


def test_more_devices_than_the_data_plane_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = World(tmp_path, pool_of((LOCAL, {"m": GPU_0})), {})
    found = [DeviceReading(f"GPU-{n:02}", 1, ordinal=n) for n in range(DEVICES_MAX + 1)]
    made.devices.table.take("nvml", 0, Ages(1, 2), found)
    for _ in range(2):
        made.devices.assign()
    assert len(made.devices.index) == DEVICES_MAX
    assert len([m for m in caplog.messages if "more than 64 devices" in m]) == 1


def test_the_data_plane_is_told_of_changes_at_rest_and_of_every_look_when_busy() -> None:
    plane, busy = DataPlane(), False
    readings = DeviceReadings(plane.send, lambda: busy, clock_s=lambda: 0.0)
    tell = lambda found: readings.tell({"GPU-a": found}, {"GPU-a": 7})  # noqa: E731
    plane.there = False
    tell(device(4 * GIB))
    plane.there = True
    tell(device(4 * GIB, 2))
    tell(device(4 * GIB - CHANGE_BYTES + 1, 3))
    assert plane.told == [{7: (True, 4 * GIB)}]
    tell(device(4 * GIB - CHANGE_BYTES, 4))
    assert len(plane.told) == 2
    busy = True
    tell(device(4 * GIB - CHANGE_BYTES, 4))
    assert len(plane.told) == 2  # no other look
    tell(device(4 * GIB - CHANGE_BYTES, 5))
    assert len(plane.told) == 3
    tell(device(4 * GIB, 5, known=False))
    assert plane.told[-1] == {7: (False, 0)}
    tell(device(4 * GIB, 6, known=False))
    assert len(plane.told) == 4
    readings.forget()
    tell(device(2 * GIB, 7))
    readings.tell({}, {})
    assert plane.told[4:] == [{7: (True, 2 * GIB)}, {7: (False, 0)}]


def test_figures_do_not_pile_up_before_a_data_plane_that_reads_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine, theirs = socket.socketpair()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = SteeringClient(tmp_path / "steering", lambda event: None, lambda: None)
        _, client._writer = await asyncio.open_connection(sock=mine)
        reading = pb.MemoryReadings(devices=[pb.DeviceMemory(index=n) for n in range(64)])
        told = 0
        while client.tell_memory(reading):
            told += 1
            assert told < 100_000
        assert told > 0
        assert client._writer.transport.get_write_buffer_size() <= 2 * reading.ByteSize()
        client._writer.transport.abort()
        theirs.close()

    asyncio.run(scenario())


def test_the_data_plane_knows_the_devices_of_a_placement(tmp_path: Path) -> None:
    pool = pool_of((LOCAL, {"m": GPU_0, "n": CPU}))
    found = {(("m", "1"), "127.0.0.1:1"): (3, 4)}
    apply = DesiredState(tmp_path).build(pool, Settings(), Regions(tmp_path), devices=found)
    assert {m.name: list(m.placements[0].device_indices) for m in apply.models} == {
        "m": [3, 4],
        "n": [],
    }


@pytest.mark.parametrize(
    ("groups", "most"),
    [
        ("instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }", 1),
        (
            "instance_group { kind: KIND_GPU count: 3 gpus: 0 }"
            "instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }",
            4,
        ),
        ("instance_group { kind: KIND_MODEL count: 2 gpus: [0, 1] }", 2),
        ("instance_group { kind: KIND_MODEL count: 2 }", 2),
        (
            "instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }"
            "instance_group { kind: KIND_CPU count: 4 }",
            1,
        ),
        (CPU, 4),
    ],
)
def test_the_data_plane_knows_how_many_instances_share_a_device(
    tmp_path: Path, groups: str, most: int
) -> None:
    pool = pool_of((LOCAL, {"m": groups}))
    found = {(("m", "1"), "127.0.0.1:1"): (3, 4)}
    apply = DesiredState(tmp_path).build(pool, Settings(), Regions(tmp_path), devices=found)
    assert apply.models[0].placements[0].device_instances == most


def test_fixed_figures_are_told_as_such_and_once() -> None:
    sent: list[pb.MemoryReadings] = []

    def send(readings: pb.MemoryReadings) -> bool:
        sent.append(readings)
        return True

    readings = DeviceReadings(send, busy=lambda: True)
    table = DeviceTable(lambda key: Headroom())
    table.take("the configuration", 0, Ages(1, 2), [fixed_reading("left", 4 * GIB, GIB)])
    for now_ns in (1, 10**12):
        readings.tell(table.devices(now_ns), {"left": 3})
    ((told,),) = (readings.devices for readings in sent)
    assert (told.index, told.known, told.fixed) == (3, True, True)
    assert (told.free_bytes, told.total_bytes) == (3 * GIB, 4 * GIB)
