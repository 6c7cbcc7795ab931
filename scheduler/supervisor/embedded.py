"""Keeps the embedded Triton running."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from scheduler.backends.embedded_triton import EmbeddedTriton, TritonStartError
from scheduler.supervisor.child import STABLE_AFTER_S, exit_text
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

_ERROR_LINE = re.compile(r"E[0-9]{4} |error:")

WATCH_PERIOD_S = 0.2
BACKOFF_MAX_S = 5.0
# Before it served for the first time: a repository that cannot be loaded will not load later.
FIRST_STARTS_MAX = 3


class EmbeddedSupervisor:
    """Starts tritonserver, starts it again on the same ports when it died."""

    def __init__(
        self,
        model_repository: Path,
        model_control_mode: str = "none",
        load_models: Sequence[str] = (),
    ) -> None:
        self._triton = EmbeddedTriton(
            model_repository,
            model_control_mode=model_control_mode,
            extra_arguments=[f"--load-model={name}" for name in load_models],
        )
        self._started_at = 0.0
        self._has_served = False
        self._deaths_in_a_row = 0

    @property
    def address(self) -> str:
        """host:port of its gRPC service."""
        return self._triton.grpc_address

    @property
    def metrics_port(self) -> int:
        """On the host of `address`."""
        return self._triton.metrics_port or 0

    def start(self) -> None:
        """Returns at once. Raises TritonInstallError or TritonStartError where nothing can run."""
        self._triton.start()
        self._started_at = time.monotonic()
        log(
            logger,
            logging.INFO,
            "tritonserver started",
            pid=self._triton.pid,
            address=self._triton.grpc_address,
            log=self._triton.log_path,
        )

    async def run(self) -> None:
        """Watches until cancelled. Raises TritonStartError when it never came up."""
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self._triton.running:
                if not self._has_served:
                    self._has_served = await asyncio.to_thread(self._triton.accepting)
                continue
            await self._start_again()

    async def _start_again(self) -> None:
        status = exit_text(self._triton.returncode or 0)
        lived_s = time.monotonic() - self._started_at
        self._deaths_in_a_row = 1 if lived_s >= STABLE_AFTER_S else self._deaths_in_a_row + 1
        complaints = error_lines(self._triton.log_tail(200))
        if not self._has_served and self._deaths_in_a_row >= FIRST_STARTS_MAX:
            raise TritonStartError(f"tritonserver ended with status {status}:\n{complaints}")
        pause_s = 0.0
        if self._deaths_in_a_row > 1:
            pause_s = min(BACKOFF_MAX_S, 0.2 * 2.0 ** min(self._deaths_in_a_row - 2, 16))
        log(
            logger,
            logging.ERROR,
            "tritonserver ended and is started again",
            status=status,
            lived_s=round(lived_s, 1),
            pause_s=pause_s,
        )
        if not self._has_served:
            log(logger, logging.ERROR, "tritonserver's errors", log=complaints)
        self._triton.kill()  # its stubs may have outlived it
        await asyncio.sleep(pause_s)
        self.start()

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._triton.kill()

    async def close(self) -> None:
        """SIGTERM and the wait for its end."""
        await asyncio.to_thread(self._triton.close)


def error_lines(text: str, lines_max: int = 8) -> str:
    """The errors of a tritonserver's log without its tables; its end where it names none."""
    lines = text.splitlines()
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return "\n".join((errors or lines)[-lines_max:])
