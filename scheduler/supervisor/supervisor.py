"""What `infersched serve` runs: holds the sockets, keeps the processes up, drains on SIGTERM.

    supervisor ── listening sockets, steering socket, counters page
      ├ data plane      scheduler.dataplane   one uvloop thread, all ModelInfer traffic
      ├ control plane   scheduler.control     niced; discovery, cold RPCs, metrics, Control service
      └ tritonserver    only with --embedded

Drain: the control plane turns health to NOT_SERVING, waits, tells the data plane to drain and
exits; then the data plane is ended. Where the control plane cannot, the supervisor sends the Drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scheduler
from scheduler._native.counters import PAGE_BYTES
from scheduler.config import ConfigError, LoadedSettings, load_settings
from scheduler.supervisor.child import Child, ChildSpec, python_command
from scheduler.supervisor.embedded import EmbeddedSupervisor
from scheduler.supervisor.sockets import bound_address, listen_tcp, listen_unix, reserve_tcp
from scheduler.telemetry.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, log

logger = logging.getLogger(__name__)

CONTROL_NICE = 10
CHILD_EXIT_TIMEOUT_S = 5.0
# Beyond the configured waits: for the messages of the drain itself.
DRAIN_MARGIN_S = 3.0
# A terminal and a wrapper such as `timeout` both deliver one Ctrl-C: that is not a second signal.
SIGNAL_ECHO_S = 0.3
Flags = dict[tuple[str, ...], tuple[Any, str]]


@dataclass(frozen=True)
class ServeRequest:
    """What the command line asked for; kept because a reload reads the same sources again."""

    config_file: Path | None
    flags: Flags
    data_plane_command: list[str] | None = None  # tests put a fake data plane here


class Supervisor:
    """One `infersched serve`. `start` may raise ListenError; `run` returns the exit status."""

    def __init__(self, request: ServeRequest, loaded: LoadedSettings) -> None:
        self.request = request
        self._loaded = loaded
        self._listeners: list[socket.socket] = []
        self._held: list[socket.socket] = []
        self._runtime_directory: Path | None = None
        self._counters_fd = -1
        self._embedded: EmbeddedSupervisor | None = None
        self._data_plane: Child | None = None
        self._control_plane: Child | None = None
        self._stop_requested = asyncio.Event()
        self._stop_signalled_at: float | None = None

    async def run(self) -> int:
        """Serves until a signal or until a child cannot be kept up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        try:
            self._open()
            return await self._serve()
        finally:
            await self._close()

    def _open(self) -> None:
        server = self._loaded.settings.server
        self._listeners = listen_tcp(server.listen, "--listen")
        self._runtime_directory = _runtime_directory()
        steering = listen_unix(self._runtime_directory / "steering")
        self._held.append(steering)
        self._counters_fd = os.memfd_create("infersched-counters")
        os.ftruncate(self._counters_fd, PAGE_BYTES)
        metrics: socket.socket | None = None
        if server.metrics_listen is not None:
            metrics = listen_tcp([server.metrics_listen], "--metrics-listen")[0]
            self._held.append(metrics)
        control: socket.socket | None = None
        if server.control_listen is not None:
            control = reserve_tcp(server.control_listen, "--control-listen")
            self._held.append(control)
        embedded = self._loaded.settings.embedded
        if embedded.model_repository is not None:
            self._embedded = EmbeddedSupervisor(
                embedded.model_repository, embedded.model_control_mode, embedded.load_models
            )
            self._embedded.start()
        self._data_plane = Child(self._data_plane_spec(steering))
        self._control_plane = Child(self._control_plane_spec(metrics, control))
        log(
            logger,
            logging.INFO,
            "listening",
            clients=",".join(str(bound_address(one)) for one in self._listeners),
            metrics=str(bound_address(metrics)) if metrics else "off",
            control=str(bound_address(control)) if control else "off",
        )

    async def _serve(self) -> int:
        assert self._data_plane is not None
        assert self._control_plane is not None
        keepers = [
            asyncio.create_task(self._data_plane.run()),
            asyncio.create_task(self._control_plane.run()),
        ]
        if self._embedded is not None:
            keepers.append(asyncio.create_task(self._embedded.run()))
        stop = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done() and keeper.exception() is not None:
                    log(logger, logging.ERROR, f"giving up: {keeper.exception()}")
                    return 1
            await self._drain()
            return 0
        finally:
            for task in (stop, *keepers):
                task.cancel()
            await asyncio.gather(stop, *keepers, return_exceptions=True)

    async def _drain(self) -> None:
        assert self._data_plane is not None
        assert self._control_plane is not None
        drain = self._loaded.settings.server.drain
        wait_s = (drain.propagation_wait + drain.deadline) / 1e9 + DRAIN_MARGIN_S
        log(logger, logging.INFO, "draining", deadline_s=drain.deadline / 1e9)
        self._control_plane.expect_exit()
        drained = False
        if self._control_plane.send_signal(signal.SIGTERM):
            drained = await self._control_plane.wait_exit(wait_s)
            drained = drained and self._control_plane.returncode == 0
        if not drained:
            await self._drain_without_control_plane(drain.deadline)
        await self._data_plane.stop(CHILD_EXIT_TIMEOUT_S)
        log(logger, logging.INFO, "stopped")

    async def _drain_without_control_plane(self, deadline_ns: int) -> None:
        from scheduler.control.steering import drain_once

        assert self._runtime_directory is not None
        try:
            await asyncio.wait_for(
                drain_once(self._runtime_directory / "steering", deadline_ns // 1_000_000),
                deadline_ns / 1e9 + DRAIN_MARGIN_S,
            )
        except (OSError, asyncio.TimeoutError, EOFError) as error:
            log(logger, logging.WARNING, "the data plane did not drain", reason=repr(error))

    def _data_plane_spec(self, steering: socket.socket) -> ChildSpec:
        command = self.request.data_plane_command or python_command("scheduler.dataplane")
        descriptors = [one.fileno() for one in self._listeners]
        arguments = [text for fd in descriptors for text in ("--listen-fd", str(fd))]
        arguments += ["--steering-fd", str(steering.fileno())]
        arguments += ["--counters-fd", str(self._counters_fd)]
        arguments += ["--cold-socket", str(self._path("cold"))]
        server = self._loaded.settings.server
        if not server.scheduling_hints:
            arguments.append("--no-scheduling-hints")
        tls = server.tls.files
        if tls is not None:
            arguments += ["--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key)]
            arguments += ["--tls-min-version", tls.min_version]
            if tls.client_ca is not None:
                arguments += ["--tls-client-ca", str(tls.client_ca)]
        return ChildSpec(
            name="data plane",
            command=[*command, *arguments],
            pass_fds=[*descriptors, steering.fileno(), self._counters_fd],
            environment=self._environment(),
        )

    def _control_plane_spec(
        self, metrics: socket.socket | None, control: socket.socket | None
    ) -> ChildSpec:
        parameters = {
            "config_file": str(self.request.config_file) if self.request.config_file else None,
            "flags": [[list(path), *value] for path, value in self.request.flags.items()],
            "runtime_directory": str(self._runtime_directory),
            "steering_socket": str(self._path("steering")),
            "cold_socket": str(self._path("cold")),
            "counters_fd": self._counters_fd,
            "metrics_fd": metrics.fileno() if metrics else None,
            "control_address": str(bound_address(control)) if control else None,
            "embedded_address": self._embedded.address if self._embedded else None,
            "embedded_metrics_port": self._embedded.metrics_port if self._embedded else 0,
            "listen": [str(bound_address(one)) for one in self._listeners],
        }
        return ChildSpec(
            name="control plane",
            command=python_command("scheduler.control", "--parameters", json.dumps(parameters)),
            pass_fds=[self._counters_fd, *([metrics.fileno()] if metrics else [])],
            environment=self._environment(),
            nice=CONTROL_NICE if self._loaded.settings.server.scheduling_hints else 0,
            backoff_first_s=0.1,
        )

    def _environment(self) -> dict[str, str]:
        settings = self._loaded.settings.logging
        root = str(Path(scheduler.__file__).resolve().parent.parent)
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            LEVEL_VARIABLE: settings.level,
            FORMAT_VARIABLE: settings.format,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        }

    def _path(self, name: str) -> Path:
        assert self._runtime_directory is not None
        return self._runtime_directory / name

    def _on_stop_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._stop_signalled_at is None:
            self._stop_signalled_at = now
            self._stop_requested.set()
            return
        if now - self._stop_signalled_at < SIGNAL_ECHO_S:
            return
        log(logger, logging.WARNING, "second signal: ending at once", signal=number.name)
        self._kill_children()
        if self._runtime_directory is not None:
            shutil.rmtree(self._runtime_directory, ignore_errors=True)
        os._exit(128 + number)

    def _on_reload_signal(self) -> None:
        """The control plane reads and applies; here only the drain times are taken over."""
        with contextlib.suppress(ConfigError):
            self._loaded = load_settings(self.request.config_file, self.request.flags)
        if self._control_plane is None or not self._control_plane.send_signal(signal.SIGHUP):
            log(logger, logging.WARNING, "no control plane runs now; it will read the new file")

    def _kill_children(self) -> None:
        for child in (self._data_plane, self._control_plane):
            if child is not None:
                child.expect_exit()
                child.send_signal(signal.SIGKILL)
        if self._embedded is not None:
            self._embedded.kill()

    async def _close(self) -> None:
        for child in (self._control_plane, self._data_plane):
            if child is not None and child.pid is not None:
                await child.stop(CHILD_EXIT_TIMEOUT_S)
        # Before Triton ends, which takes seconds: a client that connects now is refused at once.
        for one in (*self._listeners, *self._held):
            one.close()
        if self._embedded is not None:
            await self._embedded.close()
        if self._counters_fd >= 0:
            os.close(self._counters_fd)
            self._counters_fd = -1
        if self._runtime_directory is not None:
            shutil.rmtree(self._runtime_directory, ignore_errors=True)


def _runtime_directory() -> Path:
    """A private directory whose socket paths stay below the 107 bytes of a unix address."""
    directory = Path(tempfile.mkdtemp(prefix="infersched-"))
    if len(str(directory)) > 90:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="infersched-", dir="/tmp"))
    return directory
