"""TraceSetting and LogSettings: read from one Triton of the pool, changed on all of them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tritonclient.grpc import service_pb2

from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.control.cold.fan_out import UPDATE_TIMEOUT_S, ask_all, ask_any, reachable
from scheduler.control.cold.server_settings import Method, ServerSettings
from scheduler.control.plane import ControlPlane
from scheduler.control.versions import until_nul
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


class TraceAndLog:
    """A request without settings reads. Changes are repeated on a backend that comes back."""

    def __init__(self, plane: ControlPlane) -> None:
        self._pool = plane.pool
        self._settings = ServerSettings(plane.parameters.runtime_directory)
        # Settings change one after the other, and not while a backend is told of them.
        self._turn = asyncio.Lock()
        plane.on_rejoin.append(self._rejoined)

    async def trace(
        self, request: service_pb2.TraceSettingRequest
    ) -> service_pb2.TraceSettingResponse:
        """Raises ColdError."""
        model = until_nul(request.model_name)
        # A model need not be loaded everywhere: one that has it can say more.
        watches = sorted(
            reachable(self._pool),
            key=lambda watch: all(name != model for name, _ in watch.ready_models),
        )
        return await self._read_or_change("TraceSetting", request, watches)

    async def log(self, request: service_pb2.LogSettingsRequest) -> service_pb2.LogSettingsResponse:
        """Raises ColdError."""
        return await self._read_or_change("LogSettings", request, reachable(self._pool))

    async def _read_or_change(
        self, method: Method, request: Any, watches: list[BackendWatch]
    ) -> Any:
        if not request.settings:
            # Those in rotation first; the order is kept otherwise.
            watches = sorted(watches, key=lambda w: w.status is not BackendStatus.SERVING)
            return await ask_any(watches, method, request)
        async with self._turn:
            outcome = await ask_all(self._pool, watches, method, request)
            if outcome.answers:
                self._settings.changed(method, request)
        outcome.raise_failures()
        return next(iter(outcome.answers.values()))

    async def _rejoined(self, address: str) -> None:
        """The backend came (back), perhaps as another process with the settings of its start."""
        async with self._turn:
            watch = self._pool.watches.get(address)
            if watch is None:
                return
            for method, request in self._settings.changes():
                try:
                    await watch.calls.rpc(method, request, UPDATE_TIMEOUT_S)
                except RpcError as error:
                    log(logger, logging.WARNING, "settings cannot be changed again", method=method,
                        backend=address, reason=error.text)  # fmt: skip
