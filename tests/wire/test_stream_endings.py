"""What a backend sees of a stream whose client has gone: a half close first, a reset later.

A Triton 2.51 may die of a stream that is reset while replies are due on it.
"""

from __future__ import annotations

from typing import Any

from h2.connection import H2Connection

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, wait_until
from tests.streams import OpenStream
from tests.wire.calls import connected, infer_request, rows
from tests.wire.fake_triton import Message, Request, identity
from tests.wire.h2_backend import OK_HEADERS, OK_TRAILERS, H2Backend
from tests.wire.raw_client import RawClient, grpc_message
from tests.wire.test_streams import decoupled_model

STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
LINGERING_MAX = 1024


def decoupled() -> Request:
    return infer_request(rows(1), model="decoupled")


def silent(connection: H2Connection, stream: int, message: bytes) -> None:
    """Never answers."""


def three_replies(connection: H2Connection, stream: int, message: bytes) -> None:
    """Once the stream is half-closed."""
    reply = identity(Request.FromString(message))
    connection.send_headers(stream, OK_HEADERS)
    for number in range(3):
        reply.parameters["triton_final_response"].bool_param = number == 2
        payload = Message(infer_response=reply).SerializeToString()
        connection.send_data(stream, grpc_message(payload))
    connection.send_headers(stream, OK_TRAILERS, end_stream=True)


def one_model(plane: DataPlane, backend: H2Backend, **batching: Any) -> None:
    model = decoupled_model(0)
    model.batching.MergeFrom(pb.Batching(**batching))
    limits = pb.Limits(streams_per_connection_max=2 * LINGERING_MAX)
    assert plane.apply([model], [backend.address], limits) == ""


def cancel_one_in_flight(plane: DataPlane, backend: H2Backend) -> None:
    opened, cancelled = backend.opened, plane.counters()["cancelled"]
    with connected(plane.address) as stub, OpenStream(stub) as stream:
        stream.send(decoupled())
        wait_until(lambda: backend.opened > opened, "the request is in flight")
        stream.call.cancel()
        wait_until(lambda: plane.counters()["cancelled"] > cancelled, "the cancel has come")


def test_replies_that_are_due_when_the_client_goes_are_taken_and_dropped(plane: DataPlane) -> None:
    with H2Backend(three_replies) as backend:
        one_model(plane, backend, direct_max=1)
        # The one slot is free again when the last reply has come.
        for half_closed in (1, 2, 3):
            cancel_one_in_flight(plane, backend)
            wait_until(lambda n=half_closed: backend.requests == n, "the half close")  # type: ignore[misc]
        plane.assert_balanced()
        assert backend.resets == 0


def test_a_backend_that_goes_on_is_reset(plane: DataPlane) -> None:
    with H2Backend(silent) as backend:
        one_model(plane, backend)
        cancel_one_in_flight(plane, backend)
        wait_until(lambda: backend.resets == 1, "the stream is reset")
        assert backend.requests == 1


def test_a_model_that_stops_when_it_is_cancelled_is_reset_at_once(plane: DataPlane) -> None:
    with H2Backend(silent) as backend:
        one_model(plane, backend, cancellable=True)
        cancel_one_in_flight(plane, backend)
        wait_until(lambda: backend.resets == 1, "the stream is reset")
        assert backend.requests == 0


def test_no_more_streams_than_the_bound_go_on_without_a_client(plane: DataPlane) -> None:
    with H2Backend(silent, streams_max=2 * LINGERING_MAX) as backend:
        one_model(plane, backend, direct_max=2 * LINGERING_MAX)
        client = RawClient(plane.address)
        for _ in range(LINGERING_MAX + 1):
            stream = client.request_headers(path=STREAM_PATH)
            client.send_data(stream, grpc_message(decoupled().SerializeToString()))
        wait_until(lambda: backend.opened == LINGERING_MAX + 1, "all are in flight", 60)
        client.vanish()
        # The oldest is reset without a half close.
        wait_until(lambda: backend.resets == LINGERING_MAX + 1, "all are reset in the end", 60)
        assert backend.requests == LINGERING_MAX
