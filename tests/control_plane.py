"""The control plane alone, as a process; the test plays the data plane at its steering socket.

with FakeDataPlane() as data_plane, ControlPlane(data_plane, backends=[address]) as control:
    apply = data_plane.wait_apply(lambda apply: apply.models, "a catalog")
    stub = service_pb2_grpc.GRPCInferenceServiceStub(control.cold_channel)
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from scheduler._native.counters import PAGE_BYTES
from scheduler.v1 import dataplane_pb2 as pb
from tests.waiting import WAIT_TIMEOUT_S, wait_until

ROOT = Path(__file__).resolve().parents[1]
EXIT_TIMEOUT_S = 60.0


class FakeDataPlane:
    """A steering socket that takes every Apply, answers everything else as the test says."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="infersched-test-")
        self.runtime_directory = Path(self._directory.name)
        self.steering_path = self.runtime_directory / "steering"
        self.applies: list[pb.Apply] = []
        self.drains: list[pb.Drain] = []
        self.readings: list[pb.MemoryReadings] = []
        self.snapshot = pb.Snapshot()
        self.statistics = pb.Statistics()
        self.asked_statistics: list[pb.StatisticsRequest] = []
        self.interface_version = 1
        self.pid = os.getpid()
        self.connections = 0
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None

    def __enter__(self) -> FakeDataPlane:
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.vanish()
        self._directory.cleanup()

    def listen(self) -> None:
        """Starts, or comes back under the same path."""
        self.steering_path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.steering_path))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def vanish(self) -> None:
        """Dies: the connection breaks and nothing accepts."""
        for one in (self._listener, self._peer):
            if one is not None:
                one.close() if one is self._listener else one.shutdown(socket.SHUT_RDWR)
        self._listener = self._peer = None

    def wait_apply(
        self, condition: Callable[[pb.Apply], Any], what: str, timeout_s: float = WAIT_TIMEOUT_S
    ) -> pb.Apply:
        """Waits until the newest Apply fulfils the condition."""
        return self.wait_apply_since(-1, condition, what, timeout_s)

    def wait_apply_since(
        self,
        first: int,
        condition: Callable[[pb.Apply], Any],
        what: str,
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> pb.Apply:
        """Waits for an Apply that fulfils the condition, of those from an index of `applies` on."""

        def found() -> pb.Apply | None:
            return next((apply for apply in self.applies[first:] if condition(apply)), None)

        apply = wait_until(found, what, timeout_s)
        assert apply is not None
        return apply

    def send_event(self, event: pb.Event) -> None:
        assert self._peer is not None
        self._send(self._peer, pb.FromDataPlane(event=event))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self._peer = peer
            self.connections += 1
            hello = pb.Hello(interface_version=self.interface_version, pid=self.pid)
            threading.Thread(target=self._serve, args=(peer, hello), daemon=True).start()

    def _serve(self, peer: socket.socket, hello: pb.Hello) -> None:
        try:
            self._send(peer, pb.FromDataPlane(hello=hello))
            stream = peer.makefile("rb")
            while head := stream.read(4):
                (length,) = struct.unpack("<I", head)
                self._answer(peer, pb.ToDataPlane.FromString(stream.read(length)))
        except OSError:
            return

    def _answer(self, peer: socket.socket, message: pb.ToDataPlane) -> None:
        kind = message.WhichOneof("message")
        if kind == "apply":
            self.applies.append(message.apply)
            applied = pb.Applied(generation=message.apply.generation)
            self._send(peer, pb.FromDataPlane(applied=applied))
        elif kind == "snapshot":
            self._send(peer, pb.FromDataPlane(snapshot=self.snapshot))
        elif kind == "statistics":
            self.asked_statistics.append(message.statistics)
            self._send(peer, pb.FromDataPlane(statistics=self.statistics))
        elif kind == "memory":
            self.readings.append(message.memory)
        elif kind == "drain":
            self.drains.append(message.drain)
            self._send(peer, pb.FromDataPlane(drained=pb.Drained(unanswered_requests=0)))

    @staticmethod
    def _send(peer: socket.socket, message: pb.FromDataPlane) -> None:
        payload = message.SerializeToString()
        peer.sendall(struct.pack("<I", len(payload)) + payload)


class ControlPlane:
    """One `python -m scheduler.control`."""

    def __init__(
        self,
        data_plane: FakeDataPlane,
        backends: Sequence[str] = (),
        config_file: Path | None = None,
        settings: dict[str, Any] | None = None,
        embedded: str | None = None,
    ) -> None:
        self.data_plane = data_plane
        self.cold_path = data_plane.runtime_directory / "cold"
        self.counters_fd = os.memfd_create("counters")
        os.ftruncate(self.counters_fd, PAGE_BYTES)
        self._metrics = socket.create_server(("127.0.0.1", 0))
        self.metrics_url = f"http://127.0.0.1:{self._metrics.getsockname()[1]}"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.control_address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags: list[list[Any]] = [[["backends"], list(backends), "--backend"]] if backends else []
        flags += [[key.split("."), value, "--test"] for key, value in (settings or {}).items()]
        self._parameters = {
            "config_file": str(config_file) if config_file else None,
            "flags": flags,
            "runtime_directory": str(data_plane.runtime_directory),
            "steering_socket": str(data_plane.steering_path),
            "cold_socket": str(self.cold_path),
            "counters_fd": self.counters_fd,
            "metrics_fd": self._metrics.fileno(),
            "control_address": self.control_address,
            "embedded_address": embedded,
            "embedded_metrics_port": 0,
            "listen": ["127.0.0.1:0"],
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.cold_channel = self.channel(f"unix:{self.cold_path}")

    @staticmethod
    def channel(address: str) -> grpc.Channel:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.insecure_channel(address, options=options)

    def start(self) -> None:
        command = [sys.executable, "-m", "scheduler.control"]
        self.process = subprocess.Popen(
            [*command, "--parameters", json.dumps(self._parameters)],
            cwd=ROOT,
            pass_fds=[self.counters_fd, self._metrics.fileno()],
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(EXIT_TIMEOUT_S)

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self.cold_channel.close()
        self._metrics.close()
        os.close(self.counters_fd)
