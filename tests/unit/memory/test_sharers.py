"""Several schedulers that use one device: how they see each other, and what each may take."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.control.device_memory.readings import DeviceReadings
from scheduler.dataplane.device_figures import with_share_of_others
from scheduler.memory.headroom import Ages
from scheduler.memory.sharers import COUNT_PERIOD_S, FILES_MAX, SCHEDULERS_MAX, Sharers
from scheduler.memory.source import DeviceReading
from scheduler.memory.table import DeviceMemory
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.device_memory.data_plane_figures import Gateway, figures_of
from tests.unit.control.device_memory.world import GIB, GPU_0, LOCAL, A, World
from tests.unit.control.triton_answers import pool_of

GPU, OTHER = "GPU-a", "left/right"


class Host:
    """Some schedulers, each looked at as if a second had passed."""

    def __init__(self, directory: Path, schedulers: int) -> None:
        self.now_s = 0.0
        self.all = [Sharers(directory, lambda: self.now_s) for _ in range(schedulers)]

    def counts(self, device: str) -> list[int]:
        self.now_s += COUNT_PERIOD_S
        return [sharers.count(device) for sharers in self.all]


def test_schedulers_count_those_that_use_the_same_device(tmp_path: Path) -> None:
    host = Host(tmp_path / "new", 3)
    first, second, third = host.all
    assert host.counts(GPU) == [1, 1, 1]
    first.use({GPU, OTHER})
    second.use({GPU})
    third.use({OTHER})
    assert host.counts(GPU) == [2, 2, 1]
    assert host.counts(OTHER) == [2, 1, 2]
    second.use(set())
    third.close()
    assert host.counts(GPU)[0] == host.counts(OTHER)[0] == 1
    first.close()
    assert os.listdir(tmp_path / "new") == []


def test_one_that_was_killed_counts_for_nobody(tmp_path: Path) -> None:
    claim = (
        "import os, sys; from pathlib import Path; from scheduler.memory.sharers import Sharers\n"
        f"Sharers(Path(sys.argv[1])).use({{{GPU!r}}}); print('uses', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", claim, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "uses\n"
        host = Host(tmp_path, 1)
        host.all[0].use({GPU})
        assert host.counts(GPU) == [2]
        other.kill()
        other.wait()
        assert host.counts(GPU) == [1]
        assert len(os.listdir(tmp_path)) == 1  # nor does its file stay


def test_files_of_others_cost_no_more_than_so_much(tmp_path: Path) -> None:
    host = Host(tmp_path, SCHEDULERS_MAX + 4)
    for sharers in host.all:
        sharers.use({GPU})
    (tmp_path / "GPU-a.nobody").touch()
    (tmp_path / "GPU-a.folder").mkdir()
    assert set(host.counts(GPU)) == {SCHEDULERS_MAX}


def test_those_of_other_users_count_although_they_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, 2)
    old = os.umask(0o077)
    try:
        for sharers in host.all:
            sharers.use({GPU})
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}

    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert host.counts(GPU) == [2, 2]


def test_a_file_system_without_locks_costs_nothing_but_the_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    host = Host(tmp_path, 1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        host.all[0].use({GPU})
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []
    assert host.counts(GPU) == [1]
    assert len([m for m in caplog.messages if "no locks" in m]) == 1


def test_no_other_directory_is_opened_to_all(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (tmp_path / "seen").symlink_to(private)
    host = Host(tmp_path / "seen", 1)
    host.all[0].use({GPU})
    assert private.stat().st_mode & 0o777 == 0o700
    assert os.listdir(private) == []


def test_a_heap_of_files_is_not_looked_through(tmp_path: Path) -> None:
    host = Host(tmp_path, 1)
    host.all[0].use({GPU})
    for n in range(3 * FILES_MAX):
        (tmp_path / f"GPU-a.{n}").touch()
    host.counts(GPU)
    assert len(os.listdir(tmp_path)) >= 2 * FILES_MAX
    for _ in range(4):
        host.counts(GPU)
    assert len(os.listdir(tmp_path)) == 1  # in some looks all of the dead ones went


def test_a_directory_that_cannot_be_had_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    host = Host(tmp_path / "file" / "below", 1)
    for _ in range(3):
        host.all[0].use({GPU})
        assert host.counts(GPU) == [1]
    assert len([m for m in caplog.messages if "device_memory.schedulers" in m]) == 1


@pytest.mark.parametrize("schedulers", [1, 2, 3, 16])
@pytest.mark.parametrize(("headroom", "free"), [(1, 10), (0, 7), (10, 3), (5, 5)])
def test_all_together_take_no_more_than_there_is(schedulers: int, headroom: int, free: int) -> None:
    each = max(free - with_share_of_others(headroom, free, schedulers), 0)
    assert schedulers * each <= max(free - headroom, 0)
    assert schedulers * (each + 1) > max(free - headroom, 0)  # nor less, but for roundings


def test_the_data_plane_takes_its_part_of_what_it_is_told() -> None:
    gateway = Gateway()
    figures, loop = figures_of(gateway)

    def send(told: pb.MemoryReadings) -> bool:
        figures.take(told)
        return True

    def usable() -> float:
        counted = gateway.known[3]
        return (counted.free_bytes - counted.headroom_bytes) / GIB

    readings = DeviceReadings(send, busy=lambda: False, clock_s=lambda: 0.0)
    reading = DeviceReading(GPU, 1, total_bytes=16 * GIB, free_bytes=9 * GIB)
    found = []
    for schedulers in (1, 2, 4):
        device = DeviceMemory(GPU, True, "nvml", "", 0, GIB, reading, schedulers)
        readings.tell({GPU: device}, {GPU: 3})
        found.append(usable())
    assert found == [8, 4, 2]
    loop.advance(4.5)
    assert usable() == (9 - 4) / 4  # silence widens what is kept by all, not the part of others


def test_the_configuration_tells_of_those_that_are_not_seen(tmp_path: Path) -> None:
    seen = Sharers(tmp_path / "seen")
    pool = pool_of(({**LOCAL}, {"m": GPU_0}))
    made = World(tmp_path, pool, {}, sharers=seen)
    made.find_hosts()
    other = Sharers(tmp_path / "seen")
    other.use({A.key})
    made.devices.table.take("nvml", 0, Ages(1, 2), [A])
    made.devices.assign()

    def schedulers() -> int:
        return made.devices.table.devices(A.measured_at_ns)[A.key].schedulers

    assert schedulers() == 2
    made.configure({"device_memory": {"schedulers": 3}})
    assert schedulers() == 3
    made.configure({"device_memory": {"schedulers": 3, "devices": {A.key: {"schedulers": 1}}}})
    assert schedulers() == 1
    made.devices.stop()
    other.close()
    assert os.listdir(tmp_path / "seen") == []
