"""TraceSetting and LogSettings: read from one Triton of the pool, changed on all of them."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from scheduler.backends.pool import BackendPool
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.control.fan_out import ask_all, ask_any, reachable


class TraceAndLog:
    """A request without settings reads."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    async def trace(
        self, request: service_pb2.TraceSettingRequest
    ) -> service_pb2.TraceSettingResponse:
        """Raises ColdError."""
        model = request.model_name
        # A model need not be loaded everywhere: one that has it can say more.
        watches = sorted(
            reachable(self._pool),
            key=lambda watch: all(name != model for name, _ in watch.ready_models),
        )
        return await self._read_or_change("TraceSetting", request, watches)

    async def log(self, request: service_pb2.LogSettingsRequest) -> service_pb2.LogSettingsResponse:
        """Raises ColdError."""
        return await self._read_or_change("LogSettings", request, reachable(self._pool))

    async def _read_or_change(self, method: str, request: Any, watches: list[BackendWatch]) -> Any:
        if not request.settings:
            # Those in rotation first; the order is kept otherwise.
            watches = sorted(watches, key=lambda w: w.status is not BackendStatus.SERVING)
            return await ask_any(watches, method, request)
        outcome = await ask_all(self._pool, watches, method, request)
        outcome.raise_failures()
        return next(iter(outcome.answers.values()))
