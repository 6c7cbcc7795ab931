"""`infersched serve` as a child process, for end-to-end tests, benchmarks and the demo.

with ServedScheduler(["--backend", triton.grpc_address]) as scheduler:
    client = tritonclient.grpc.InferenceServerClient(scheduler.address)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.backends.embedded_triton import free_port

READY_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.02


class ServeError(RuntimeError):
    """The scheduler ended or did not become ready; the message has the end of its log."""


class ServedScheduler:
    """One scheduler with listeners of its own on loopback; its output goes to `log_path`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        wait_ready: bool = True,
        ready_timeout_s: float = READY_TIMEOUT_S,
        launcher: Sequence[str] = (),
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics_address = f"127.0.0.1:{free_port()}"
        self.control_address = f"127.0.0.1:{free_port()}"
        self._wait_ready = wait_ready
        self._ready_timeout_s = ready_timeout_s
        self._directory = tempfile.TemporaryDirectory(prefix="infersched-serve-")
        self.log_path = Path(self._directory.name) / "scheduler.log"
        self._environment = {**os.environ, **(environment or {})}
        self._command = [
            *launcher,  # a command line that runs the rest of its arguments
            *(sys.executable, "-m", "scheduler.cli", "serve"),
            *("--listen", self.address),
            *("--metrics-listen", self.metrics_address),
            *("--control-listen", self.control_address),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> psutil.Process:
        """The supervisor."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def metrics_url(self) -> str:
        return f"http://{self.metrics_address}/metrics"

    def child(self, word: str) -> psutil.Process:
        """The one child process with `word` in its command line, such as "dataplane"."""
        found = [
            child
            for child in self.process.children(recursive=True)
            if any(word in argument for argument in child.cmdline())
        ]
        if len(found) != 1:
            raise ServeError(f"{len(found)} children have {word!r} in their command line")
        return found[0]

    def start(self) -> None:
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def ready(self) -> bool:
        """ServerReady as a client sees it now."""
        with grpc.insecure_channel(self.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with contextlib.suppress(grpc.RpcError):
                answer = stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5.0)
                return bool(answer.ready)
        return False

    def healthy(self) -> bool:
        """/healthz of the metrics listener, which is never encrypted."""
        with contextlib.suppress(OSError):
            url = f"http://{self.metrics_address}/healthz"
            with urllib.request.urlopen(url, timeout=5.0) as answer:
                return bool(answer.status == 200)
        return False

    def wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if self.returncode is not None:
                raise ServeError(f"ended with status {self.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServeError(f"not ready after {timeout_s:.0f} s:\n{self.log_tail()}")
            time.sleep(_POLL_INTERVAL_S)

    def terminate(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """SIGTERM, which drains. Returns the exit status; kills what is left after `timeout_s`."""
        assert self._process is not None
        family = [self.process, *self.process.children(recursive=True)] if self._alive() else []
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        return self._process.wait()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> ServedScheduler:
        self.start()
        try:
            if self._wait_ready:
                self.wait_ready(self._ready_timeout_s)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._alive():
            self.terminate()
        self._directory.cleanup()
