"""grpc.health.v1 with Check and Watch, per model name and for the process as a whole ("").

Not the servicer of grpcio-health-checking: there, of two watchers of one name the second hears
nothing more once the first is gone, and a slow watcher holds up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers from a table that `publish` replaces whole."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._changed = asyncio.Event()

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Sets the names known now and whether each serves."""
        if dict(serving) == self._serving:
            return
        self._serving = dict(serving)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return Response(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                last = status
                yield Response(status=status)
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._serving:
            return int(Response.SERVICE_UNKNOWN)
        return int(Response.SERVING if self._serving[service] else Response.NOT_SERVING)
