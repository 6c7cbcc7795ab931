"""Calls that are not inference go to the control plane's server, stream by stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.dataplane import DataPlane, wait_until
from tests.wire.calls import CHANNEL_OPTIONS, Stub, error_of, infer_request, output, rows
from tests.wire.raw_client import RawClient

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class ColdServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers what the tests look at; everything else is UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.cancelled = threading.Event()
        self.entered = threading.Event()

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        context.send_initial_metadata((("x-initial", "one"),))
        context.set_trailing_metadata((("x-trailing", "two"), ("x-bin", b"\x00\xff")))
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no: {request.name} — 100 %")

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="x" * 3_000_000)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Runs until it is cancelled."""
        context.add_callback(self.cancelled.set)
        self.entered.set()
        self.cancelled.wait(30)
        return service_pb2.RepositoryIndexResponse()

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Tells the size of what it got."""
        response = service_pb2.ModelConfigResponse()
        response.config.name = str(len(request.name))
        return response


@contextmanager
def cold_server(plane: DataPlane, servicer: ColdServicer) -> Iterator[health.HealthServicer]:
    """A grpcio server on the cold socket; waits until the data plane is connected to it."""
    server = grpc.server(
        futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    server.add_insecure_port(f"unix:{plane.cold_socket}")
    server.start()
    try:
        with grpc.insecure_channel(plane.address, options=CHANNEL_OPTIONS) as channel:
            wait_until(lambda: live(channel), "the cold server is connected")
        yield checks
    finally:
        server.stop(grace=0).wait()


def live(channel: grpc.Channel) -> bool:
    call = Stub(channel).ServerLive.future(service_pb2.ServerLiveRequest(), timeout=5)
    return call.exception() is None


@pytest.fixture
def servicer() -> ColdServicer:
    return ColdServicer()


@pytest.fixture
def cold(plane: DataPlane, servicer: ColdServicer) -> Iterator[health.HealthServicer]:
    plane.apply([], [])
    with cold_server(plane, servicer) as checks:
        yield checks


@pytest.fixture
def channel(plane: DataPlane) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(plane.address, options=CHANNEL_OPTIONS) as opened:
        yield opened


def test_metadata_passes_both_ways_and_internal_headers_cannot_be_forged(
    cold: object, servicer: ColdServicer, channel: grpc.Channel
) -> None:
    sent = [("x-user", " me "), ("infersched-peer", "forged"), ("infersched-principal", "root")]
    response, call = Stub(channel).ServerLive.with_call(
        service_pb2.ServerLiveRequest(), metadata=sent, timeout=30
    )
    assert response.live
    assert servicer.metadata["x-user"] == " me "
    assert servicer.metadata["infersched-peer"].startswith("127.0.0.1:")
    assert "infersched-principal" not in servicer.metadata
    assert dict(call.initial_metadata())["x-initial"] == "one"
    trailing = dict(call.trailing_metadata())
    assert (trailing["x-trailing"], trailing["x-bin"]) == ("two", b"\x00\xff")


def test_errors_pass_with_code_and_text(cold: object, channel: grpc.Channel) -> None:
    request = service_pb2.ModelReadyRequest(name="m")
    error = error_of(Stub(channel).ModelReady.future(request, timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "no: m — 100 %"
    error = error_of(channel.unary_unary("/no.Such/Method").future(b"", timeout=30))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def test_large_messages_pass_both_ways(cold: object, channel: grpc.Channel) -> None:
    stub = Stub(channel)
    for _ in range(3):
        metadata = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=30)
        assert len(metadata.version) == 3_000_000
        request = service_pb2.ModelConfigRequest(name="n" * 3_000_000)
        assert stub.ModelConfig(request, timeout=30).config.name == "3000000"


def test_health_is_checked_and_watched(cold: health.HealthServicer, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    cold.set("identity", health_pb2.HealthCheckResponse.NOT_SERVING)
    request = health_pb2.HealthCheckRequest(service="identity")
    watch = stub.Watch(request, timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    cold.set("identity", health_pb2.HealthCheckResponse.SERVING)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert stub.Check(request, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_reflection_lists_the_services(cold: object, channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    assert database.FindFileContainingSymbol(SERVICE).package == "inference"


def test_a_cancel_reaches_the_control_plane(
    cold: object, servicer: ColdServicer, channel: grpc.Channel
) -> None:
    call = Stub(channel).RepositoryIndex.future(service_pb2.RepositoryIndexRequest(), timeout=30)
    assert servicer.entered.wait(60)
    call.cancel()
    assert servicer.cancelled.wait(60)


def test_a_deadline_reaches_the_control_plane(
    cold: object, servicer: ColdServicer, channel: grpc.Channel
) -> None:
    call = Stub(channel).RepositoryIndex.future(service_pb2.RepositoryIndexRequest(), timeout=2)
    assert error_of(call).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert servicer.cancelled.wait(60)


def test_a_client_that_vanishes_cancels_its_calls(
    cold: object, servicer: ColdServicer, plane: DataPlane
) -> None:
    with RawClient(plane.address) as client:
        stream = client.request_headers(path=f"/{SERVICE}/RepositoryIndex")
        client.send_data(stream, b"\0\0\0\0\0", end_stream=True)
        assert servicer.entered.wait(60)
        client.vanish()
    assert servicer.cancelled.wait(60)


def test_while_the_control_plane_is_away_inference_goes_on(
    plane: DataPlane, stub: Stub, servicer: ColdServicer, channel: grpc.Channel
) -> None:
    for _ in range(3):
        with cold_server(plane, servicer):
            stub.ModelInfer(infer_request(rows(1)), timeout=30)
            hanging = Stub(channel).RepositoryIndex.future(service_pb2.RepositoryIndexRequest())
            assert servicer.entered.wait(60)
        lost = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert error_of(hanging).code() in lost
        wait_until(lambda: not live(channel), "its end is seen")
        error = error_of(
            Stub(channel).ServerLive.future(service_pb2.ServerLiveRequest(), timeout=30)
        )
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(2))
        servicer.entered.clear()
        servicer.cancelled.clear()
