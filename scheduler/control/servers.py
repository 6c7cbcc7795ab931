"""The listeners of the control plane: cold RPCs on a unix socket, Control service, metrics."""

from __future__ import annotations

import socket

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2_grpc

from scheduler.control import health, readiness, service
from scheduler.control.cold import rpcs as cold
from scheduler.control.plane import ControlPlane
from scheduler.control.refusals import TritonRefusals
from scheduler.telemetry.listener import HttpListener
from scheduler.telemetry.metrics import CountersCollector
from scheduler.v1 import control_pb2_grpc

INT32_MAX = 2**31 - 1
METADATA_BYTES_MAX = 2**17
_OPTIONS = [
    ("grpc.max_send_message_length", INT32_MAX),
    ("grpc.max_receive_message_length", INT32_MAX),
    # The data plane's one connection lives long and is often idle.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # Of metadata the data plane lets in 64 KiB, and adds little.
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
]


class Servers:
    """Starts and stops what listens."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._servers: list[grpc.aio.Server] = []
        self._http: HttpListener | None = None

    async def start(self) -> None:
        parameters = self._plane.parameters
        self._servers.append(self._cold_server())
        if parameters.control_address is not None:
            self._servers.append(self._control_server(parameters.control_address))
        for server in self._servers:
            await server.start()
        if parameters.metrics_fd is not None:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(CountersCollector(self._plane.counters, self._plane.metrics_scope))
            listener = socket.socket(fileno=parameters.metrics_fd)
            self._http = HttpListener(listener, registry, lambda: self._plane.readiness.ready)
            self._http.start()

    async def stop(self) -> None:
        if self._http is not None:
            self._http.stop()
        for server in self._servers:
            await server.stop(0.1)

    def _cold_server(self) -> grpc.aio.Server:
        plane = self._plane
        server = grpc.aio.server(interceptors=[TritonRefusals()], options=_OPTIONS)
        servicer = cold.ColdServicer(plane)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(plane.health, server)
        names = (readiness.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        server.add_insecure_port(f"unix:{plane.parameters.cold_socket}")
        return server

    def _control_server(self, address: str) -> grpc.aio.Server:
        # The supervisor holds the port with a socket of its own: it has to be shared.
        server = grpc.aio.server(options=[*_OPTIONS, ("grpc.so_reuseport", 1)])
        control_pb2_grpc.add_ControlServicer_to_server(service.ControlServicer(self._plane), server)
        names = (service.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        server.add_insecure_port(address)
        return server
