"""Runs the installed tritonserver on a model repository as a child process.

    with EmbeddedTriton(repository) as triton:
        client = tritonclient.grpc.InferenceServerClient(triton.grpc_address)

The server loads every model before it opens its gRPC port, so an accepting port is a ready server.
It never outlives this process: the kernel kills it when the thread that started it ends, so start
it from a thread that lives as long as the server should (the main thread, as a rule). The end of
the `with` kills it; `close()` lets it finish what runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from scheduler.backends import triton_install

READY_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.02
_START_ATTEMPTS = 3
_PORT_TAKEN = "already in use"

# Runs before tritonserver in the same process: PR_SET_PDEATHSIG survives exec. A preexec_fn would
# run Python between fork and exec of a process that may have threads of grpc.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class TritonStartError(RuntimeError):
    """tritonserver ended or did not become ready; the message has the end of its log."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EmbeddedTriton:
    """One tritonserver child: start, wait until ready, stop, start again on the same ports.

    Ports of 0 are chosen at the first start. `metrics_port` None switches the metrics endpoint
    off. `extra_arguments` go to the command line as they are, `environment` over this process's.
    The log file is `log_path`, by default in a temporary directory that is removed by `close()`.
    """

    def __init__(
        self,
        model_repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        metrics_port: int | None = 0,
        model_control_mode: str = "none",
        extra_arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        tool_directory: Path | None = None,
    ) -> None:
        self.model_repository = Path(model_repository).resolve()
        self.host = host
        self.grpc_port = grpc_port
        self.metrics_port = metrics_port
        self._model_control_mode = model_control_mode
        self._extra_arguments = list(extra_arguments)
        self._environment = dict(environment or {})
        self._tool_directory = tool_directory
        self._process: subprocess.Popen[bytes] | None = None
        self._shared_memory_prefix = ""
        self._log_offset = 0
        self._choose_grpc_port = grpc_port == 0
        self._choose_metrics_port = metrics_port == 0
        self._temporary: str | None = None
        if log_path is None:
            self._temporary = tempfile.mkdtemp(prefix="infersched-triton-")
            log_path = Path(self._temporary) / "tritonserver.log"
        self.log_path = Path(log_path)

    @property
    def grpc_address(self) -> str:
        """host:port of the gRPC service."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str | None:
        """URL of the Prometheus endpoint, or None where it is off."""
        if self.metrics_port is None:
            return None
        return f"http://{self.host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id while the server runs, else None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit status of the last server, negative for a signal; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Starts the server and returns at once; see `wait_ready`.

        Raises TritonInstallError when no tritonserver is installed for this Python and
        TritonStartError when the repository is missing or the port is taken.
        """
        if self.running:
            raise RuntimeError("this tritonserver runs already")
        found = triton_install.locate(self._tool_directory)
        if found is None:
            where = self._tool_directory or triton_install.default_tool_directory()
            raise triton_install.TritonInstallError(
                f"no tritonserver for Python {triton_install.python_version()} in {where}; "
                "run: infersched triton install"
            )
        if not self.model_repository.is_dir():
            raise TritonStartError(f"model repository {self.model_repository} is not a directory")
        self._choose_ports()
        if self.accepting():
            raise TritonStartError(f"another process listens on {self.grpc_address}")
        self._remove_shared_memory()
        self._shared_memory_prefix = f"infersched_triton_{os.getpid()}_{self.grpc_port}_"
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with open(self.log_path, "ab") as log:
            self._log_offset = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                [*launcher, str(found.server), *self._arguments(found)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**found.environment(), **self._environment},
                start_new_session=True,  # a Ctrl-C is for us; we decide when Triton stops
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Blocks until the ports accept. Raises TritonStartError on exit or after timeout."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.running:
                raise TritonStartError(
                    f"tritonserver ended with status {self.returncode}:\n{self.log_errors()}"
                )
            # The metrics port opens a little after the gRPC port.
            if self.accepting() and (self.metrics_port is None or self._accepts(self.metrics_port)):
                return
            time.sleep(_POLL_INTERVAL_S)
        raise TritonStartError(
            f"tritonserver was not ready after {timeout_s:.0f} s:\n{self.log_errors()}"
        )

    def start_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """`start` and `wait_ready`; takes other ports if a chosen one was taken meanwhile."""
        for attempt in range(_START_ATTEMPTS):
            self.start()
            try:
                self.wait_ready(timeout_s)
                return
            except BaseException:
                self.kill()
                chosen = self._choose_grpc_port or self._choose_metrics_port
                taken = _PORT_TAKEN in self._log()
                if not (chosen and taken) or attempt + 1 == _START_ATTEMPTS:
                    raise
                self.grpc_port = 0 if self._choose_grpc_port else self.grpc_port
                self.metrics_port = 0 if self._choose_metrics_port else self.metrics_port

    def accepting(self) -> bool:
        """Whether the gRPC port takes connections now."""
        return self._accepts(self.grpc_port)

    def _accepts(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, port), 1):
            return True
        return False

    def terminate(self, timeout_s: float = EXIT_TIMEOUT_S) -> int | None:
        """SIGTERM: Triton finishes what runs. SIGKILL after `timeout_s`. Returns the status."""
        if self._process is None:
            return None
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        return self.kill()

    def kill(self) -> int | None:
        """SIGKILL to the server and its stubs. Returns the exit status."""
        if self._process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._remove_shared_memory()
        return status

    def close(self) -> None:
        """Stops the server and removes its temporary files."""
        self.terminate()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        return "\n".join(self._log().splitlines()[-lines:])

    def log_errors(self) -> str:
        """What the last server logged as errors; the end of its log if it logged none."""
        errors = re.findall(r"^(?:[EF]\d{4} |error: ).*$", self._log(), re.MULTILINE)
        return "\n".join(errors) if errors else self.log_tail()

    def __enter__(self) -> EmbeddedTriton:
        try:
            self.start_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()  # by now nobody waits for an answer, and Triton takes seconds to end by itself
        self.close()

    def _arguments(self, found: triton_install.TritonInstall) -> list[str]:
        arguments = [
            f"--model-repository={self.model_repository}",
            f"--model-control-mode={self._model_control_mode}",
            f"--backend-directory={found.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            "--allow-http=false",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
        ]
        if self.metrics_port is None:
            arguments.append("--allow-metrics=false")
        else:
            arguments.append(f"--metrics-address={self.host}")
            arguments.append(f"--metrics-port={self.metrics_port}")
        return [*arguments, *self._extra_arguments]

    def _choose_ports(self) -> None:
        if self.grpc_port == 0:
            self.grpc_port = free_port(self.host)
        while self.metrics_port in (0, self.grpc_port):
            self.metrics_port = free_port(self.host)

    def _log(self) -> str:
        """The log of the last server that was started."""
        if not self.log_path.exists():
            return ""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    def _remove_shared_memory(self) -> None:
        """A killed server leaves the regions it shared with its stubs in /dev/shm."""
        if self._shared_memory_prefix:
            for region in Path("/dev/shm").glob(f"{self._shared_memory_prefix}*"):
                region.unlink(missing_ok=True)
