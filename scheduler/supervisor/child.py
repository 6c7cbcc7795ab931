"""One child process: started, watched, started again with a bounded backoff."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ChildSpec:
    """What to run. `backoff_first_s` 0 starts a died child at once the first time."""

    name: str
    command: Sequence[str]
    pass_fds: Sequence[int] = ()
    environment: dict[str, str] | None = None
    nice: int = 0
    backoff_first_s: float = 0.0
    backoff_max_s: float = 5.0
    deaths_in_a_row_max: int = 20


class ChildGaveUp(Exception):
    """A child died again and again without ever proving itself."""


# A child that lived this long has proved itself: its next death is a first one again.
STABLE_AFTER_S = 10.0


class Child:
    """Keeps one process of `spec` running until `stop`.

    The child has a session of its own (a Ctrl-C is for the supervisor, who drains) and gets SIGKILL
    from the kernel when the supervisor dies.
    """

    def __init__(self, spec: ChildSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.starts = 0
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._deaths_in_a_row = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        """Exit status of the last process, None while it runs or before the first start."""
        return self._process.returncode if self._process is not None else None

    async def run(self) -> None:
        """Starts the child again whenever it ends, until `stop` or `expect_exit`.

        Raises ChildGaveUp after `deaths_in_a_row_max` quick deaths.
        """
        while not self._stopping.is_set():
            started_at = self._clock()
            await self._start()
            assert self._process is not None
            status = await self._process.wait()
            ended = exit_text(status)
            if status == -signal.SIGSYS:
                ended += " of a seccomp filter: try server.scheduling_hints: false"
            if self._stopping.is_set():
                return
            lived_s = self._clock() - started_at
            self._deaths_in_a_row = 1 if lived_s >= STABLE_AFTER_S else self._deaths_in_a_row + 1
            if self._deaths_in_a_row >= self.spec.deaths_in_a_row_max:
                raise ChildGaveUp(
                    f"{self.spec.name} died {self._deaths_in_a_row} times in a row, "
                    f"the last time with status {ended}"
                )
            pause_s = self.backoff_s()
            log(
                logger,
                logging.ERROR,
                f"{self.spec.name} ended and is started again",
                status=ended,
                lived_s=round(lived_s, 3),
                pause_s=round(pause_s, 3),
            )
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except asyncio.TimeoutError:
                continue

    def backoff_s(self) -> float:
        """Pause before the next start: first, then 0.1 s doubled a death, up to the maximum."""
        if self._deaths_in_a_row <= 1:
            return self.spec.backoff_first_s
        doubled = 0.1 * 2.0 ** min(self._deaths_in_a_row - 2, 16)
        return min(self.spec.backoff_max_s, max(self.spec.backoff_first_s, doubled))

    def expect_exit(self) -> None:
        """From now on an exit is wanted and the child is not started again."""
        self._stopping.set()

    def send_signal(self, number: signal.Signals) -> bool:
        """Whether the signal went to a running process."""
        if self.pid is None or self._process is None:
            return False
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def wait_exit(self, timeout_s: float) -> bool:
        """Whether the process has ended within `timeout_s`."""
        if self._process is None:
            return True
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`."""
        self.expect_exit()
        self.send_signal(signal.SIGTERM)
        if not await self.wait_exit(timeout_s):
            log(logger, logging.WARNING, f"{self.spec.name} did not end and is killed")
            self.send_signal(signal.SIGKILL)
            await self.wait_exit(5.0)

    async def _start(self) -> None:
        parent = os.getpid()
        nice = self.spec.nice

        def before_exec() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            if nice:
                with contextlib.suppress(OSError):  # a sandbox may forbid it
                    os.nice(nice)

        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=tuple(self.spec.pass_fds),
            env={**os.environ, **(self.spec.environment or {})},
            start_new_session=True,
            preexec_fn=before_exec,
        )
        self.starts += 1
        log(logger, logging.INFO, f"{self.spec.name} started", pid=self._process.pid)


def exit_text(status: int) -> str:
    """`killed by SIGKILL` or the number."""
    if status >= 0:
        return str(status)
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
