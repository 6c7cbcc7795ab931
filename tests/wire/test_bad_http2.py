"""Illegal HTTP/2 and gRPC: a clear status where there is a stream, and nobody else is disturbed."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator

import grpc
import h2.errors
import h2.events
import h2.settings
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import (
    Stub,
    connected,
    error_of,
    infer_error,
    infer_request,
    output,
    rows,
)
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import RawClient, grpc_message

UNIMPLEMENTED, RESOURCE_EXHAUSTED, INTERNAL = "12", "8", "13"


@pytest.fixture(autouse=True)
def others_are_served(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call that was out before the trouble is answered after it."""
    stub: Stub = request.getfixturevalue("stub")
    fake: FakeTriton = request.getfixturevalue("fake")
    call = fake.occupy(stub)
    fake.requests.clear()
    yield
    fake.release()
    np.testing.assert_array_equal(output(call.result(30)), rows(7777.0))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the begin of a TLS handshake
        b"\0" * 64,
    ],
    ids=["http1", "tls", "zeros"],
)
def test_what_is_not_http2_is_closed(data: bytes, plane: DataPlane) -> None:
    with socket.create_connection(("127.0.0.1", plane.port), 10) as client:
        client.sendall(data)
        while client.recv(1 << 16):
            pass


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x05\x00\x00\x00\x00\x00\x00abcde",  # DATA on stream 0
        b"\x00\x00\x05\x01\x04\x00\x00\x00\x02\x82\x86\x84\x41\x00",  # a stream of the server
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # WINDOW_UPDATE of 0
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # a frame of 16 MiB
        b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff",  # HPACK that ends in nothing
        b"\x00\x00\x08\x06\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00",  # PING, stream 1
    ],
    ids=["data0", "even", "window0", "length", "hpack", "ping1"],
)
def test_a_connection_error_ends_that_connection_with_goaway(
    frame: bytes, plane: DataPlane
) -> None:
    with RawClient(plane.address) as client:
        client.send_raw(frame)
        client.wait_for(h2.events.ConnectionTerminated)
        client.read_to_the_end()


def test_a_message_that_ends_early_is_an_error_of_its_stream(plane: DataPlane) -> None:
    message = grpc_message(infer_request(rows(1)).SerializeToString())
    with RawClient(plane.address) as client:
        for data in (b"", message[:3], message[:-1], message[:50]):
            stream = client.request_headers()
            client.send_data(stream, data, end_stream=True)
            trailers = client.trailers(stream)
            assert trailers[":status"] == "200"
            assert trailers["grpc-status"] == INTERNAL
            assert trailers["grpc-message"]
        assert plane.counters()["admitted"] == 1, "none was admitted"


def test_bytes_after_the_message_are_an_error_of_its_stream(plane: DataPlane) -> None:
    message = grpc_message(infer_request(rows(1)).SerializeToString())
    with RawClient(plane.address) as client:
        stream = client.request_headers()
        client.send_data(stream, message + message, end_stream=True)
        assert client.trailers(stream)["grpc-status"] in (INTERNAL, UNIMPLEMENTED)


def test_a_compressed_flag_without_encoding_is_an_error_of_its_stream(plane: DataPlane) -> None:
    message = infer_request(rows(1)).SerializeToString()
    with RawClient(plane.address) as client:
        stream = client.request_headers()
        client.send_data(stream, grpc_message(message, compressed=True), end_stream=True)
        assert client.trailers(stream)["grpc-status"] in (INTERNAL, UNIMPLEMENTED)


def test_a_zip_bomb_is_inflated_in_turns_and_answered(plane: DataPlane, stub: Stub) -> None:
    bomb = grpc_message(gzip.compress(bytes(256 << 20)), compressed=True)
    with RawClient(plane.address) as client:
        stream = client.request_headers(("grpc-encoding", "gzip"))
        client.send_data(stream, bomb, end_stream=True)
        assert client.trailers(stream)["grpc-status"] == INTERNAL  # no request
        # The connection is still read.
        assert client.trailers(client.infer(infer_request(rows(1), model="nope")))


def test_what_is_not_grpc_gets_an_http_status(plane: DataPlane) -> None:
    with RawClient(plane.address) as client:
        stream = client.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/inference.GRPCInferenceService/ModelInfer"),
            (":authority", "test"),
            ("content-type", "application/json"),
        ]
        client.h2.send_headers(stream, headers, end_stream=True)
        client.flush()
        assert client.trailers(stream)[":status"] == "415"


