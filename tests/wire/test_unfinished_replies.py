"""Replies on a stream that cannot leave yet: they count as bytes held on the host."""

from __future__ import annotations

import struct

import grpc
import pytest
from h2.connection import H2Connection

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import OpenStream
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.h2_backend import OK_HEADERS, H2Backend
from tests.wire.test_streams import decoupled_model

HOST_BYTES_MAX = 1 << 20
CLAIMED_BYTES = 64 << 20
REQUEST_BYTES = 64 << 10


def begin_reply(connection: H2Connection, stream: int, received_bytes: int) -> None:
    """So many bytes of a message that is never finished."""
    connection.send_headers(stream, OK_HEADERS)
    data = struct.pack(">BI", 0, CLAIMED_BYTES) + bytes(received_bytes - 5)
    for start in range(0, len(data), 16_384):
        connection.send_data(stream, data[start : start + 16_384])


def outcome(stub: Stub) -> grpc.StatusCode:
    values = rows(1, REQUEST_BYTES // 64)
    call = stub.ModelInfer.future(infer_request(values, request_id="a"), timeout=30)
    if call.code() == grpc.StatusCode.OK:
        assert (output(call.result()) == values).all()
    return call.code()


@pytest.mark.parametrize("fits", [True, False])
def test_an_unfinished_reply_takes_room_from_requests(plane: DataPlane, fits: bool) -> None:
    # Twice what the request and its record take is left, or less than the request alone.
    received = HOST_BYTES_MAX - (2 * REQUEST_BYTES if fits else REQUEST_BYTES // 2)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    begun: list[int] = []

    def on_message(connection: H2Connection, stream: int, message: bytes) -> None:
        if not begun:
            begun.append(stream)
            begin_reply(connection, stream, received)

    with H2Backend(on_message, at_messages=True) as silent, FakeTriton() as answering:
        models = [decoupled_model(0), identity_model(1, max_batch_size=4096, backends=(1,))]
        limits = pb.Limits(host_bytes_max=HOST_BYTES_MAX)
        assert plane.apply(models, [silent.address, answering.address], limits) == ""
        with connected(plane.address) as stub, OpenStream(stub) as stream:
            assert outcome(stub) == grpc.StatusCode.OK
            stream.send(infer_request(rows(1), model="decoupled"))
            wait_until(lambda: bool(begun), "the reply has begun")
            if fits:
                assert outcome(stub) == grpc.StatusCode.OK
            else:
                wait_until(lambda: outcome(stub) == refused, "the reply takes the room")
            stream.call.cancel()
            wait_until(lambda: outcome(stub) == grpc.StatusCode.OK, "the room is given back")


def test_a_reply_that_waits_for_an_earlier_one_takes_room_from_requests(plane: DataPlane) -> None:
    large = rows(2, (HOST_BYTES_MAX - REQUEST_BYTES // 2) // 64)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    with FakeTriton() as held, FakeTriton() as answering:
        models = [
            identity_model(0, "held"),
            identity_model(1, max_batch_size=1 << 20, backends=(1,)),
        ]
        limits = pb.Limits(host_bytes_max=HOST_BYTES_MAX)
        assert plane.apply(models, [held.address, answering.address], limits) == ""
        held.hold()
        with connected(plane.address) as stub, OpenStream(stub) as stream:
            stream.send(infer_request(rows(1), model="held"), infer_request(large))
            wait_until(lambda: answering.batch_rows() == [len(large)], "the second is executed")
            wait_until(lambda: outcome(stub) == refused, "its reply takes the room")
            held.release()
            assert [output(m.infer_response).shape for m in stream.read_many(2)] == [
                (1, 16),
                large.shape,
            ]
            assert outcome(stub) == grpc.StatusCode.OK
