"""The supervisor before a data plane that only speaks the steering: faults, signals, drain."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler._native.counters import PAGE_BYTES
from tests.control_plane import wait_until

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0

_SERVE = """
import asyncio, sys
from pathlib import Path
from scheduler.config import load_settings
from scheduler.supervisor.supervisor import ServeRequest, Supervisor
from scheduler.telemetry import logs
logs.configure("supervisor")
fake = [sys.executable, "-m", "tests.fake_data_plane"]
request = ServeRequest(Path(sys.argv[1]), {}, fake)
sys.exit(asyncio.run(Supervisor(request, load_settings(request.config_file)).run()))
"""
_CONFIG = """
server:
  listen: [127.0.0.1:0]
  metrics_listen: 127.0.0.1:0
  control_listen: 127.0.0.1:0
  drain: {propagation_wait: 300ms, deadline: 700ms}
backends: [127.0.0.1:1]
"""


class Served:
    """One supervisor; `log` is what it wrote to standard error so far."""

    def __init__(self, directory: Path, config: str = _CONFIG, **environment: str) -> None:
        self.notes_path = directory / "notes"
        self.notes_path.touch()
        self.log_path = directory / "log"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        file = directory / "infersched.yaml"
        file.write_text(config)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(file)],
            cwd=ROOT,
            stderr=self.log_path.open("wb"),
            start_new_session=True,
            env={
                **os.environ,
                "FAKE_DATA_PLANE_NOTES": str(self.notes_path),
                "TMPDIR": str(self.temporary),
                **environment,
            },
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def notes(self, word: str) -> list[str]:
        return [line for line in self.notes_path.read_text().splitlines() if line.startswith(word)]

    def address(self) -> tuple[str, int]:
        """The client listener, from the log."""
        found = wait_until(lambda: re.search(r"clients=(\S+):(\d+)", self.log), "the address")
        return found.group(1), int(found.group(2))

    def child(self, word: str) -> psutil.Process:
        def find() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children():
                try:
                    if any(word in argument for argument in child.cmdline()):
                        return child
                except psutil.Error:
                    continue
            return None

        return wait_until(find, f"a child {word}", START_TIMEOUT_S)

    def wait_steered(self) -> None:
        wait_until(lambda: self.notes("apply"), "an Apply", START_TIMEOUT_S)

    def end(self) -> None:
        family: list[Any] = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
        for one in [self.process, *family]:
            try:
                one.kill()
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        self.process.wait()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    try:
        one.wait_steered()
        yield one
    finally:
        one.end()


def test_a_data_plane_that_dies_is_started_again_and_no_client_is_refused(served: Served) -> None:
    address = served.address()
    before = served.child("fake_data_plane")
    before.kill()
    with socket.create_connection(address, timeout=START_TIMEOUT_S):
        pass
    wait_until(lambda: len(served.notes("apply")) >= 2, "steered again", START_TIMEOUT_S)
    assert served.child("fake_data_plane").pid != before.pid
    assert 'data plane ended and is started again  status="killed by SIGKILL"' in served.log


def test_the_counters_page_is_the_same_one_and_has_the_right_size(served: Served) -> None:
    assert served.notes("started")[0].endswith(f"counters {PAGE_BYTES}")


def test_a_control_plane_that_dies_is_started_again_beside_a_running_data_plane(
    served: Served,
) -> None:
    data_plane = served.child("fake_data_plane")
    served.child("scheduler.control").kill()
    wait_until(lambda: len(served.notes("apply")) >= 2, "steered again", START_TIMEOUT_S)
    assert served.child("fake_data_plane").pid == data_plane.pid


def test_the_control_plane_is_nice(served: Served) -> None:
    assert served.child("scheduler.control").nice() == 10
    assert served.child("fake_data_plane").nice() == psutil.Process(served.process.pid).nice()


def test_sigterm_waits_drains_and_exits_0(served: Served) -> None:
    started_at = time.monotonic()
    served.process.terminate()
    assert served.process.wait(START_TIMEOUT_S) == 0
    # Twice where the control plane was too slow for the supervisor.
    assert set(served.notes("drain")) == {"drain 700"}
    assert time.monotonic() - started_at >= 0.3, "the propagation wait was kept"
    assert list(served.temporary.iterdir()) == [], "nothing is left on disk"


def test_a_control_plane_that_hangs_does_not_stop_the_drain(served: Served) -> None:
    control = served.child("scheduler.control")
    control.suspend()
    served.process.terminate()
    assert served.process.wait(START_TIMEOUT_S) == 0
    assert served.notes("drain") == ["drain 700"]
    assert not control.is_running()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    served = Served(tmp_path, _CONFIG.replace("propagation_wait: 300ms", "propagation_wait: 60s"))
    try:
        served.wait_steered()
        children = psutil.Process(served.process.pid).children(recursive=True)
        served.process.send_signal(signal.SIGINT)
        wait_until(lambda: "draining" in served.log, "the drain")
        # The echo of one Ctrl-C by a wrapper is not a second one: repeat until it is taken.
        wait_until(lambda: _signalled_to_the_end(served.process), "the end", START_TIMEOUT_S)
        assert served.process.returncode == 128 + signal.SIGINT
        _, alive = psutil.wait_procs(children, timeout=START_TIMEOUT_S)
        assert not alive
        assert list(served.temporary.iterdir()) == []
    finally:
        served.end()


def _signalled_to_the_end(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    return process.poll() is not None


def test_children_die_with_their_supervisor(served: Served) -> None:
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert len(children) == 2
    served.process.kill()
    _, alive = psutil.wait_procs(children, timeout=START_TIMEOUT_S)
    assert not alive


def test_a_data_plane_that_never_comes_up_is_started_ever_more_slowly(tmp_path: Path) -> None:
    served = Served(tmp_path, FAKE_DATA_PLANE_FAIL="1")
    try:
        wait_until(lambda: len(served.notes("started")) >= 4, "four starts", START_TIMEOUT_S)
        pauses = [float(p) for p in re.findall(r"data plane ended.*pause_s=([\d.]+)", served.log)]
        assert pauses[:3] == [0.0, 0.1, 0.2], "at once, then with a growing pause"
    finally:
        served.end()


def test_a_taken_port_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "scheduler.cli", "serve", "--backend", "127.0.0.1:1"]
        command += ["--listen", f"127.0.0.1:{port}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in done.stderr
    assert "--listen HOST:PORT" in done.stderr


def test_a_repository_that_cannot_be_loaded_ends_with_tritons_errors(
    needs_triton: None, tmp_path: Path
) -> None:
    model = tmp_path / "m"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "m" backend: "nope"')
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--embedded", str(tmp_path)]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "none", "--control-listen", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "giving up: tritonserver ended with status 1" in done.stderr
    assert "failed to load all models" in done.stderr