def test_headers_beyond_the_bound_do_not_end_the_connection(plane: DataPlane) -> None:
    with RawClient(plane.address) as client:
        stream = client.request_headers(("x-large", "x" * 15_000), ("x-more", "y" * 15_000))
        client.h2.reset_stream(stream, 8)
        client.flush()
        client.h2.ping(b"12345678")
        client.flush()
        client.wait_for(h2.events.PingAckReceived)


def test_a_message_at_the_bound_passes_and_one_byte_more_does_not(
    plane: DataPlane, fake: FakeTriton
) -> None:
    request = infer_request(rows(1, 64))
    size = request.ByteSize()
    fake.release()
    for bound, passes in ((size, True), (size - 1, False)):
        limits = pb.Limits(message_bytes_max=bound)
        plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
        with connected(plane.address) as stub:
            if passes:
                np.testing.assert_array_equal(
                    output(stub.ModelInfer(request, timeout=30)), rows(1, 64)
                )
            else:
                error = infer_error(stub, request)
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert str(bound) in error.details()
                response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
                np.testing.assert_array_equal(output(response), rows(2))


def test_an_oversize_message_is_refused_at_its_prefix(plane: DataPlane, fake: FakeTriton) -> None:
    """Nothing is held and nothing is waited for; the stream ends without an error of HTTP/2."""
    limits = pb.Limits(message_bytes_max=1000)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with RawClient(plane.address) as client:
        stream = client.request_headers()
        client.send_data(stream, b"\0\x7f\xff\xff\xff" + b"x" * 100)
        assert client.trailers(stream)["grpc-status"] == RESOURCE_EXHAUSTED
        assert plane.snapshot().host_bytes < 10_000


def test_connections_beyond_the_bound_are_closed(plane: DataPlane, fake: FakeTriton) -> None:
    limits = pb.Limits(connections_max=3)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with RawClient(plane.address), RawClient(plane.address):
        wait_until(lambda: plane.snapshot().client_connections == 3, "three are connected")
        with RawClient(plane.address) as fourth:
            fourth.read_to_the_end()
        assert plane.snapshot().client_connections == 3
    wait_until(lambda: plane.snapshot().client_connections == 1, "the two are gone")
    with RawClient(plane.address) as client:
        client.h2.ping(b"12345678")
        client.flush()
        client.wait_for(h2.events.PingAckReceived)


def test_streams_beyond_the_bound_are_refused_and_may_be_retried(
    plane: DataPlane, fake: FakeTriton
) -> None:
    limits = pb.Limits(streams_per_connection_max=10)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with RawClient(plane.address) as client:
        # All of them are sent before the server's SETTINGS are read.
        streams = [client.infer(infer_request(rows(n))) for n in range(12)]
        for stream in streams[10:]:
            reset = client.wait_for(h2.events.StreamReset, stream)
            assert reset.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
        plane.wait_queued(10)
        fake.release()
        for stream in streams[:10]:
            assert client.trailers(stream)["grpc-status"] == "0"


def test_a_client_that_ignores_the_bound_it_knows_is_closed(
    plane: DataPlane, fake: FakeTriton
) -> None:
    limits = pb.Limits(streams_per_connection_max=10)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with RawClient(plane.address) as client:
        client.wait_for(h2.events.RemoteSettingsChanged)
        assert client.h2.remote_settings.max_concurrent_streams == 10
        for n in range(10):
            client.infer(infer_request(rows(n)))
        plane.wait_queued(10)
        client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        client.h2.remote_settings.acknowledge()
        client.request_headers()
        client.wait_for(h2.events.ConnectionTerminated)
        client.read_to_the_end()
    plane.wait_queued(0)


def test_grpcio_waits_for_a_free_stream(plane: DataPlane, fake: FakeTriton) -> None:
    limits = pb.Limits(streams_per_connection_max=10)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    fake.release()
    with connected(plane.address) as stub:
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(200)]
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))


def test_an_unknown_method_is_unimplemented_or_unavailable(plane: DataPlane) -> None:
    """The control plane would say UNIMPLEMENTED; here there is none."""
    with grpc.insecure_channel(plane.address) as channel:
        error = error_of(channel.unary_unary("/no.Such/Method").future(b"", timeout=30))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "control plane" in error.details()
